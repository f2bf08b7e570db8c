#!/usr/bin/env python3
"""Faults injected on purpose, and counts of what came of them. The suite runs short forms; `make torture` the long:

    tests/torture.py mutations --count 1000
    tests/torture.py inputs --count 1000000 --seed 1

A campaign prints its counts, or raises at the first promise that is broken, naming the fault and the seed.
"""
import contextlib
import dataclasses
import functools
import os
import random
import signal
import sys
import tempfile
import typing

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'src'))

import numpy as np
import tiny_vocab
from tqdm import tqdm

import cli
import encoder
from errors import InputError

SECONDS = 60  # that the loading of a small file may take
ALLOWANCE = 64 << 20  # bytes that loading it may add to the process


# Damaged files


@dataclasses.dataclass
class Target:
    """Files, and the function that loads what is in them: content that == compares. `sealed`: they have checksums."""
    files: list[str]
    load: typing.Callable
    sealed: bool


def mutations(count: int = 1000, seed: int = 0):
    """Loads files with bits flipped, cut short, grown, or swapped: each is refused in one line, or nothing is changed.

    What has no checksum (hparams.json, encoder.json, vocab.bpe, the text files of Hugging Face) may also give other
    content: a letter changed in a symbol is another vocabulary, and a whole one.
    """
    rng = random.Random(seed)
    counts = dict.fromkeys(('refused', 'equal', 'other content of a file without checksum'), 0)
    with tempfile.TemporaryDirectory() as folder:
        targets = make_targets(folder)
        whole = [target.load() for target in targets]
        for number in tqdm(range(count), desc='mutations', disable=None):
            index = rng.randrange(len(targets))
            target, path = targets[index], rng.choice(targets[index].files)
            with mutated(rng, path, [each for other in targets for each in other.files]) as what:
                fault = f'mutation {number} of seed {seed} ({os.path.relpath(path, folder)}: {what})'
                content = attempt(target.load, fault)
            if content is None:
                counts['refused'] += 1
            elif content == whole[index]:
                counts['equal'] += 1
            else:
                assert not target.sealed, f'{fault} was not noticed'
                counts['other content of a file without checksum'] += 1
    return counts


@contextlib.contextmanager
def mutated(rng, path, others):
    """Damages the file for the length of the block; gives a description."""
    with open(path, 'rb') as file:
        before = file.read()
    kind = rng.choice(('bit', 'bits', 'cut', 'cut', 'empty', 'zeros', 'twice', 'grown', 'swapped', 'number', 'gone'))
    data, at = bytearray(before), rng.randrange(len(before))
    if kind == 'bit':
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 'bits':
        for _ in range(rng.randrange(2, 50)):
            data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    elif kind in ('cut', 'empty'):
        del data[at if kind == 'cut' else 0:]
    elif kind == 'zeros':
        data[at:at + 512] = bytes(len(data[at:at + 512]))
    elif kind == 'twice':
        data[at:at] = data[at:at + rng.randrange(1, 512)]
    elif kind == 'grown':
        data += rng.randbytes(rng.randrange(1, 512))
    elif kind == 'swapped':
        with open(rng.choice(others), 'rb') as file:
            data = file.read()
    elif kind == 'number':  # lengths and sizes, absurdly large
        absurd = rng.choice((b'\xff' * 8, b'\xff' * 7 + b'\x7f', b'99999999', b'-1      '))
        data[at:at + 8] = absurd[:len(data) - at]
    try:
        if kind == 'gone':
            os.unlink(path)
        else:
            with open(path, 'wb') as file:
                file.write(data)
        yield f'{kind} at {at}'
    finally:
        with open(path, 'wb') as file:
            file.write(before)


def attempt(load, fault):
    """What load returns, or None where it refused. AssertionError for any other end, or for more time or memory."""
    def late(*_):
        raise AssertionError(f'{fault}: still at it after {SECONDS} seconds')
    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    before = reset_peak()
    try:
        return load()
    except InputError as error:
        assert 0 < len(str(error)) < 1000 and '\n' not in str(error), f'{fault}: not a line: {error}'
    except Exception as error:
        raise AssertionError(f'{fault}: {type(error).__name__}: {error}') from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        grown = status('VmHWM') - before
        assert grown < ALLOWANCE, f'{fault}: took {grown >> 20} MB'


