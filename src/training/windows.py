"""Chunks (1-D arrays of token ids) → training windows, drawn at random."""
import bisect
import hashlib
import itertools
import math
import secrets

import numpy as np

from errors import InputError, require

PADDING = -1  # after a short chunk; the loss leaves it out
MASK = (1 << 64) - 1


def hold_out(chunks, fraction):  # -> lists of training, of the last fraction
    total = sum(map(len, chunks))
    training, validation, left = [], [], total - round(total * fraction)
    for chunk in chunks:
        training.append(chunk[:left])
        validation.append(chunk[left:])
        left = max(left - len(chunk), 0)
    return list(filter(len, training)), list(filter(len, validation))


class Sampler:
    """Draws windows of consecutive tokens from chunks, all equally likely, each once an epoch. A short chunk
    is one window, which PADDING fills up; a single token is none. `position`, the number of draws, is all
    state, and may be set. Rank r of `size` takes the draws r, r + size, …"""

    def __init__(self, chunks: list[np.ndarray], seed: int | None = None, rank: int = 0, size: int = 1):
        self.chunks = [chunk for chunk in map(np.asarray, chunks) if len(chunk) >= 2]
        require(self.chunks, 'the data has no 2 tokens in one chunk; give more text')
        self.seed = secrets.randbits(63) if seed is None else int(seed)
        self.rank, self.size, self.position = rank, size, 0
        self.starts = {}  # length: windows before each chunk, and in all

    def sample(self, length: int) -> np.ndarray:  # int32 [length]
        if length not in self.starts:
            counts = (max(len(chunk) - length + 1, 1) for chunk in self.chunks)
            self.starts[length] = list(itertools.accumulate(counts, initial=0))
        starts = self.starts[length]
        epoch, draw = divmod(self.position * self.size + self.rank, starts[-1])
        key = hashlib.blake2b(f'{self.seed} {epoch}'.encode(), digest_size=8).digest()
        window = permuted(draw, starts[-1], int.from_bytes(key, 'little'))
        i = bisect.bisect_right(starts, window) - 1
        tokens = self.chunks[i][window - starts[i]:][:length]
        if tokens.dtype.itemsize > 2 and not (0 <= tokens.min() and tokens.max() < 1 << 31):
            raise InputError(f'the data has ids from {tokens.min()} to {tokens.max()}; encode it anew')
        self.position += 1
        padded = np.full(length, PADDING, np.int32)
        padded[:len(tokens)] = tokens
        return padded


def permuted(index, n, key):
    """A permutation of range(n): a Feistel network on a grid of cells, walked until one is below n (Black and
    Rogaway 2002, section 5)."""
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    while True:
        row, column = divmod(index, columns)
        for turn in (1, 3, 5):
            row = (row + hashed(6 * column + turn, key)) % rows
            column = (column + hashed(6 * row + turn + 1, key)) % columns
        index = row * columns + column
        if index < n:
            return index


def hashed(count, key):  # 64 bits, by splitmix64 (Steele et al. 2014, figure 17)
    x = (key + 0x9E3779B97F4A7C15 * count) & MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31
