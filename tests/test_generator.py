"""What generator.Generator draws, with its cache and its precisions, and what it costs: against NumPy."""
import inspect
import json
import textwrap
import types

from command_line.flags import WEIGHT_PRECISIONS

import numpy as np
import numpy_gpt2
import pytest
import tensorflow.compat.v1 as tf
import toy
from test_model import transformers_model
from tiny_vocab import ENGLISH

import model
import sample
from errors import InputError
from fast import kernels
from fast.quantized import quantize
from generation import generator

pytestmark = pytest.mark.slow

CONTEXTS = [
    [3, 1, 4, 1, 5, 9, 2, 6, 5],
    [7],
    [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9],
    [5, 5],
]  # of several lengths
SMALL = {'n_vocab': 6, 'n_ctx': 8, 'n_embd': 16, 'n_head': 2}
DRAWN = 1000  # pairs of tokens, for a distribution


def made(hp, values, convert=lambda name, value: value):
    """A Generator of these weights, in a session of its own."""
    session = tf.Session(graph=tf.Graph())
    with session.graph.as_default():
        w = model.weights(hp)
        toy.assign(session, values)
        w = {name: convert(name, value) for name, value in w.items()}
        return generator.Generator(session, hp, every_id(hp), w)


def every_id(hp):
    """In place of an encoder."""
    return types.SimpleNamespace(decoder=range(hp.n_vocab))


def rows_of(gpt2, contexts, seeds, **options):
    """The tokens of each row."""
    return scored_rows_of(gpt2, contexts, seeds, **options)[0]


def scored_rows_of(gpt2, contexts, seeds, **options):
    """The tokens of each row, and their log-probabilities."""
    tokens, logprobs = zip(*gpt2.stream(contexts, seeds, **options), strict=True)
    return np.transpose(tokens).tolist(), np.transpose(logprobs)


def log_softmax(x):
    return np.log(numpy_gpt2.softmax(x))


