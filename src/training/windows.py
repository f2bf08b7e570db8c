"""Chunks of token ids → training windows, drawn at random; and chunks held out of training.

A chunk is a 1-D array of token ids, in memory or mapped into it. No chunk is copied and no order stored, so
that data may be larger than memory.

    training, validation = hold_out(chunks, 0.1)
    Sampler(training, seed=1).sample(1024)    # int32 [1024]
"""
import bisect
import hashlib
import math
import secrets
from collections.abc import Iterable

import numpy as np

from errors import InputError, require

PADDING = -1  # fills a window longer than its chunk; the loss leaves it out
ROUNDS, MASK = 6, (1 << 64) - 1


def hold_out(chunks: list[np.ndarray], fraction: float) -> tuple[list, list]:  # training, validation chunks
    """Takes the last `fraction` of all tokens away for validation: whole chunks, and a slice of one.

    Raises InputError unless at least 2 tokens (one to see, one to predict) are left on each side.
    """
    require(0 < fraction < 1, f'the fraction to hold out must be between 0 and 1, not {fraction}')
    total = sum(map(len, chunks))
    count = round(total * fraction)
    require(count >= 2 and total - count >= 2,
            f'holding out {fraction} of {total} tokens leaves {total - count} to train on and {count} to '
            'validate with; both need at least 2: hold out another fraction, or give more text')
    training, validation = list(chunks), []
    while count:
        chunk = training.pop()
        taken = min(count, len(chunk))
        validation.append(chunk[len(chunk) - taken:])
        if taken < len(chunk):
            training.append(chunk[:len(chunk) - taken])
        count -= taken
    return training, validation[::-1]


class Sampler:
    """Draws windows of consecutive tokens from chunks, all equally likely, each once an epoch.

    A chunk of n tokens has n - length + 1 windows, or, if it is shorter, one that PADDING fills up at its
    right; a chunk of one token has none, as it has nothing to predict. An epoch is a pseudo-random
    permutation of all windows, computed for each draw from (seed, epoch). So `position`, the number of draws
    so far, is the whole state. Rank r of `size` takes the draws r, r + size, r + 2 size, …

    Attributes: seed (drawn if None is given), position (may be set), total_size (tokens in all chunks).
    Raises InputError if no chunk has two tokens.
    """

    def __init__(self, chunks: Iterable[np.ndarray], seed: int | None = None, rank: int = 0, size: int = 1):
        require(0 <= rank < size, f'rank {rank} must be from 0 to {size - 1}')
        chunks = [np.asarray(chunk) for chunk in chunks]
        self.chunks = [chunk for chunk in chunks if len(chunk) >= 2]
        self.total_size = sum(map(len, chunks))
        require(self.chunks,
                f'the data has {self.total_size} tokens in {len(chunks)} chunks, but at least 2 in one chunk '
                'are needed (and for full windows, as many as a window is long); give more text')
        self.seed = secrets.randbits(63) if seed is None else int(seed)
        self.rank, self.size, self.position = rank, size, 0
        self._ends = {}  # length -> for each chunk, the number of windows up to its end
        self._epoch_key = None, 0  # the epoch, and the key of its permutation

    def sample(self, length: int) -> np.ndarray:  # int32 [length]
        """The next window of `length` tokens."""
        ends = self._window_ends(length)
        epoch, draw = divmod(self.position * self.size + self.rank, ends[-1])
        window = permuted(draw, ends[-1], self._key(epoch))
        i = bisect.bisect_right(ends, window)
        start = window - (ends[i - 1] if i else 0)
        tokens = self.chunks[i][start:start + length]
        if tokens.dtype.itemsize > 2 and not (0 <= tokens.min() and tokens.max() < 1 << 31):
            raise InputError(f'the data has ids from {tokens.min()} to {tokens.max()}; make it anew with '
                             'encode.py')  # npz_arrays searches only the first arrays of a file
        self.position += 1
        padding = np.full(length - len(tokens), PADDING, np.int32)
        return np.concatenate([tokens.astype(np.int32), padding])

    def _window_ends(self, length):
        if length not in self._ends:
            require(length >= 1, f'a window must have at least 1 token, not {length}')
            lengths = np.array([len(chunk) for chunk in self.chunks], np.int64)
            self._ends[length] = np.cumsum(np.maximum(lengths - length + 1, 1)).tolist()
        return self._ends[length]

    def _key(self, epoch):
        if self._epoch_key[0] != epoch:
            digest = hashlib.blake2b(f'{self.seed} {epoch}'.encode(), digest_size=8).digest()
            self._epoch_key = epoch, int.from_bytes(digest, 'little')
        return self._epoch_key[1]


def permuted(index, n, key):  # index and result from 0 to n - 1
    """The place to which a pseudo-random permutation, another for each key, sends an index.

    A Feistel network over a grid of about n cells, whose sides are changed in turn by a hash of the other
    side (Black and Rogaway 2002, section 5), is walked until it leads to a cell below n.
    """
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    while True:
        row, column = divmod(index, columns)
        for turn in range(0, ROUNDS, 2):
            row = (row + hashed(column, turn, key)) % rows
            column = (column + hashed(row, turn + 1, key)) % columns
        index = row * columns + column
        if index < n:
            return index


def hashed(half, turn, key):  # -> 64 bits; the steps of splitmix64 (Steele et al. 2014, figure 17)
    mixed = (key + 0x9E3779B97F4A7C15 * (half * ROUNDS + turn + 1)) & MASK
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & MASK
    return mixed ^ mixed >> 31
