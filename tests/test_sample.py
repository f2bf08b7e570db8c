import functools
import json
import os
import subprocess
import sys

import numpy as np
import numpy_gpt2
import pytest
import tensorflow.compat.v1 as tf
import toy
from tiny_vocab import ENGLISH

import sample
from encoder import get_encoder
from errors import InputError
from fast import kernels

pytestmark = pytest.mark.slow

CONTEXT = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]


def evaluate(function, *arguments):
    with toy.session() as s:
        return s.run(tf.identity(function(*arguments)))


def draw(values, hp=None, **arguments):
    """What sample_sequence gives for a model with these weights."""
    with toy.session() as s:
        tokens = sample.sample_sequence(hparams=hp or toy.hparams(), **arguments)
        toy.assign(s, values)
        return s.run(tokens)


def kept(logits):
    return np.flatnonzero(logits[0] > -1e30).tolist()


@pytest.mark.parametrize(
    'p, expected',
    [(0.7, [0, 1]), (0.5, [0]), (0.81, [0, 1, 2]), (0.2, [0]), (1e-9, [0]), (0, [0, 1, 2]), (1, [0, 1, 2])],
)
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


def some_logits(rng, kind, n_vocab):  # -> float32 [8, V]
    if kind == 'ties':
        return rng.randint(-2, 3, [8, n_vocab]).astype(np.float32)
    if kind == 'equal':
        return np.zeros([8, n_vocab], np.float32)
    return (rng.standard_normal([8, n_vocab]) * {'even': 0.1, 'usual': 3, 'tiny': 40}[kind]).astype(
        np.float32
    )


@pytest.mark.parametrize('kind', ['even', 'usual', 'tiny', 'ties', 'equal'])
@pytest.mark.parametrize('smallest', [0, 1 << 60], ids=['kernel', 'operations'])
def test_top_p_keeps_what_sorting_keeps(monkeypatch, kind, smallest):
    """Of many rows, by a kernel and by operations. What is as likely as the token that crosses p is kept as
    well."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', smallest)
    rng = np.random.RandomState(3)
    with toy.session() as s:
        logits, p = tf.placeholder(tf.float32, [8, 300]), tf.placeholder(tf.float32, [])
        cut = sample.top_p_logits(logits, p)
        for top_p in (*rng.random_sample(6), 1e-4, 0.5, 0.9, 0.999):
            given = some_logits(rng, kind, 300)
            found = s.run(cut, {logits: given, p: top_p})
            for row, result in zip(given, found, strict=True):
                probabilities = np.sort(numpy_gpt2.softmax(row.astype(np.float64)))[::-1]
                likelier = np.array([probabilities[probabilities > each * (1 + 1e-9)].sum()
                                     for each in numpy_gpt2.softmax(row.astype(np.float64))])
                clear = np.abs(likelier - top_p) > 1e-5  # the others are for rounding to decide
                assert clear.mean() > 0.6
                assert ((result > -1e30) == (likelier < top_p))[clear].all()
                assert (result == row)[result > -1e30].all()


@pytest.mark.parametrize('first', [0, 12345, sample.INFINITY_BITS - 4])
def test_a_threshold_of_mass_is_exact(first):
    """Of priorities next to each other, wherever they are."""
    priorities = np.array([[3, 0, 2, 1]], np.int32) + first
    for p, expected in ((0.2, 3), (0.5, 2), (0.7, 1), (0.95, 0)):
        probs = np.array([[0.25, 0.25, 0.25, 0.25]], np.float32)
        assert evaluate(sample.mass_threshold, priorities, probs, np.float32(p)) == first + expected


def test_top_p_in_a_graph_of_unknown_sizes():
    with toy.session() as s:
        logits = tf.placeholder(tf.float32, [None, None])
        result = s.run(sample.top_p_logits(logits, 0.7), {logits: np.log([[0.5, 0.3, 0.2]])})
    assert kept(result) == [0, 1]


def warpers(**controls):
    """What transformers applies for these controls, in its order: a function of float32 [B, V]."""
    torch = pytest.importorskip('torch', reason='make test-all compares with transformers')
    transformers = pytest.importorskip('transformers', reason='make test-all compares with transformers')
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=1, n_embd=2, vocab_size=2))
    config = transformers.GenerationConfig(do_sample=True, top_k=controls.pop('top_k', 0), **controls)
    processors = gpt2._get_logits_processor(config)
    return lambda logits: processors(None, torch.tensor(logits)).numpy()


@pytest.mark.parametrize('kind', ['even', 'usual', 'tiny', 'ties', 'equal'])
@pytest.mark.parametrize('smallest', [0, 1 << 60], ids=['kernel', 'operations'])
@pytest.mark.parametrize('control', ['min_p', 'typical_p'])
def test_min_p_and_typical_p_keep_what_transformers_keeps(monkeypatch, kind, smallest, control):
    """The same tokens of each row, also of equal ones."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', smallest)
    rng = np.random.RandomState(5)
    with toy.session() as s:
        logits, p = tf.placeholder(tf.float32, [8, 300]), tf.placeholder(tf.float32, [])
        cut = getattr(sample, f'{control}_logits')(logits, p)
        for value in (*rng.random_sample(8), 1e-9, 1e-4, 0.02, 0.5, 0.9, 0.999, 1):
            given = some_logits(rng, kind, 300)
            found, expected = s.run(cut, {logits: given, p: value}), warpers(**{control: float(value)})(given)
            assert ((found > -1e30) == (expected > -1e30)).all()
            assert (found == given)[found > -1e30].all()