def reset_peak():  # -> bytes of memory now, from which VmHWM counts
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')
    return status('VmRSS')


def status(name):
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))


def make_targets(folder):
    """A small file of each kind that the project reads, and how it does."""
    import tensorflow.compat.v1 as tf
    import toy

    import checkpoint
    import load_dataset
    import model

    models = os.path.join(folder, 'models')
    directory = os.path.join(models, 'toy')
    toy.write_model(directory)
    os.makedirs(os.path.join(folder, 'data'))
    enc = encoder.get_encoder('toy', models)
    rng = np.random.default_rng(0)
    chunks = [rng.integers(len(enc), size=size).astype(np.uint16) for size in (3000, 1, 500)]
    archives = [os.path.join(folder, 'data', name) for name in ('stored.npz', 'deflated.npz')]
    for path in archives:
        load_dataset.write_npz(path, [[chunk] for chunk in chunks], len(enc), compress='deflated' in path)

    def npz(path):
        return lambda: [chunk.tolist() for chunk in load_dataset.load_dataset(enc, path)]

    def vocabulary():
        loaded = encoder.get_encoder('toy', models)
        return loaded.encoder, loaded.encode(tiny_vocab.ENGLISH), loaded.eot

    def weights():
        directory, hparams, _ = checkpoint.describe('toy', models)
        with tf.Graph().as_default(), tf.Session() as session:
            values = model.weights(hparams)
            checkpoint.restore(session, checkpoint.find(directory), checkpoint.model_variables())
            return {name: array.tobytes() for name, array in session.run(values).items()}

    at = functools.partial(os.path.join, directory)
    return [
        Target([at('model.ckpt.data-00000-of-00001'), at('model.ckpt.index'), at('checkpoint')], weights, sealed=True),
        Target([at('hparams.json')], weights, sealed=True),  # the sizes must be those of the weights
        Target([at('encoder.json'), at('vocab.bpe')], vocabulary, sealed=False),
        *(Target([path], npz(path), sealed=True) for path in archives)]


# Texts


def inputs(count: int = 1_000_000, seed: int = 0):
    """Encodes random texts of awkward pieces: ids are tiktoken's, and decode to the same text."""
    vocabulary, merges = tiny_vocab.tiny_bpe()
    vocabulary, _ = tiny_vocab.in_merge_order(vocabulary, merges)
    enc, reference = encoder.Encoder(vocabulary, merges), tiny_vocab.tiktoken_encoding(vocabulary, merges)
    rng, n_characters = random.Random(seed), 0
    for number in tqdm(range(count), desc='inputs', disable=None):
        text = awkward(rng)
        n_characters += len(text)
        ids = list(enc.encode(text))
        assert ids == reference.encode_ordinary(text), f'input {number} of seed {seed}: {text!r}'
        assert enc.decode(ids) == text, f'input {number} of seed {seed}: {text!r}'
    return {'inputs compared with tiktoken': count, 'characters': n_characters, 'mismatches': 0}


PIECES = ("'s", "'S", "'ll", "'", 'the', ' the', ' ', '  ', '\n', '\r\n', '\t', '\u00a0', '\u3000', '\u200b',
          '\u0085', '1', '²', 'Ⅷ', '٣', 'é', 'e\u0301', 'ß', 'İ', '中', 'ไ', '👩‍👩‍👧',
          '🇸🇪', '_', '--', '...', '(', '<|endoftext|>', '\0', '\ufeff', '\U0010ffff', 'ſ', "'ſ", '\ufffd',
          '\x1c', '\u2028', 'ǆ', 'ʰ', '\u0903', '𝟘', '\u180e')


def awkward(rng):
    """A text of up to some 30 pieces, or of random characters of all planes."""
    n = rng.choice((1, 2, 3, 5, 8, 13, 30))
    if rng.random() < 0.7:
        return ''.join(rng.choice(PIECES) * rng.choice((1, 1, 1, 2, 7)) for _ in range(n))
    limit = rng.choice((0x80, 0x800, 0x3000, 0x110000))
    points = (rng.randrange(limit) for _ in range(n))
    return ''.join(chr(point) for point in points if not 0xd800 <= point < 0xe000)


if __name__ == '__main__':
    cli.run({'mutations': mutations, 'inputs': inputs})
