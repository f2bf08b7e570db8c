"""Training windows: all are drawn, each once an epoch, and what is held out is not among them."""
import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_load_dataset import load
from test_npz import memory_map_below
from tiny_vocab import tiny_bpe

import load_dataset
from encoder import Encoder
from errors import InputError
from training.windows import PADDING, Sampler, hold_out, permuted


@pytest.fixture(scope='module')
def enc():
    return Encoder(*tiny_bpe())


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(0.01, 0.99))
def test_hold_out(lengths, fraction):
    ends = np.cumsum(lengths)
    tokens = np.arange(ends[-1])
    chunks = np.split(tokens, ends[:-1])
    training, validation = hold_out(chunks, fraction)
    assert np.concatenate([*training, *validation, []]).tolist() == tokens.tolist()
    assert sum(map(len, validation)) == round(len(tokens) * fraction)
    assert len(training) + len(validation) <= len(chunks) + 1
    assert all(chunk.base is not None for chunk in training + validation)  # views
    assert len(chunks) == len(lengths)  # the caller's list is as it was


CHUNKS = [np.arange(100, 110), np.arange(200, 203), np.array([300]), np.arange(400, 405), np.arange(500, 502)]


def windows(chunks, length):
    """Every window, written out."""
    result = []
    for chunk in chunks:
        if len(chunk) >= length and len(chunk) > 1:
            result += [tuple(chunk[i:i + length].tolist()) for i in range(len(chunk) - length + 1)]
        elif len(chunk) > 1:
            result.append((*chunk.tolist(), *[PADDING] * (length - len(chunk))))
    return sorted(result)


@pytest.mark.parametrize('length', [1, 2, 3, 4, 5, 9, 10, 11, 40])
def test_each_window_once_an_epoch(length):
    sampler = Sampler(CHUNKS, seed=5)
    expected = windows(CHUNKS, length)
    epochs = [[tuple(sampler.sample(length).tolist()) for _ in expected] for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [expected] * 3
    if len(expected) > 6:
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_sample_is_a_fresh_int32_array():
    chunk = np.arange(10, dtype=np.int32)
    sampler = Sampler([chunk], seed=1)
    window = sampler.sample(10)
    assert window.dtype == np.int32 and window.shape == (10,)
    window[:] = 0
    assert chunk.tolist() == list(range(10))
    assert sampler.sample(15).tolist() == [*range(10), *[-1] * 5]


@pytest.mark.parametrize('size', [2, 3, 5])
def test_ranks_share_each_epoch(size):
    one = Sampler(CHUNKS, seed=7)
    stream = [one.sample(3).tolist() for _ in range(60)]
    ranks = [Sampler(CHUNKS, seed=7, rank=rank, size=size) for rank in range(size)]
    assert [sampler.sample(3).tolist() for _ in range(60 // size) for sampler in ranks] == stream
    assert all(sampler.position == 60 // size for sampler in ranks)


def test_position_is_the_whole_state():
    one, other = Sampler(CHUNKS, seed=7), Sampler(CHUNKS, seed=7)
    for _ in range(30):
        one.sample(4)
    other.position = one.position
    assert [one.sample(4).tolist() for _ in range(40)] == [other.sample(4).tolist() for _ in range(40)]


def test_seeds():
    def draws(seed):
        sampler = Sampler([np.arange(1000)], seed)
        return [int(sampler.sample(2)[0]) for _ in range(20)]
    assert draws(1) == draws(1) == draws(np.int64(1)) != draws(2)
    assert draws(-1) != draws(1) and draws(2**70) != draws(0)
    assert draws(None) != draws(None)
    sampler = Sampler(CHUNKS)
    assert Sampler(CHUNKS, sampler.seed).sample(5).tolist() == sampler.sample(5).tolist()


def test_first_draws_are_uniform_over_seeds():
    n, seeds = 7, 4000
    counts, pairs = np.zeros((3, n)), collections.Counter()
    for seed in range(seeds):
        sampler = Sampler([np.arange(n)], seed)
        drawn = [int(sampler.sample(1)[0]) for _ in range(3)]
        counts[range(3), drawn] += 1
        pairs[drawn[0], drawn[1]] += 1
    assert np.all(((counts - seeds / n)**2).sum(1) / (seeds / n) < 27.9)  # chi-squared, 6 degrees, p = 0.0001
    expected = seeds / (n * (n - 1))
    assert len(pairs) == n * (n - 1)
    assert sum((count - expected)**2 for count in pairs.values()) / expected < 85  # 41 degrees, p = 0.0001


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_permuted_is_a_permutation(n, key):
    assert sorted(permuted(i, n, key) for i in range(n)) == list(range(n))


def test_permuted_of_huge_ranges():
    n = 10**13 + 7
    results = {permuted(i, n, 3) for i in range(1000)}
    assert len(results) == 1000 and all(0 <= each < n for each in results)
    assert max(results) > 0.9 * n and min(results) < 0.1 * n


def test_sampler_does_not_copy_chunks(tmp_path, enc):
    np.savez(tmp_path / 'a.npz', np.arange(1000, dtype=np.uint16))
    sampler = load_dataset.Sampler(load(enc, tmp_path / 'a.npz'), seed=0)
    assert memory_map_below(sampler.chunks[0])


def test_too_little_data():
    for chunks in ([], [np.array([5])], [np.array([5]), np.array([6])]):
        with pytest.raises(InputError, match='has no 2 tokens in one chunk'):
            Sampler(chunks)