@pytest.mark.parametrize('cut', [sample.top_p_logits, sample.min_p_logits, sample.typical_p_logits])
def test_cuts_keep_nothing_of_what_was_ruled_out(cut):
    """The lowest number, and the minus infinity that it may be after a division, leave the others alone."""
    some = np.array([[2.0, -1, 0.5, 0, 1.9]], np.float32)
    lowest = np.finfo(np.float32).min
    for p in (0.3, 0.6, 0.9, 0.999):
        alone = kept(evaluate(cut, some, p))
        for value in (lowest, -np.inf):
            masked = np.concatenate([some, np.full([1, 4], value, np.float32)], axis=1)
            assert kept(evaluate(cut, masked, p)) == alone


@pytest.mark.parametrize('controls', [
    {'min_p': 0.1}, {'min_p': 1.0}, {'typical_p': 0.6}, {'typical_p': 0.999}, {'typical_p': 1e-6},
    {'temperature': 0.6, 'min_p': 0.2}, {'top_k': 7, 'min_p': 0.3}, {'top_k': 12, 'typical_p': 0.5},
    {'temperature': 1.7, 'top_k': 20, 'top_p': 0.9, 'min_p': 0.05, 'typical_p': 0.7},
    {'top_k': 12, 'top_p': 0.7, 'min_p': 0.2, 'typical_p': 0.6},  # in these two, another order keeps others
    {'top_k': 20, 'top_p': 0.9, 'min_p': 0.2, 'typical_p': 0.6}])
def test_tokens_are_drawn_as_often_as_transformers_would(controls):
    """With all controls in its order: at evenly spaced places of the cumulative distribution."""
    given = some_logits(np.random.RandomState(7), 'usual', 40)[:1] / 2
    expected = numpy_gpt2.softmax(warpers(**controls)(given)[0].astype(np.float64))
    uniform = (np.arange(4000) + 0.5) / 4000
    logits = np.repeat(given, 4000, axis=0)
    tokens = evaluate(functools.partial(sample.sample_token, **{'temperature': 1, 'top_k': 0, 'top_p': 1,
                                                                **controls}), logits, uniform)
    assert abs(np.bincount(tokens, minlength=40) - expected * 4000).max() < 1.5


