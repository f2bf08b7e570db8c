"""Inputs made up by the thousand: texts for the encoder, and, where atheris is installed, files for the
readers."""

import importlib.util
import os
import random
import subprocess
import sys
import tempfile

import tiny_vocab
from tqdm import tqdm

import encoder
from fast import bulk_encoding

BATCH = 1000

# Texts


def inputs(count: int = 1_000_000, seed: int = 0):
    """Encodes random texts of awkward pieces: encoder.py, gigatoken and tiktoken give the same ids, and
    these the text.

    Of characters that are newer than this Python, tiktoken may not know whether they are letters.
    """
    vocabulary, merges = tiny_vocab.learned_bpe()
    enc, reference = encoder.Encoder(vocabulary, merges), tiny_vocab.tiktoken_encoding(vocabulary, merges)
    bulk_encoder, rng, n_characters = bulk_encoding.BulkEncoder(enc), random.Random(seed), 0
    for start in tqdm(range(0, count, BATCH), desc='batches of inputs', disable=None):
        texts = [awkward(rng) or ' ' for _ in range(min(BATCH, count - start))]
        n_characters += sum(map(len, texts))
        for number, (text, row) in enumerate(zip(texts, bulk_encoder.encode(texts), strict=True), start):
            ids, place = enc.encode(text), f'input {number} of seed {seed}: {text!r}'
            assert ids == row.tolist(), place
            assert enc.decode(ids) == text, place
            if bulk_encoding.is_known(text):
                assert ids == reference.encode_ordinary(text), place
    return {'inputs compared with gigatoken and tiktoken': count, 'characters': n_characters, 'mismatches': 0}


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


# Files, guided by which lines of the readers they reach


def coverage(runs: int = 100_000, seed: int = 1):
    """Has atheris look for a file that a reader neither loads nor refuses; so many files for each reader."""
    if not importlib.util.find_spec('atheris'):
        return {'coverage-guided files': 'not run, as atheris is not installed (pip install atheris)'}
    import readers
    counts = {}
    for name in tqdm(readers.READERS, desc='coverage', disable=None):
        with tempfile.TemporaryDirectory() as folder:
            readers.write_corpus(name, os.path.join(folder, 'corpus'))
            command = [
                sys.executable,
                readers.__file__,
                name,
                os.path.join(folder, 'corpus'),
                f'-runs={runs}',
                f'-seed={seed}',
                '-timeout=60',
                '-rss_limit_mb=4096',
                '-max_len=20000',
                '-verbosity=0',
                f'-artifact_prefix={folder}/',
            ]
            ended = subprocess.run(command, capture_output=True, text=True, errors='replace')
            assert ended.returncode == 0, (
                f'{" ".join(command)}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}'
            )
        counts[f'files given to {name}'] = runs
    return counts
