"""Models of the released sizes with random weights, for those who have not downloaded any."""
import itertools
import os
import string

import measure  # before the project's own: it makes their import possible

from command_line import cli

import numpy as np

import encoder
from errors import require
from hparams import HParams
from storage import vocabulary_files

SIZES = {  # layers, heads, width
    '124M': (12, 12, 768), '355M': (24, 16, 1024), '774M': (36, 20, 1280), '1558M': (48, 25, 1600)}
N_VOCAB = 50257


def sizes_of(text):
    """The sizes that a flag names, with commas between."""
    require(set(text.split(',')) <= set(SIZES), f'--sizes must be of {", ".join(SIZES)}, with commas between')
    return text.split(',')


def hparams(size, n_ctx=1024):
    n_layer, n_head, n_embd = SIZES[size]
    return HParams(n_vocab=N_VOCAB, n_ctx=n_ctx, n_embd=n_embd, n_head=n_head, n_layer=n_layer)


def make(directory, size, n_ctx=1024):
    """Makes directory/size, a model whose vocabulary has bytes and then words of three letters that nothing
    is encoded as, and directory/tokens.npz, random tokens of all ids."""
    with measure.children((write, {'directory': directory, 'size': size, 'n_ctx': n_ctx})) as (child,):
        child.step()


def write(directory, size, n_ctx):
    cli.load_tensorflow()
    from storage import new_model
    path = os.path.join(directory, size)
    os.mkdir(path)
    words = map(''.join, itertools.product(string.ascii_letters, repeat=3))
    symbols = itertools.chain(encoder.bytes_to_unicode().values(), [encoder.EOT], words)
    vocabulary_files.write_vocabulary(path, dict(zip(symbols, range(N_VOCAB), strict=False)), [])
    new_model.create(path, hparams(size, n_ctx))
    tokens = np.random.default_rng(1).integers(N_VOCAB, size=256 * n_ctx, dtype=np.uint16)
    np.savez(os.path.join(directory, 'tokens.npz'), tokens)
    yield