def test_a_logit_bias_is_added_to_the_logits_of_every_step():
    hp, values = toy.hparams(), toy.weights(toy.hparams(), scale=0.4)
    bias = {312: -3.5, 7: 5, 556: 1e6}
    for logit_bias in ({312: -3.5, 7: 5}, bias):
        row, expected = CONTEXT[0], []
        for _ in range(8):
            logits = numpy_gpt2.logits(values, row + expected, hp.n_head)[-1]
            logits[list(logit_bias)] += list(logit_bias.values())
            expected.append(int(logits.argmax()))
        drawn = draw(values, context=CONTEXT, length=8, temperature=0, logit_bias=logit_bias)
        assert drawn[0, 5:].tolist() == expected
    assert set(expected) == {556}


@pytest.mark.parametrize('penalty', [0.5, 1, 1.3, 4])
def test_penalized_is_the_papers_formula(penalty):
    rng = np.random.RandomState(1)
    logits = rng.standard_normal([3, 9]).astype(np.float32)
    logits[:, 2] = 0
    tokens = np.array([[-1, -1, 4, 2, 4], [-1, -1, -1, -1, -1], [0, 8, 1, 8, 5]], np.int32)
    expected = logits.copy()
    for row, some in enumerate(tokens):
        for token in {token for token in some if token >= 0}:
            expected[row, token] *= 1 / penalty if logits[row, token] > 0 else penalty
    np.testing.assert_allclose(
        evaluate(sample.apply_repetition_penalty, logits, tokens, penalty), expected, rtol=1e-6
    )
    with toy.session() as s:
        given = tf.placeholder(tf.float32, [])
        assert (s.run(sample.apply_repetition_penalty(logits, tokens, given), {given: penalty}) ==
                evaluate(sample.apply_repetition_penalty, logits, tokens, penalty)).all()
    empty = np.zeros([3, 0], np.int32)
    assert (evaluate(sample.apply_repetition_penalty, logits, empty, penalty) == logits).all()


@pytest.mark.parametrize('smallest', [0, 1 << 60], ids=['kernel', 'operations'])
def test_controls_that_are_tensors_give_what_numbers_give(monkeypatch, smallest):
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', smallest)
    rng = np.random.RandomState(2)
    logits, uniform = (rng.standard_normal([40, 30]) * 2).astype(np.float32), rng.random_sample(40)
    found = []
    with toy.session() as s:
        given = {'temperature': tf.placeholder(tf.float32, []), 'top_k': tf.placeholder(tf.int32, []),
                 **{name: tf.placeholder(tf.float32, []) for name in ('top_p', 'min_p', 'typical_p')}}
        token = sample.sample_token(logits, uniform, **given)
        for temperature, top_k, top_p, *others in (
            (0, 0, 0),
            (1, 0, 1),
            (0.7, 5, 0),
            (0, 5, 0.5),
            (2, 0, 0.6),
            (1.5, 9, 0.4),
            (1, 100, 0.999),
            (1e-40, 0, 1),
            (1e30, 0, 1),
            (1, 0, 1, 0.2, 0),
            (1, 9, 0, 0, 0.4),
            (1.5, 12, 0.9, 0.1, 0.5),
        ):
            min_p, typical_p = others or (0, 1)
            controls = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'min_p': min_p,
                        'typical_p': typical_p}
            numbers = s.run(sample.sample_token(logits, uniform, **controls))
            assert (
                s.run(token, {given[name]: value for name, value in controls.items()}).tolist()
                == numbers.tolist()
            )
            found.append(tuple(numbers))
    assert found[0] == found[3] == found[7] == tuple(logits.argmax(axis=1)) and len(set(found)) == 10


