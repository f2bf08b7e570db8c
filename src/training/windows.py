"""Chunks (1-D arrays of token ids) → training windows, drawn at random."""
import bisect
import hashlib
import itertools
import math
import secrets

import numpy as np

from errors import InputError, require
from storage.npz import PROMPT, has_prompts

PADDING = -1  # after a short chunk; the loss leaves it out
MASK = (1 << 64) - 1
UNIT = 1_000_000  # of shares


def pack(chunk, length, end):
    """Windows of whole documents, as many as fit; longer ones are cut. Those with nothing to learn are left
    out. end: the id after each document."""
    bounds, ends = [0], np.append(np.flatnonzero(chunk == end) + 1, len(chunk))
    for stop, after in itertools.pairwise([0, *ends.tolist()]):
        if after - bounds[-1] > length and stop > bounds[-1]:
            bounds.append(stop)
        bounds += range(bounds[-1] + length, after, length)
    windows = (chunk[start:stop] for start, stop in itertools.pairwise([*bounds, len(chunk)]))
    return [window for window in windows if (window[1:] < PROMPT).any()]  # not its first


def hold_out(chunks, fraction, end=None):  # -> lists of training, of the last fraction
    total = sum(map(len, chunks))
    training, validation, left = [], [], total - round(total * fraction)
    for chunk in chunks:
        cut = left
        if has_prompts(chunk) and left < len(chunk):  # no example is cut
            cut = int(np.max(np.flatnonzero(chunk[:left] == end), initial=-1)) + 1
        training.append(chunk[:cut])
        validation.append(chunk[cut:])
        left = max(left - len(chunk), 0)
    return list(filter(len, training)), list(filter(len, validation))


class Sampler:
    """Draws windows of consecutive tokens from chunks, all equally likely, each once an epoch. A short chunk
    is one window, which PADDING fills up; a single token is none. `position`, the number of draws, is all
    state, and may be set."""

    def __init__(self, chunks: list[np.ndarray], seed: int | None = None):
        self.chunks = [chunk for chunk in map(np.asarray, chunks) if len(chunk) >= 2]
        require(self.chunks, 'the data has no 2 tokens in one chunk; give more text')
        self.seed, self.position = secrets.randbits(63) if seed is None else int(seed), 0
        self.starts = {}  # length: windows before each chunk, and in all

    def sample(self, length: int) -> np.ndarray:  # int32 [length]
        if length not in self.starts:
            counts = (max(len(chunk) - length + 1, 1) for chunk in self.chunks)
            self.starts[length] = list(itertools.accumulate(counts, initial=0))
        starts = self.starts[length]
        epoch, draw = divmod(self.position, starts[-1])
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


class Mixture:
    """Draws from the parts (weight, chunks) in turn: of n draws, a part gets its share of n, to one.
    `position` is all state, as a Sampler's. Rank r of `size` takes the draws r, r + size, …"""

    def __init__(self, parts: list[tuple[float, list[np.ndarray]]], seed: int, rank: int = 0, size: int = 1):
        self.samplers = [Sampler(chunks, seed + i) for i, (_, chunks) in enumerate(parts)]
        total = sum(weight for weight, _ in parts)
        self.shares = [round(weight / total * UNIT) for weight, _ in parts]
        require(all(self.shares), f'a weight of less than one in {UNIT:,} of their sum: leave that part out')
        self.seed, self.rank, self.size, self.position = seed, rank, size, 0

    def sample(self, length: int) -> np.ndarray:  # int32 [length]
        draw, left = self.position * self.size + self.rank, sum(self.shares)
        self.position += 1
        for sampler, share in zip(self.samplers, self.shares, strict=True):
            before = draw * share // left  # of `draw` draws, those of this part
            if (draw + 1) * share // left > before:
                sampler.position = before
                return sampler.sample(length)
            draw, left = draw - before, left - share
        raise AssertionError


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
