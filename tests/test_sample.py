import numpy as np
import numpy_gpt2
import pytest
import tensorflow.compat.v1 as tf
import toy

import sample
from errors import InputError

CONTEXT = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]


def evaluate(function, *arguments):
    with toy.session() as s:
        return s.run(tf.identity(function(*arguments)))


def draw(values, hp=None, **arguments):
    """What sample_sequence gives for a model with these weights."""
    with toy.session() as s:
        if 'context' in arguments:
            arguments['context'] = tf.constant(arguments['context'], tf.int32)
        tokens = sample.sample_sequence(hparams=hp or toy.hparams(), **arguments)
        toy.assign(s, values)
        return s.run(tokens)


def kept(logits):
    return np.flatnonzero(logits[0] > -1e30).tolist()


@pytest.mark.parametrize('p, expected', [(0.7, [0, 1]), (0.5, [0]), (0.81, [0, 1, 2]), (0.2, [0]), (1e-9, [0]),
                                         (0, [0, 1, 2]), (1, [0, 1, 2])])
def test_top_p_keeps_the_token_that_crosses_p(p, expected):
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    assert kept(evaluate(sample.top_p_logits, logits, p)) == expected


def test_top_p_looks_at_each_row_and_at_no_order():
    logits = np.log(np.array([[0.1, 0.6, 0.3], [0.3, 0.35, 0.35]], np.float32))
    result = evaluate(sample.top_p_logits, logits, 0.6001)
    assert [kept(result[:1]), kept(result[1:])] == [[1, 2], [1, 2]]


@pytest.mark.parametrize('k, expected', [(1, [3]), (2, [1, 3]), (0, [0, 1, 2, 3]), (9, [0, 1, 2, 3])])
def test_top_k(k, expected):
    assert kept(evaluate(sample.top_k_logits, np.array([[0.0, 2.0, -1.0, 3.0]], np.float32), k)) == expected


def test_greedy_is_that_of_the_reference():
    hp = toy.hparams()
    values = toy.weights(hp, scale=0.4)  # so that the text is not one token repeated
    tokens = draw(values, context=CONTEXT, length=12, temperature=0)
    assert min(len(set(row)) for row in tokens[:, 5:].tolist()) >= 4
    assert tokens.shape == (2, 17) and tokens[:, :5].tolist() == CONTEXT
    for row, context in zip(tokens, CONTEXT, strict=True):
        assert row[5:].tolist() == numpy_gpt2.greedy(values, context, hp.n_head, 12)


def test_a_start_token_is_a_context_of_one_and_may_fill_the_window():
    hp = toy.hparams()
    values = toy.weights(hp)
    tokens = draw(values, start_token=7, batch_size=2, length=32, temperature=0)
    assert tokens.shape == (2, 33)
    assert tokens[1].tolist() == [7, *numpy_gpt2.greedy(values, [7], hp.n_head, 32)]


@pytest.mark.parametrize('controls', [{'temperature': 1}, {'temperature': 0.6}, {'top_k': 3}, {'top_p': 0.8},
                                      {'temperature': 1.5, 'top_k': 4, 'top_p': 0.7}])
def test_the_distribution_of_pairs_of_tokens(controls):
    """Chi-squared of the first two tokens against the probabilities that NumPy computes."""
    hp = toy.hparams(n_vocab=6, n_ctx=8, n_embd=16, n_head=2)
    values = toy.weights(hp, scale=0.5)
    n, controls = 4000, {'temperature': 1, 'top_k': 0, 'top_p': 1, **controls}
    tokens = draw(values, hp, context=[[0, 3]] * n, length=2, seed=5, **controls)
    expected = np.zeros([6, 6])
    first = reference_distribution(values, [0, 3], **controls)
    for token in range(6):
        expected[token] = first[token] * reference_distribution(values, [0, 3, token], **controls)
    counts = np.zeros([6, 6])
    np.add.at(counts, (tokens[:, 2], tokens[:, 3]), 1)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    common = expected * n >= 5
    chi_squared = ((counts - expected * n) ** 2 / np.where(common, expected * n, 1))[common].sum()
    freedom = common.sum() - 1
    assert chi_squared < freedom + 4 * np.sqrt(2 * freedom) + 4