@pytest.mark.parametrize('smallest', [0, 1 << 60], ids=['kernel', 'operations'])
def test_ids_outside_of_the_vocabulary_are_as_if_they_were_not_there(monkeypatch, smallest):
    """The tokens drawn are those of logits without the columns of these ids, though they are the largest."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', smallest)
    rng = np.random.RandomState(4)
    vocabulary = np.array([0, 1, 2, 5, 6, 7, 8, 9, 10, 12])
    logits, uniform = (rng.standard_normal([60, 15]) * 2).astype(np.float32), rng.random_sample(60)
    logits[:, [3, 4, 11, 13, 14]] += 9
    uniform[:2] = 0, np.nextafter(1, 0)
    with toy.session() as s:
        given = {'temperature': tf.placeholder(tf.float32, []), 'top_k': tf.placeholder(tf.int32, []),
                 'top_p': tf.placeholder(tf.float32, [])}
        token = sample.sample_token(logits, uniform, vocabulary=vocabulary, **given)
        for temperature, top_k, top_p in (
            (1, 0, 1),
            (0, 0, 0),
            (0.7, 5, 0),
            (2, 0, 0.6),
            (1.5, 9, 0.9),
            (1, 0, 0.999),
            (1, 13, 1),
            (1, 100, 0.999),
            (1e-40, 0, 1),
            (1e30, 0, 1),
        ):
            controls = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p}
            expected = vocabulary[
                s.run(sample.sample_token(logits[:, vocabulary], uniform, **controls))
            ].tolist()
            assert s.run(token, {given[name]: value for name, value in controls.items()}).tolist() == expected
            numbers = sample.sample_token(logits, uniform, vocabulary=list(vocabulary), **controls)
            assert s.run(numbers).tolist() == expected


def test_a_model_with_rows_for_no_text_draws_none_of_them():
    hp = toy.hparams()
    values = toy.weights(hp, scale=0.4)
    vocabulary = [id for id in range(hp.n_vocab - 60) if id % 100]
    options = {'context': CONTEXT * 8, 'length': 20, 'seed': 1}
    assert set(draw(values, **options)[:, 5:].flat) - set(vocabulary)
    assert set(draw(values, **options, vocabulary=vocabulary)[:, 5:].flat) <= set(vocabulary)
    row, greedy = CONTEXT[0], []
    for _ in range(20):
        logits = numpy_gpt2.logits(values, row + greedy, hp.n_head)[-1]
        greedy.append(max(vocabulary, key=logits.__getitem__))
    assert greedy != numpy_gpt2.greedy(values, row, hp.n_head, 20)
    assert (
        draw(values, context=[row], length=20, temperature=0, vocabulary=vocabulary)[0, 5:].tolist() == greedy
    )


def test_a_vocabulary_of_all_ids_costs_nothing():
    graphs = []
    for vocabulary in (None, dict.fromkeys(range(557)), range(556)):
        with toy.session() as s:
            sample.sample_sequence(
                hparams=toy.hparams(), context=tf.constant(CONTEXT), length=3, vocabulary=vocabulary
            )
            functions = s.graph.as_graph_def().library.function
            graphs.append(len(s.graph.get_operations()) + sum(len(each.node_def) for each in functions))
    assert graphs[0] == graphs[1] < graphs[2]


def test_the_place_in_the_cumulative_distribution_decides():
    p = np.array([[0.25, 0, 0.5, 0.25]])
    last = np.nextafter(1, 0)
    uniform = np.array([0, 0.249, 0.251, 0.749, 0.751, last])
    with np.errstate(divide='ignore'):
        logits = np.log(p).clip(-1e30).astype(np.float32).repeat(6, axis=0)
    for top_k, top_p, expected in ((0, 1, [0, 0, 2, 2, 3, 3]), (3, 1, [2, 2, 2, 0, 3, 3]), (0, 0.4, [2] * 6),
                                   (1, 1, [2] * 6)):
        with toy.session() as s:
            assert s.run(sample.sample_token(logits, uniform, temperature=1, top_k=top_k, top_p=top_p)
                         ).tolist() == expected


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
    return numpy_gpt2.truncated(p, top_k, top_p)


def test_a_row_depends_on_its_key_and_context_alone():
    values = toy.weights(toy.hparams())
    keys = np.array([[5, 0], [5, 1], [5, 2], [6, 0]])
    together = draw(values, context=CONTEXT * 2, length=10, seed=keys)
    for i in range(4):
        alone = draw(values, context=(CONTEXT * 2)[i:i + 1], length=10, seed=keys[i:i + 1])
        assert alone[0].tolist() == together[i].tolist()
    assert len({tuple(row) for row in together.tolist()}) == 4
    assert (
        draw(values, context=CONTEXT, length=10, seed=5).tolist() == together[:2].tolist()
    )  # (5, 0) and (5, 1)


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


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'length': 33}, 'a context of 5 tokens and 33 more exceed n_ctx, 32'),
        ({'length': 0}, 'length must be 1 or more'),
        ({'length': 28}, 'a context of 5 tokens and 28 more exceed n_ctx, 32'),
        ({'length': 5, 'temperature': -1}, 'temperature must be 0'),
        ({'length': 5, 'top_k': -1}, 'top_k must be 0'),
        ({'length': 5, 'top_p': 1.1}, 'top_p must be from 0 to 1'),
        ({'length': 5, 'top_p': -0.1}, 'top_p must be from 0 to 1'),
        ({'length': 5, 'min_p': 1.1}, 'min_p must be from 0 to 1, not 1.1'),
        ({'length': 5, 'min_p': float('nan')}, 'min_p must be from 0 to 1'),
        ({'length': 5, 'typical_p': -0.1}, 'typical_p must be from 0 to 1, not -0.1'),
        ({'length': 5, 'logit_bias': {557: 1}}, 'logit_bias must be of ids below 557 and .*, not 557:1'),
        ({'length': 5, 'logit_bias': {-1: 1}}, 'not -1:1'),
        ({'length': 5, 'logit_bias': {1: float('nan')}}, 'numbers up to 1,000,000, not 1:nan'),
        ({'length': 5, 'logit_bias': {1: float('-inf')}}, 'not 1:-inf'),
        ({'length': -1}, 'length must be 1 or more, not -1'),
        ({'length': 5, 'temperature': float('nan')}, 'temperature must be 0'),
        ({'length': 5, 'start_token': 1}, 'give start_token or context'),
        (
            {'length': 5, 'context': 'text'},
            'context must be token ids, a row for each sample, not Tensor.*string',
        ),
        ({'length': 5, 'context': ['text']}, 'context must be token ids'),
        ({'length': 5, 'context': []}, 'context must be token ids'),
        ({'length': 5, 'context': [[]]}, 'context must be token ids'),
        ({'length': 5, 'context': [1, 2]}, r'a row for each sample, not .*shape=\(2,\)'),
        (
            {'length': 5, 'context': [[1.5]]},
            'context must be token ids, a row for each sample, not .*float32',
        ),
        (
            {'length': 5, 'seed': [[1, 0]]},
            r'seed must be a number, or two for each row, not of shape \(1, 2\)',
        ),
        ({'length': 5, 'seed': [1, 2]}, 'seed must be a number, or two for each row'),
        ({'length': 33, 'context': None, 'start_token': 1, 'batch_size': 1}, 'exceed n_ctx, 32'),
    ],
)
def test_controls_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        draw(None, **{'context': CONTEXT, **arguments})


@pytest.mark.parametrize(
    'controls', [{'temperature': 0}, {'temperature': 1, 'seed': 4, 'top_k': 20, 'top_p': 0.9}]
)
def test_rows_of_several_lengths_and_controls_as_tensors(monkeypatch, controls):
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 1 << 60)  # compiling would take seconds
    values = toy.weights(toy.hparams(), scale=0.4)
    padded = [[3, 1, 4, 1, 5], [-1, -1, 9, 2, 6], [-1, -1, -1, -1, 7]]
    inputs = {'length': 12, 'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, **controls}
    with toy.session() as s:
        given = {name: tf.placeholder(tf.float32 if name in ('temperature', 'top_p') else tf.int32, [])
                 for name in inputs}
        context = tf.placeholder(tf.int32, [None, None])
        tokens = sample.sample_sequence(hparams=toy.hparams(), context=context, **given)
        toy.assign(s, values)
        together = s.run(tokens, {context: padded, **{given[name]: value for name, value in inputs.items()}})
    assert together[:, :5].tolist() == padded
    for i, row in enumerate(padded):
        real = [token for token in row if token >= 0]
        seed = np.array([[controls['seed'], i]]) if 'seed' in controls else None
        alone = draw(values, context=[real], length=12, **{**controls, 'seed': seed})
        assert together[i, 5:].tolist() == alone[0, len(real):].tolist()


@pytest.mark.parametrize('changes, message', [
    ({'length': 0}, r'\[length must be 1 or more, not\] \[0\]'), ({'length': 2 ** 31 - 1}, 'n_ctx, 32'),
    ({'length': 28}, r'\[a context of\] \[5\] \[tokens and\] \[28\] \[more exceed n_ctx, 32\]'),
    ({'temperature': -1}, 'temperature must be 0'), ({'top_k': -1}, 'top_k must be 0'),
    ({'top_p': 1.1}, 'top_p must be from 0')])
def test_tensors_out_of_range_end_the_run(monkeypatch, changes, message):
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 1 << 60)
    inputs = {'length': 5, 'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, **changes}
    with toy.session() as s:
        given = {name: tf.placeholder(tf.float32 if name in ('temperature', 'top_p') else tf.int32, [])
                 for name in inputs}
        tokens = sample.sample_sequence(hparams=toy.hparams(), context=tf.constant(CONTEXT), **given)
        toy.assign(s, toy.weights(toy.hparams()))
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            s.run(tokens, {given[name]: value for name, value in inputs.items()})


@pytest.mark.parametrize('dtype', [tf.int32, tf.int64])
def test_a_context_must_be_of_the_models_ids(dtype):
    with toy.session() as s:
        context = tf.placeholder(dtype, [None, None])
        tokens = sample.sample_sequence(hparams=toy.hparams(), context=context, length=2, seed=1)
        toy.assign(s, toy.weights(toy.hparams()))
        assert s.run(tokens, {context: [[556]]}).shape == (1, 3)
        for row in ([5, 557], [-2, 5], [5, -1], []):
            with pytest.raises(
                tf.errors.InvalidArgumentError, match='each row must have tokens from 0 to 556, '
            ):
                s.run(tokens, {context: [row]})


@pytest.mark.parametrize('arguments', [{'context': [[1, 557]]}, {'start_token': 557, 'batch_size': 1}])
def test_a_constant_context_must_be_of_the_models_ids(arguments):
    with pytest.raises(tf.errors.InvalidArgumentError, match='each row must have tokens from 0 to 556, '):
        draw(toy.weights(toy.hparams()), length=2, seed=1, **arguments)


def test_a_context_of_a_length_unknown_beforehand_may_not_exceed_the_window():
    with toy.session() as s:
        context = tf.placeholder(tf.int32, [None, None])
        tokens = sample.sample_sequence(hparams=toy.hparams(), context=context, length=28, seed=1)
        toy.assign(s, toy.weights(toy.hparams()))
        assert s.run(tokens, {context: [[1] * 4]}).shape == (1, 32)
        with pytest.raises(tf.errors.InvalidArgumentError, match='more exceed n_ctx, 32'):
            s.run(tokens, {context: [[1] * 5]})


def test_the_cache_is_of_fixed_size():
    """Nothing in the loop may concatenate: the buffers' shapes stay what they were before it."""
    with toy.session() as s:
        sample.sample_sequence(hparams=toy.hparams(), context=tf.constant(CONTEXT), length=20, temperature=0)
        loops = [op for op in s.graph.get_operations() if op.type in ('While', 'StatelessWhile')]
        shapes = [output.shape.as_list() for loop in loops for output in loop.outputs]
    assert shapes.count([2, 4, 24, 8]) == 2 * 2