def reference(values, hp, context, length):
    """The greedy continuation and its log-probabilities: each token by a whole pass over the window. When
    the row has
    more tokens than that, as many as a quarter of n_ctx, and no fewer than 1, are left out at its
    beginning."""
    row, first, logprobs = list(context)[-hp.n_ctx:], 0, []
    begin = len(row)
    for _ in range(length):
        if len(row) - first > hp.n_ctx:
            first += max(1, hp.n_ctx // 4)
        p = log_softmax(numpy_gpt2.logits(values, row[first:], hp.n_head)[-1])
        row.append(int(p.argmax()))
        logprobs.append(p.max())
    return row[begin:], logprobs


def assert_greedy(hp, values, contexts, length):
    tokens, logprobs = scored_rows_of(
        made(hp, values), contexts, [[1]] * len(contexts), length=length, temperature=0
    )
    for i, context in enumerate(contexts):
        expected, expected_logprobs = reference(values, hp, context, length)
        assert tokens[i] == expected
        np.testing.assert_allclose(logprobs[i], expected_logprobs, atol=1e-3)
    assert len({token for row in tokens for token in row}) > len(contexts)  # no token again and again


def passes(monkeypatch):  # -> a list that gets the number of tokens of each pass
    sizes = []
    run = generator.Generator.run

    def recorded(self, tokens, *arguments, **options):
        sizes.append(len(tokens[0]))
        return run(self, tokens, *arguments, **options)
    monkeypatch.setattr(generator.Generator, 'run', recorded)
    return sizes


@pytest.fixture(autouse=True)
def operations(monkeypatch):
    """Nothing is compiled, but where a test asks for it."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 1 << 60)


@pytest.fixture(params=['operations', 'kernels'])
def compiled(request, operations, monkeypatch):
    """Once as small models are computed, once as large ones are."""
    if request.param == 'kernels':
        monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 0)


# Rows, the window and the cache

@pytest.mark.usefixtures('compiled')
def test_prompts_of_several_lengths_are_continued_as_numpy_continues_each():
    hp = toy.hparams()
    assert_greedy(hp, toy.weights(hp, scale=0.4), CONTEXTS, 12)


def test_more_layers_than_a_kernel_holds(monkeypatch):
    """Two kernels, the second of them not full."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 0)
    monkeypatch.setattr(sample, 'LAYERS_IN_KERNEL', 2)
    hp = toy.hparams(n_layer=3)
    assert_greedy(hp, toy.weights(hp, scale=0.4), CONTEXTS[:2], 6)


@pytest.mark.usefixtures('compiled')
def test_a_row_draws_the_same_alone_and_among_others():
    hp = toy.hparams()
    gpt2 = made(hp, toy.weights(hp, scale=0.3))
    contexts, seeds = [*CONTEXTS, CONTEXTS[0]], [[4, 0], [4, 0], [4, 1], [5], [4, 1]]
    options = {'length': 20, 'temperature': 1.2, 'top_k': 200, 'top_p': 0.95, 'repetition_penalty': 1.1}
    together = rows_of(gpt2, contexts, seeds, **options)
    for context, seed, row in zip(contexts, seeds, together, strict=True):
        assert rows_of(gpt2, [context], [seed], **options) == [row]
    assert together[0] != together[4]  # one context, two seeds
    assert rows_of(gpt2, contexts[::-1], seeds[::-1], **options) == together[::-1]


@pytest.mark.parametrize('n_ctx, length', [(16, 60), (3, 12), (6, 25)])
def test_beyond_the_window(n_ctx, length):
    """Rows of several lengths slide at different steps; one context is longer than the window."""
    hp = toy.hparams(n_ctx=n_ctx)
    assert_greedy(hp, toy.weights(hp, scale=0.4), [*CONTEXTS, list(range(40))], length)


def test_a_window_of_one_token():
    hp = toy.hparams(n_ctx=1)
    values = toy.weights(hp)
    expected = reference(values, hp, [3, 9], 6)[0]
    assert rows_of(made(hp, values), [[3, 9], [9]], [[1], [1]], length=6, temperature=0) == [expected] * 2


@pytest.mark.usefixtures('compiled')
def test_a_cache_that_grows(monkeypatch):
    monkeypatch.setattr(generator, 'MIN_CACHE', 4)
    hp = toy.hparams()
    sizes = []
    build = generator.Generator.build
    monkeypatch.setattr(generator.Generator, 'build', lambda self, *arguments: (
        sizes.append(arguments), build(self, *arguments))[1])
    assert_greedy(hp, toy.weights(hp, scale=0.4), [[7], [5, 5]], 12)
    assert sizes == [(2, None, None), (2, 1, 4), (2, 1, 8), (2, 1, 16)]


@pytest.mark.parametrize('together, expected', [(1, [3, 3, 3, 3, 1]), (20, [5, 5, 3])])
@pytest.mark.usefixtures('compiled')
def test_contexts_are_prefilled_in_parts(monkeypatch, together, expected):
    monkeypatch.setattr(generator, 'PREFILL_TOKENS', together)
    monkeypatch.setattr(generator, 'MIN_PREFILL_TOKENS', 3)
    parts = passes(monkeypatch)
    hp = toy.hparams(n_ctx=16)
    assert_greedy(hp, toy.weights(hp, scale=0.4), CONTEXTS, 20)
    assert parts[:parts.index(1, len(expected))] == expected


def test_a_generator_of_the_variables_follows_them():
    """As in training: what changes the weights changes the next call."""
    hp = toy.hparams()
    session = tf.Session(graph=tf.Graph())
    with session.graph.as_default():
        gpt2 = generator.Generator(session, hp, every_id(hp), model.weights(hp))
        for seed in (0, 1):
            values = toy.weights(hp, seed, scale=0.4)
            toy.assign(session, values)
            assert rows_of(gpt2, CONTEXTS[:1], [[1]], length=6, temperature=0) == [
                numpy_gpt2.greedy(values, CONTEXTS[0], hp.n_head, 6)]


# Distributions

def penalized(logits, tokens, penalty):
    """Of one row [V], written out token by token."""
    result = np.array(logits, np.float64)
    for token in set(tokens):
        result[token] = result[token] / penalty if result[token] > 0 else result[token] * penalty
    return result


def distribution(values, tokens, *, temperature=1, top_k=0, top_p=1, repetition_penalty=1):
    """Of the token after these: exact, by sorting."""
    logits = penalized(numpy_gpt2.logits(values, tokens, SMALL['n_head'])[-1], tokens, repetition_penalty)
    return numpy_gpt2.truncated(numpy_gpt2.softmax(logits / temperature), top_k, top_p)


def of_pairs(values, context, **controls):  # -> [V, V]
    """The distribution of the two tokens after a context."""
    first = distribution(values, context, **controls)
    return np.array(
        [p * distribution(values, [*context, token], **controls) for token, p in enumerate(first)]
    )


def assert_distributed(pairs, probabilities):
    """Chi-squared."""
    expected = len(pairs) * probabilities
    counts = np.zeros_like(expected)
    np.add.at(counts, tuple(np.transpose(pairs)), 1)
    assert counts.sum() == len(pairs) and counts[expected == 0].sum() == 0
    common = expected >= 5
    chi_squared = ((counts - expected) ** 2 / np.where(common, expected, 1))[common].sum()
    freedom = common.sum() - 1
    assert chi_squared < freedom + 4 * np.sqrt(2 * freedom) + 4


CONTROLS = [{}, {'temperature': 0.6}, {'top_k': 3}, {'top_p': 0.8}, {'repetition_penalty': 2.0},
            {'temperature': 1.5, 'top_k': 4, 'top_p': 0.7, 'repetition_penalty': 0.6}]


@pytest.fixture(scope='module')
def small():
    hp = toy.hparams(**SMALL)
    values = toy.weights(hp, scale=0.5)
    return values, made(hp, values)


def test_the_controls_give_distributions_that_chi_squared_tells_apart(small):
    """The one test of the others: draws from one distribution do not pass for those of the next."""
    values, _ = small
    rng = np.random.RandomState(1)
    probabilities = [of_pairs(values, [0, 3], **controls) for controls in CONTROLS]
    for own, other in zip(probabilities, probabilities[1:] + probabilities[:1], strict=True):
        pairs = np.transpose(np.unravel_index(rng.choice(36, DRAWN, p=own.ravel()), own.shape))
        assert_distributed(pairs, own)
        with pytest.raises(AssertionError):
            assert_distributed(pairs, other)


@pytest.mark.parametrize('controls', CONTROLS[2:])
def test_the_distribution_of_rows_side_by_side(small, controls):
    """Two contexts of different lengths, four rows each."""
    values, gpt2 = small
    contexts = [[0, 3]] * 4 + [[5, 1, 4, 4, 2]] * 4
    pairs = [rows_of(gpt2, contexts, [[call, row] for row in range(8)], length=2, **controls)
             for call in range(DRAWN // 4)]
    for context, rows in ([0, 3], slice(4)), ([5, 1, 4, 4, 2], slice(4, 8)):
        assert_distributed(
            [row for each in pairs for row in each[rows]], of_pairs(values, context, **controls)
        )


@pytest.mark.parametrize('controls', CONTROLS[-1:])
def test_the_distribution_of_one_row(small, controls):
    values, gpt2 = small
    pairs = [rows_of(gpt2, [[0, 3]], [[seed]], length=2, **controls)[0] for seed in range(DRAWN // 2)]
    assert_distributed(pairs, of_pairs(values, [0, 3], **controls))


@pytest.mark.parametrize('controls', CONTROLS[:4])
def test_the_distribution_without_a_cache(small, controls):
    values, _ = small
    hp = toy.hparams(**SMALL)
    with toy.session() as s:
        X, uniform = tf.placeholder(tf.int32, [None, None]), tf.placeholder(tf.float64, [None])
        token = sample.sample_token(model.model(hp, X)['logits'][:, -1], uniform,
                                    **{'temperature': 1, 'top_k': 0, 'top_p': 1, **controls})
        toy.assign(s, values)
        rows, rng = np.array([[0, 3]] * 4 * DRAWN), np.random.RandomState(2)
        for _ in range(2):
            drawn = s.run(token, {X: rows, uniform: rng.random_sample(4 * DRAWN)})
            rows = np.concatenate([rows, drawn[:, None]], axis=1)
    assert_distributed(rows[:, 2:], of_pairs(values, [0, 3], **controls))


# Controls by which a text depends on what is in it, and the graph's driver

@pytest.fixture(scope='module')
def toy_pair():
    """A Generator, and its sizes and weights: such that greedy text repeats itself."""
    hp = toy.hparams(n_vocab=24, n_ctx=64)
    values = toy.weights(hp, seed=2, scale=0.3)
    return made(hp, values), hp, values


@pytest.mark.parametrize('ours, theirs', [
    *(({'no_repeat_ngram': n}, {'no_repeat_ngram_size': n}) for n in (1, 2, 3, 9)),
    ({'logit_bias': {3: 2.5, 7: -4}}, {'sequence_bias': {(3,): 2.5, (7,): -4.0}}),
    ({'logit_bias': {3: 2.5}, 'no_repeat_ngram': 2, 'repetition_penalty': 1.2},
     {'sequence_bias': {(3,): 2.5}, 'no_repeat_ngram_size': 2, 'repetition_penalty': 1.2}),
    ({'logit_bias': {3: 2.5}, 'no_repeat_ngram': 1, 'repetition_penalty': 0.7},
     {'sequence_bias': {(3,): 2.5}, 'no_repeat_ngram_size': 1, 'repetition_penalty': 0.7})])
def test_greedy_text_is_that_of_transformers(toy_pair, ours, theirs):
    """Rows of several lengths, some of them shorter than an n-gram."""
    gpt2, hp, values = toy_pair
    peer = transformers_model(hp, values).eval()
    import torch
    contexts = [[3, 1, 4, 1, 5, 9, 2], [7], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9], [5, 5]]
    length = 10 if 1 in ours.values() else 40
    rows = rows_of(gpt2, contexts, [[1]] * 4, length=length, temperature=0, **ours)
    assert rows != rows_of(gpt2, contexts, [[1]] * 4, length=length, temperature=0)
    for context, row in zip(contexts, rows, strict=True):
        expected = peer.generate(torch.tensor([context]), attention_mask=torch.ones(1, len(context)),
                                 max_new_tokens=length, do_sample=False, eos_token_id=None, **theirs)
        assert row == expected[0, len(context):].tolist()
        alone = rows_of(gpt2, [context], [[1]], length=length, temperature=0, **ours)  # with prompt lookup
        assert alone == [row]


def test_drawn_text_has_no_ngram_twice_beyond_the_window_either(toy_pair):
    gpt2 = toy_pair[0]
    for n in (2, 3):
        (row,) = rows_of(gpt2, [[3, 1, 4, 1, 5]], [[1]], length=150, no_repeat_ngram=n, temperature=0.3)
        text = [3, 1, 4, 1, 5, *row]
        ngrams = [*zip(*(text[i:] for i in range(n)), strict=False)]
        assert len(ngrams) == len(set(ngrams)) == 156 - n


def test_a_text_that_cannot_go_on_is_refused(toy_pair):
    """There are 24 tokens, of which the prompt has 3."""
    gpt2 = toy_pair[0]
    assert len(set(rows_of(gpt2, [[0, 1, 2]], [[1]], length=21, no_repeat_ngram=1)[0])) == 21
    with pytest.raises(InputError, match='after 24 tokens, no_repeat_ngram 1 leaves no token'):
        rows_of(gpt2, [[0, 1, 2]], [[1]], length=22, no_repeat_ngram=1)


@pytest.mark.parametrize('controls', [
    {'min_p': 0.1}, {'typical_p': 0.6}, {'logit_bias': {3: 2.5, 7: -4}},
    {'temperature': 1.3, 'top_k': 15, 'top_p': 0.95, 'min_p': 0.05, 'typical_p': 0.8,
     'logit_bias': {5: -1e6}}])
@pytest.mark.usefixtures('compiled')
def test_sample_sequence_draws_the_same_tokens(toy_pair, controls):
    _, hp, values = toy_pair
    gpt2 = made(hp, values)
    contexts = [[3, 1, 4], [1, 5, 9], [2, 6, 5]]
    rows = rows_of(gpt2, contexts, [[8, row] for row in range(3)], length=30, **controls)
    with toy.session() as s:
        tokens = sample.sample_sequence(hparams=hp, context=contexts, length=30, seed=8, **controls)
        toy.assign(s, values)
        assert s.run(tokens)[:, 3:].tolist() == rows
    assert rows != rows_of(gpt2, contexts, [[8, row] for row in range(3)], length=30)


# Log-probabilities

def test_log_probabilities_are_the_models_own_whatever_the_controls():
    hp = toy.hparams()
    values = toy.weights(hp, scale=0.3)
    gpt2 = made(hp, values)
    for controls in (
        {},
        {'temperature': 0.5, 'top_k': 3},
        {'top_p': 0.5, 'repetition_penalty': 2},
        {'min_p': 0.2, 'typical_p': 0.7, 'logit_bias': {5: 9}, 'no_repeat_ngram': 2},
        {'temperature': 0},
    ):
        tokens, logprobs = scored_rows_of(gpt2, CONTEXTS, [[8]] * 4, length=8, **controls)
        for context, row, found in zip(CONTEXTS, tokens, logprobs, strict=True):
            p = log_softmax(numpy_gpt2.logits(values, context + row, hp.n_head))
            np.testing.assert_allclose(found, [p[len(context) - 1 + i, token] for i, token in enumerate(row)],
                                       atol=1e-4)


# Precision


def packed(precision):
    return lambda name, value: quantize(name, value, tf.as_dtype(precision))



@pytest.mark.parametrize('precision', ['bfloat16', 'int8'])
@pytest.mark.usefixtures('compiled')
def test_log_probabilities_are_those_of_numpy_with_rounded_weights(precision):
    """At every step, encoded (the first) or with the cache (the others), and for one row or several."""
    hp = toy.hparams(n_vocab=60)
    values = toy.weights(hp, scale=0.3)
    gpt2 = made(hp, values, packed(precision))
    near, far = [], []
    for contexts in (CONTEXTS, CONTEXTS[:1]):
        tokens, logprobs = scored_rows_of(gpt2, contexts, [[1]] * len(contexts), length=12)
        for context, row, found in zip(contexts, tokens, logprobs, strict=True):
            for reference, errors in (
                (numpy_gpt2.with_rounded_matrices(values, precision), near),
                (values, far),
            ):
                p = log_softmax(numpy_gpt2.logits(reference, context + row, hp.n_head))
                errors.append(found - [p[len(context) - 1 + i, token] for i, token in enumerate(row)])
    near, far = (np.sqrt(np.mean(np.square(np.concatenate(errors)))) for errors in (near, far))
    assert near < min(0.02, far / (2 if precision == 'int8' else 1))  # activations are rounded too


@pytest.mark.parametrize('precision', ['bfloat16', 'int8'])
def test_the_first_token_has_logits_in_float32(monkeypatch, precision):
    """In bfloat16, numbers near 100 are half of one apart."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 0)
    hp = toy.hparams(n_vocab=60)
    values = toy.weights(hp, scale=0.3)
    values['model/ln_f/g'] *= 0
    values['model/ln_f/b'] = np.full(hp.n_embd, 64, np.float32)  # the last hidden state, in any precision
    expected = log_softmax(numpy_gpt2.logits(numpy_gpt2.with_rounded_matrices(values, precision), [1], 1)[-1])
    assert abs(expected).max() > 50
    for contexts in ([[1]], CONTEXTS):
        seeds = [[i] for i in range(len(contexts))]
        gpt2 = made(hp, values, packed(precision))
        tokens, logprobs = next(gpt2.stream(contexts, seeds, length=1, temperature=1000))  # any token
        np.testing.assert_allclose(logprobs, expected[tokens], atol=1e-3)


@pytest.fixture(scope='module')
def trained():
    """(HParams, weights, windows it has not seen) of a model of bytes, trained a little."""
    hp = toy.hparams(n_vocab=256, n_ctx=64, n_embd=64, n_head=4)
    text = np.frombuffer((ENGLISH + inspect.getsource(textwrap) + inspect.getsource(json)).encode(), np.uint8)
    text, held_out = text[:-64 * 24], text[-64 * 24:].reshape(24, 64)
    rng = np.random.RandomState(1)
    with toy.session() as s:
        tf.set_random_seed(1)
        X = tf.placeholder(tf.int32, [None, 64])
        total, n = model.loss(model.model(hp, X)['logits'], X)
        update = tf.train.AdamOptimizer(3e-3).minimize(total / n)
        s.run(tf.global_variables_initializer())
        for _ in range(150):
            starts = rng.randint(0, len(text) - 64, 8)
            s.run(update, {X: [text[start:start + 64] for start in starts]})
        values = dict(
            zip([v.op.name for v in tf.trainable_variables()], s.run(tf.trainable_variables()), strict=True)
        )
    return hp, values, held_out


@pytest.fixture(scope='module')
def float32_loss(trained):
    hp, values, windows = trained
    return numpy_gpt2.mean_loss(values, windows.tolist(), hp.n_head)


@pytest.mark.parametrize('precision', ['bfloat16', 'int8'])
def test_perplexity_is_within_1_percent_of_float32s(trained, float32_loss, precision):
    hp, values, windows = trained
    assert float32_loss < np.log(256) / 2
    with toy.session() as s:
        w = {name.removeprefix('model/'): tf.constant(value) for name, value in values.items()}
        w = {name: packed(precision)(name, value) for name, value in w.items()}
        X = tf.constant(windows, tf.int32)
        total, n = s.run(model.loss(model.output(w, model.transformer(hp, w, X)[0]), X))
    assert n == 24 * 63
    assert abs(np.exp(total / n - float32_loss) - 1) < 0.01


@pytest.mark.parametrize('precision', WEIGHT_PRECISIONS)
def test_a_model_directory_loaded_in_each_precision(tmp_path, precision):
    hp, values = toy.write_model(tmp_path / 'toy')
    tf.config.experimental.enable_tensor_float_32_execution(precision != 'tf32')
    gpt2 = generator.load('toy', str(tmp_path), precision=precision)
    assert tf.config.experimental.tensor_float_32_execution_enabled() == (precision == 'tf32')
    exact = precision in ('float32', 'tf32')  # the second on GPUs alone is not
    reference = values if exact else numpy_gpt2.with_rounded_matrices(values, precision)
    context = gpt2.enc.encode('The lighthouse')
    (row,) = gpt2.complete([context], [[1]], length=6)
    p = log_softmax(numpy_gpt2.logits(reference, context + row.tokens, hp.n_head))
    expected = [p[len(context) - 1 + i, token] for i, token in enumerate(row.tokens)]
    np.testing.assert_allclose(row.logprobs, expected, atol=1e-4 if exact else 0.02)
    assert row.text == gpt2.enc.decode(row.tokens)


# As a library

def resident():
    """Memory of this process, in bytes."""
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith('VmRSS'))


def test_a_thousand_calls_add_no_operation_and_no_memory():
    """Controls and lengths of contexts (within a size of the cache) differ from call to call."""
    hp = toy.hparams()
    gpt2 = made(hp, toy.weights(hp))
    rng = np.random.RandomState(1)

    def call(i):
        contexts = [rng.randint(0, hp.n_vocab, rng.randint(1, 20)).tolist() for _ in range(2)]
        rows_of(gpt2, contexts, [[i, 0], [i, 1]], length=2, temperature=i % 3 / 2,
                top_k=int(rng.randint(0, 50)), top_p=rng.random_sample(), repetition_penalty=1 + i % 4 / 10,
                min_p=i % 2 / 9, typical_p=1 - i % 5 / 9, no_repeat_ngram=i % 3, logit_bias={i % 7: i % 3})
    for i in range(50):
        call(i)
    graph = gpt2.session.graph
    before, memory = len(graph.get_operations()), resident()
    for i in range(1000):
        call(i)
    assert len(graph.get_operations()) == before
    assert resident() - memory < 10e6


def test_operations_are_added_by_the_first_call_of_a_number_of_rows_and_a_size_of_the_cache(monkeypatch):
    monkeypatch.setattr(generator, 'MIN_CACHE', 8)
    hp = toy.hparams()
    gpt2 = made(hp, toy.weights(hp))

    def added(rows, length):
        before = len(gpt2.session.graph.get_operations())
        rows_of(gpt2, [[1, 2]] * rows, [[1]] * rows, length=length)
        return len(gpt2.session.graph.get_operations()) - before
    assert added(1, 4) > 0 and added(1, 4) == 0
    assert added(1, 12) > 0 and added(1, 14) == 0  # a cache of 16
    assert added(3, 4) > 0 and added(3, 3) == 0
    assert added(1, 15) == added(3, 5) == 0


def test_two_streams_at_a_time_are_refused(small):
    _, gpt2 = small
    first = gpt2.stream([[1]], [[1]], length=5)
    next(first)
    second = gpt2.stream([[1]], [[1]], length=2)
    assert len(list(second)) == 2
    with pytest.raises(RuntimeError, match='another stream of this Generator has begun'):
        next(first)


def test_a_stream_left_unfinished_changes_nothing_of_the_next(small):
    _, gpt2 = small
    expected = rows_of(gpt2, [[1, 2]], [[1]], length=6)
    left = gpt2.stream([[5], [3, 4]], [[1], [2]], length=5)
    next(left)
    assert rows_of(gpt2, [[1, 2]], [[1]], length=6) == expected
    left.close()


@pytest.mark.parametrize(
    'contexts, options, message',
    [
        ([[1]], {'length': 0}, 'length must be 1 or more, not 0'),
        *(
            (contexts, {'length': 2}, 'contexts must be lists of ids from 0 to 5')
            for contexts in ([[1], []], [[[1]]], [[1], [2, 6]], [[1], [-1, 2]])
        ),
        ([[1]], {'length': 2, 'temperature': -1}, 'temperature must be 0'),
        ([[1]], {'length': 2, 'top_k': -1}, 'top_k must be 0'),
        ([[1]], {'length': 2, 'top_p': 2}, 'top_p must be from 0'),
        ([[1]], {'length': 2, 'repetition_penalty': 0}, 'repetition_penalty must be above 0'),
        ([[1]], {'length': 2, 'min_p': -1}, 'min_p must be from 0'),
        ([[1]], {'length': 2, 'typical_p': 1.5}, 'typical_p must be from 0'),
        ([[1]], {'length': 2, 'no_repeat_ngram': -1}, 'no_repeat_ngram must be 0 or more, not -1'),
        ([[1]], {'length': 2, 'logit_bias': {6: 1}}, 'logit_bias must be of ids below 6 .*, not 6:1'),
    ],
)
def test_what_cannot_be_drawn_is_refused(small, contexts, options, message):
    with pytest.raises(InputError, match=message):
        next(small[1].stream(contexts, [[1]] * len(contexts), **options))


@pytest.mark.parametrize('seeds', [[], [[1]], [[1]] * 3])
def test_seeds_that_are_not_one_for_each_context_are_refused(small, seeds):
    with pytest.raises(InputError, match=f'2 contexts need as many seeds, not {len(seeds)}'):
        next(small[1].stream([[1], [2]], seeds, length=2))


def test_a_seed_of_one_number_is_that_of_the_first_row(small):
    rows = rows_of(small[1], [[0, 3]] * 4, [[1], [1, 0], [1, 1], [2 ** 63 - 1]], length=8)
    assert rows[0] == rows[1] and len({tuple(row) for row in rows}) == 3


def test_rows_may_be_arrays(small):
    arrays = np.array([[0, 3], [4, 1]]), np.array([[1], [2]])
    assert rows_of(small[1], *arrays, length=3) == rows_of(
        small[1], *(each.tolist() for each in arrays), length=3
    )
