"""What the tests share about vocabularies: a small one, and tiktoken as the reference."""
import functools
import glob
import json
import os
import sysconfig

import gigatoken
import pytest
import tiktoken

from encoder import bytes_to_unicode

SHARED = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'shared')
EOT = '<|endoftext|>'
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"  # tiktoken's r50k_base
)

BYTES = {symbol: id for id, symbol in enumerate(bytes_to_unicode().values())}
ENGLISH = """
The keeper of the lighthouse didn't expect visitors in November. He'd trimmed the lamp, he'd wound the \
clock, and now
he was reading the same page that he'd read the day before; it wasn't a good page. "You'll see," his sister \
had said,
"they'll come when you've stopped waiting for them." She'd been right about the storm, and about the boat, \
and she was
usually right about the things that we're all wrong about. I'm telling it as it was told to me, in 1987, on \
a train.
"""


@functools.cache
def tiny_bpe(n_merges=300):
    """(encoder dict, merges), the bytes first, <|endoftext|> last.

    The merges were learned from ENGLISH and Python's module textwrap, once: it is another with each version
    of Python,
    and so would be the ids, and the models that learn to predict them.
    """
    with open(os.path.join(os.path.dirname(__file__), 'tiny_vocab.bpe'), encoding='utf-8') as file:
        merges = [tuple(line.split()) for line in file.read().splitlines()[1:n_merges + 1]]
    symbols = dict.fromkeys([*bytes_to_unicode().values(), *map(''.join, merges), EOT])
    return {symbol: id for id, symbol in enumerate(symbols)}, merges


@functools.cache
def learned_bpe(n_merges=4000):
    """The same with merges learned now, from modules of the standard library: other ones with each Python."""
    modules = sorted(glob.glob(os.path.join(sysconfig.get_path('stdlib'), '*.py')))[::8]
    _, merges = gigatoken.train_bpe(b''.join(map(read_bytes, modules)), 256 + n_merges, [])
    symbol = bytes_to_unicode()
    pairs = [tuple(''.join(map(symbol.__getitem__, part)) for part in pair) for pair in merges]
    assert len(pairs) == n_merges
    symbols = dict.fromkeys([*symbol.values(), *map(''.join, pairs), EOT])
    return {symbol: id for id, symbol in enumerate(symbols)}, pairs


def read_bytes(path):
    with open(path, 'rb') as file:
        return file.read()


def write_vocab(directory, n_merges=300):
    """Writes encoder.json and vocab.bpe of tiny_bpe into a directory (made if need be); returns both as
    tiny_bpe."""
    encoder, merges = tiny_bpe(n_merges)
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, 'encoder.json'), 'w', encoding='utf-8') as file:
        json.dump(encoder, file)
    with open(os.path.join(directory, 'vocab.bpe'), 'w', encoding='utf-8') as file:
        file.write('#version: 0.2\n' + ''.join(f'{first} {second}\n' for first, second in merges))
    return encoder, merges


def tiktoken_encoding(encoder_json, merges):
    """A tiktoken.Encoding with this vocabulary (a dict, or the path of an encoder.json); ids as in the
    vocabulary.

    tiktoken merges in the order of ids, so the ids of merged symbols must ascend as the merges do.
    """
    if not isinstance(encoder_json, dict):
        with open(encoder_json, encoding='utf-8') as file:
            encoder_json = json.load(file)
    ids = [encoder_json[first + second] for first, second in merges]
    assert ids == sorted(set(ids)), (
        'ids are not in the order of the merges: renumber them with in_merge_order'
    )
    byte_of = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
    symbols = [*byte_of, *(first + second for first, second in merges)]
    ranks = {bytes(map(byte_of.__getitem__, symbol)): encoder_json[symbol] for symbol in symbols}
    special = {EOT: encoder_json[EOT]} if EOT in encoder_json else {}
    return tiktoken.Encoding('reference', pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def in_merge_order(encoder, merges):
    """A vocabulary of the same symbols with ids in merge order for tiktoken, and a dict of its ids →
    encoder's ids."""
    symbols = [*bytes_to_unicode().values(), *(first + second for first, second in merges), EOT]
    renumbered = {symbol: id for id, symbol in enumerate(dict.fromkeys(symbols))}
    return renumbered, {id: encoder[symbol] for symbol, id in renumbered.items() if symbol in encoder}


def shared(*names):
    """The path of a file in ../shared; skips the test, saying so, where it is absent (as in a user's
    clone)."""
    path = os.path.join(SHARED, *names)
    if not os.path.exists(path):
        pytest.skip(f'{path} is not here')
    return path


def real_merges():
    with open(shared('vocab', 'vocab.bpe'), encoding='utf-8') as file:
        return [tuple(line.split()) for line in file.read().split('\n')[1:-1]]