# Scripts of others

PORTED = """
import json
import sys
import tensorflow.compat.v1 as tf
SWITCH
import accumulate, encoder, load_dataset, memory_saving_gradients, model, sample


def own_loop(hparams, context, length):
    # As the original's sample_sequence goes on, which has been copied into many scripts.
    def body(past, tokens):
        one = tokens[:, -1:]
        step = model.model(hparams=hparams, X=one, past=past, reuse=tf.AUTO_REUSE)
        logits = sample.top_p_logits(sample.top_k_logits(step['logits'][:, -1, :], k=40), p=0.9)
        token = tf.argmax(logits, axis=-1, output_type=tf.int32)
        return [tf.concat([past, step['present']], axis=-2), tf.concat([tokens, token[:, None]], axis=1)]

    past = model.model(hparams=hparams, X=context[:, :-1], reuse=tf.AUTO_REUSE)['present']
    shapes = [tf.TensorShape(model.past_shape(hparams=hparams, batch_size=1)), tf.TensorShape([1, None])]
    return tf.while_loop(lambda *_: True, body, [past, context], shapes, maximum_iterations=length)[1]


def answers(name, models, text):
    enc = encoder.get_encoder(name, models)
    window = load_dataset.Sampler(load_dataset.load_dataset(enc, text, 50000), seed=1).sample(32)
    hparams = model.default_hparams()
    with open(models + '/' + name + '/hparams.json') as file:
        hparams.override_from_dict(json.load(file))
    with tf.Session(graph=tf.Graph()) as session:
        context = tf.placeholder(tf.int32, [1, None])
        options = {'hparams': hparams, 'length': 4, 'context': context, 'batch_size': 1}
        drawn = {'greedy': sample.sample_sequence(**options, temperature=0),
                 'own loop': own_loop(hparams, context, 4),
                 'drawn': sample.sample_sequence(**options, temperature=1, top_k=40, top_p=0.9, seed=3)}
        X = tf.placeholder(tf.int32, [1, 32])
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=X[:, 1:], logits=model.model(hparams=hparams, X=X)['logits'][:, :-1]))
        variables = tf.trainable_variables()
        opt = accumulate.AccumulatingOptimizer(tf.train.GradientDescentOptimizer(0.1), variables)
        reset, apply = opt.reset(), opt.apply_gradients()
        compute = opt.compute_gradients(loss, memory_saving_gradients.gradients)
        session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        tf.train.Saver(variables).restore(session, tf.train.latest_checkpoint(models + '/' + name))
        feed = {context: [enc.encode('The keeper')]}
        result = {key: session.run(value, feed).tolist() for key, value in drawn.items()}
        session.run(reset)
        session.run(compute, {X: [window]})
        losses = [session.run(apply), session.run(loss, {X: [window]})]
        return {**result, 'window': window.tolist(), 'losses': list(map(float, losses))}


print(json.dumps([answers(name, *sys.argv[1:]) for name in ('small', 'large')]))
"""


