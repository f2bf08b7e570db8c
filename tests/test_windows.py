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
from storage.npz import PROMPT
from training.windows import PADDING, Mixture, Sampler, hold_out, pack, permuted


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
    one = Mixture([(1, CHUNKS)], seed=7)
    stream = [one.sample(3).tolist() for _ in range(60)]
    ranks = [Mixture([(1, CHUNKS)], 7, rank, size) for rank in range(size)]
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


# Mixtures

@pytest.mark.parametrize('weights', [(0.7, 0.3), (1, 1), (5, 3, 2), (1, 1e-3), (0.1, 0.2, 0.3, 0.4), (3,)])
def test_a_mixture_gives_each_part_its_share_and_the_windows_of_a_sampler(weights):
    parts = [(weight, [np.arange(1000 * i, 1000 * i + 40 + i)]) for i, weight in enumerate(weights)]
    mixture, n = Mixture(parts, seed=7), 4000
    alone = [Sampler(chunks, 7 + i) for i, (_, chunks) in enumerate(parts)]
    counts = [0] * len(parts)
    for drawn in range(1, n + 1):
        window = mixture.sample(8)
        part = int(window[0]) // 1000
        assert window.tolist() == alone[part].sample(8).tolist()
        counts[part] += 1
        shares = np.array(weights) / sum(weights)
        assert np.abs(counts - shares * drawn).max() <= len(parts) - 1 + 1e-6


def test_a_mixture_goes_on_at_any_position_and_is_shared_by_ranks():
    parts = [(0.7, CHUNKS), (0.3, [np.arange(100, 150)])]
    one = Mixture(parts, seed=3)
    stream = [one.sample(5).tolist() for _ in range(60)]
    other = Mixture(parts, seed=3)
    other.position = 41
    assert [other.sample(5).tolist() for _ in range(19)] == stream[41:]
    ranks = [Mixture(parts, 3, rank, 3) for rank in range(3)]
    assert [sampler.sample(5).tolist() for _ in range(20) for sampler in ranks] == stream


def test_a_weight_that_is_no_share_is_refused():
    with pytest.raises(InputError, match='less than one in 1,000,000'):
        Mixture([(1, CHUNKS), (1e-9, CHUNKS)], seed=1)


# Windows of documents

def test_documents_are_packed_whole_and_only_long_ones_are_cut():
    rng = np.random.default_rng(1)
    for length in (8, 13):
        documents = [[*rng.integers(1, 99, rng.integers(0, 20)), 0] for _ in range(300)]
        chunk = np.array([id for document in documents for id in document])
        windows = [window.tolist() for window in pack(chunk, length, 0)]
        assert max(map(len, windows)) == length
        starts, start = [], 0
        for window in windows:
            start += chunk[start:start + len(window)].tolist() != window  # a token alone is left out
            assert chunk[start:start + len(window)].tolist() == window
            starts.append(start)
            start += len(window)
        assert len(chunk) - start < 2
        ends = np.cumsum([0, *map(len, documents)])
        for start, window in zip(starts, windows, strict=True):
            if start not in ends:  # a long document was cut, at full windows
                first = max(end for end in ends if end <= start)
                assert (start - first) % length == 0
            if len(window) < length:  # as the next document does not fit
                following = np.searchsorted(ends, start + len(window), 'right')
                assert following == len(ends) or ends[following] - start > length
    assert [window.tolist() for window in pack(np.arange(1, 7), 2, None)] == [[1, 2], [3, 4], [5, 6]]
    assert pack(np.arange(0), 2, 0) == []


def test_windows_with_prompts_alone_are_left_out():
    chunk = np.array([5, 6, 7, 8, 1, 0, 9, 9, 0], np.int32)
    chunk[:4] |= PROMPT
    assert [window.tolist() for window in pack(chunk, 3, 0)] == [[8 | PROMPT, 1, 0], [9, 9, 0]]
    chunk = np.array([5, 6, 1, 7, 8, 0], np.int32)  # of a window's first token no loss is taken
    chunk[[0, 1, 3, 4]] |= PROMPT
    assert [window.tolist() for window in pack(chunk[:5], 2, 0)] == []
    assert [window.tolist() for window in pack(chunk, 2, 0)] == [[8 | PROMPT, 0]]


def test_examples_are_held_out_whole():
    rng = np.random.default_rng(2)
    for n, fraction in ((50, 0.05), (50, 0.5), (3, 0.05), (1, 0.05)):
        documents = [[*(rng.integers(1, 99, 4) | PROMPT), *rng.integers(1, 99, rng.integers(9)), 0]
                     for _ in range(n)]
        chunk = np.array([id for document in documents for id in document], np.int32)
        training, validation = hold_out([chunk], fraction, end=0)
        assert np.concatenate(training + validation).tolist() == chunk.tolist()
        size = sum(map(len, validation))
        assert 0 <= size - round(fraction * len(chunk)) < max(map(len, documents))
        assert not training or training[-1][-1] == 0