def reference_distribution(values, tokens, *, temperature, top_k, top_p):
    p = numpy_gpt2.softmax(numpy_gpt2.logits(values, tokens, 2)[-1] / temperature)
    order = np.argsort(-p)
    chosen = order[:top_k or len(p)]
    share = p[chosen] / p[chosen].sum()
    chosen = chosen[:np.searchsorted(np.cumsum(share), top_p - 1e-12) + 1]
    result = np.zeros_like(p)
    result[chosen] = p[chosen] / p[chosen].sum()
    return result


def test_a_row_depends_on_its_key_and_context_alone():
    values = toy.weights(toy.hparams())
    keys = np.array([[5, 0], [5, 1], [5, 2], [6, 0]])
    together = draw(values, context=CONTEXT * 2, length=10, seed=keys)
    for i in range(4):
        alone = draw(values, context=(CONTEXT * 2)[i:i + 1], length=10, seed=keys[i:i + 1])
        assert alone[0].tolist() == together[i].tolist()
    assert len({tuple(row) for row in together.tolist()}) == 4
    assert draw(values, context=CONTEXT, length=10, seed=5).tolist() == together[:2].tolist()  # (5, 0) and (5, 1)


def test_a_longer_sample_begins_like_a_shorter_one():
    values = toy.weights(toy.hparams())
    short, long = (draw(values, context=CONTEXT, length=length, seed=1) for length in (6, 20))
    assert long[:, :11].tolist() == short.tolist()


def test_without_a_seed_each_run_differs_and_the_graphs_seed_makes_them_repeat():
    values = toy.weights(toy.hparams())
    runs = []
    for _ in range(2):
        with toy.session() as s:
            tf.set_random_seed(3)
            tokens = sample.sample_sequence(hparams=toy.hparams(), start_token=1, batch_size=1, length=20)
            toy.assign(s, values)
            runs.append([s.run(tokens).tolist() for _ in range(2)])
    assert runs[0] == runs[1] and runs[0][0] != runs[0][1]


def test_a_row_goes_on_with_the_stop_token_once_it_came():
    values = toy.weights(toy.hparams())
    free = draw(values, context=CONTEXT, length=20, seed=2)[:, 5:]
    stop = free[0, 7]
    stopped = draw(values, context=CONTEXT, length=20, seed=2, stop_token=stop)[:, 5:]
    for row, reference in zip(stopped.tolist(), free.tolist(), strict=True):
        end = reference.index(stop) + 1 if stop in reference else 20
        assert row == reference[:end] + [stop] * (20 - end)
    assert stopped[0, 8:].tolist() == [stop] * 12


@pytest.mark.parametrize('arguments, message', [
    ({'length': 33}, 'length must be from 1 to n_ctx, 32, not 33'), ({'length': 0}, 'length must be from 1'),
    ({'length': 28}, 'a context of 5 tokens and 28 more exceed n_ctx, 32'),
    ({'length': 5, 'temperature': -1}, 'temperature must be 0'), ({'length': 5, 'top_k': -1}, 'top_k must be 0'),
    ({'length': 5, 'top_p': 1.1}, 'top_p must be from 0 to 1'),
    ({'length': 5, 'start_token': 1}, 'give start_token or context'),
])
def test_controls_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        draw(None, context=CONTEXT, **arguments)


def test_the_cache_is_of_fixed_size():
    """Nothing in the loop may concatenate: the buffers' shapes stay what they were before it."""
    with toy.session() as s:
        sample.sample_sequence(hparams=toy.hparams(), context=tf.constant(CONTEXT), length=20, temperature=0)
        loops = [op for op in s.graph.get_operations() if op.type in ('While', 'StatelessWhile')]
        shapes = [output.shape.as_list() for loop in loops for output in loop.outputs]
    assert shapes.count([2, 4, 24, 8]) == 2 * 2