@pytest.fixture(scope='module')
def sizes(tmp_path_factory):
    """A folder with models on both sides of what is compiled, and {name: (HParams, weights)}."""
    folder = tmp_path_factory.mktemp('ported')
    models = {'small': toy.hparams(n_embd=16), 'large': toy.hparams(n_embd=512, n_head=16, n_vocab=17000)}
    return folder, {
        name: toy.write_model(str(folder / name), hp, toy.weights(hp)) for name, hp in models.items()
    }


@pytest.mark.parametrize('switch', ['tf.disable_v2_behavior()', 'tf.disable_eager_execution()', ''])
def test_a_ported_script_works_whatever_it_switches_off(sizes, tmp_path, switch):
    """In a process of its own, with models on both sides of what is compiled."""
    folder, models = sizes
    (tmp_path / 'text').write_text(ENGLISH * 3)
    src = os.path.dirname(os.path.abspath(sample.__file__))
    done = subprocess.run([sys.executable, '-c', PORTED.replace('SWITCH', switch), str(folder),
                           str(tmp_path / 'text')], env={**os.environ, 'PYTHONPATH': src}, text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    context = get_encoder('small', str(folder)).encode('The keeper')
    for (hp, values), answer in zip(models.values(), json.loads(done.stdout), strict=True):
        expected = [context + numpy_gpt2.greedy(values, context, hp.n_head, 4)]
        assert answer['greedy'] == answer['own loop'] == expected
        assert (
            answer['drawn']
            == draw(values, hp, context=[context], length=4, top_k=40, top_p=0.9, seed=3).tolist()
        )
        before, after = answer['losses']
        assert before == pytest.approx(numpy_gpt2.mean_loss(values, [answer['window']], hp.n_head), rel=1e-5)
        assert after < before - 0.01
