"""Logit lens, direct logit attribution, activation patching: beside NumPy, and a head known to be there."""
import numpy as np
import numpy_gpt2
import pytest
import tensorflow.compat.v1 as tf
import toy

import model
from errors import InputError
from inspection import analyses
from inspection.inspector import Inspector, trace


@pytest.fixture(scope='module')
def inspected(toy_model):
    return Inspector(toy_model[0])


@pytest.fixture(scope='module')
def tokens(inspected):
    return inspected.tokens('the keeper of the light')


def log_probabilities(values, stream):
    """Of the next token, from a residual stream, [T, E]."""
    h = numpy_gpt2.layer_norm(np.float64(stream), values['model/ln_f/g'], values['model/ln_f/b'])
    return np.log(numpy_gpt2.softmax(h @ values['model/wte'].T))


# Logit lens

def test_the_lens_reads_each_layer_as_if_it_were_the_last(inspected, toy_model, tokens):
    _, hp, values = toy_model
    ids, logprobs = analyses.logit_lens(inspected, tokens, k=3)
    assert ids.shape == logprobs.shape == (1, hp.n_layer + 1, tokens.size, 3)
    streams = trace(inspected, tokens, ['blocks.0.hook_resid_pre', '*hook_resid_post'])
    for layer, stream in enumerate(streams.values()):
        expected = log_probabilities(values, stream[0])
        np.testing.assert_array_equal(ids[0, layer], np.argsort(-expected)[:, :3])
        np.testing.assert_allclose(logprobs[0, layer], -np.sort(-expected)[:, :3], atol=1e-5)
    last = np.log(numpy_gpt2.softmax(numpy_gpt2.logits(values, tokens[0], hp.n_head)))
    np.testing.assert_allclose(logprobs[0, -1, :, 0], last.max(1), atol=1e-5)


# Direct logit attribution

def total(parts):
    return (parts['embed'] + parts['pos_embed'] + parts['ln_final bias'] + parts['heads'].sum((1, 2))
            + parts['attention bias'].sum(1) + parts['mlp'].sum(1))


def test_the_parts_sum_to_the_logit_in_bfloat16_too(toy_model, tokens):
    rounded = Inspector(toy_model[0], precision='bfloat16')
    logits = trace(rounded, tokens, 'logits')['logits']
    parts = analyses.direct_logit_attribution(rounded, tokens, 3)
    np.testing.assert_allclose(total(parts), logits[..., 3], atol=0.02)


@pytest.mark.parametrize('wrong', [None, 8, 'mean'])
def test_the_parts_sum_to_the_logit_less_the_wrong_one(inspected, toy_model, tokens, wrong):
    _, hp, values = toy_model
    logits = numpy_gpt2.logits(values, tokens[0], hp.n_head)
    less = 0 if wrong is None else logits.mean(1) if wrong == 'mean' else logits[:, wrong]
    parts = analyses.direct_logit_attribution(inspected, tokens, 3, wrong)
    np.testing.assert_allclose(total(parts)[0], logits[:, 3] - less, atol=1e-5)


def test_answers_may_differ_by_position_and_text(inspected, toy_model):
    _, hp, values = toy_model
    both = inspected.tokens(['the keeper of the light', 'a harbour'])
    answers = np.random.RandomState(3).randint(0, hp.n_vocab, both.shape)
    sums = total(analyses.direct_logit_attribution(inspected, both, answers))
    for row, tokens in enumerate(both):
        n = (tokens >= 0).sum()
        logits = numpy_gpt2.logits(values, tokens[:n], hp.n_head)
        np.testing.assert_allclose(sums[row, :n], logits[range(n), answers[row, :n]], atol=1e-5)
        assert np.isnan(sums[row, n:]).all()


def test_a_head_adds_what_its_output_adds_at_the_last_normalization_s_scale(inspected, toy_model, tokens):
    _, hp, values = toy_model
    parts = analyses.direct_logit_attribution(inspected, tokens, 3)
    activations = trace(inspected, tokens, ['blocks.1.attn.hook_z', 'blocks.1.hook_resid_post'])
    z, stream = (np.float64(array[0]) for array in activations.values())
    D = hp.n_embd // hp.n_head
    for head in range(hp.n_head):
        written = z[:, head] @ values['model/h1/attn/c_proj/w'][0, head * D:(head + 1) * D]
        centred = written - written.mean(1, keepdims=True)
        normalized = centred / np.sqrt(stream.var(1, keepdims=True) + 1e-5) * values['model/ln_f/g']
        np.testing.assert_allclose(parts['heads'][0, 1, head], normalized @ values['model/wte'][3], atol=1e-5)


# Activation patching

def difference(logits):
    return logits[:, -1, 3] - logits[:, -1, 8]


def test_a_stream_patched_before_the_first_layer_is_another_token(inspected, toy_model, tokens, monkeypatch):
    monkeypatch.setattr(analyses, 'ROW_TOKENS', 3 * tokens.size)  # several batches
    _, hp, values = toy_model
    corrupted = (tokens + 1) % 100
    result = analyses.activation_patching(inspected, tokens, corrupted, difference)
    assert result.shape == (hp.n_layer, tokens.size)
    for position in range(tokens.size):
        mixed = corrupted[0].copy()
        mixed[position] = tokens[0, position]
        assert result[0, position] == pytest.approx(
            difference(numpy_gpt2.logits(values, mixed, hp.n_head)[None])[0], abs=1e-5)


def test_a_head_is_patched_at_all_positions(inspected, toy_model, tokens):
    _, hp, _ = toy_model
    corrupted = np.flip(tokens, 1)
    result = analyses.activation_patching(inspected, tokens, corrupted, difference, 'attn.hook_pattern')
    assert result.shape == (hp.n_layer, hp.n_head)
    name = 'blocks.1.attn.hook_pattern'
    patterns = trace(inspected, corrupted, name)[name]
    patterns[:, 2] = trace(inspected, tokens, name)[name][:, 2]
    expected = difference(trace(inspected, corrupted, 'logits', {name: patterns})['logits'])
    assert result[1, 2] == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize(('question', 'words'), [
    (lambda model: analyses.activation_patching(model, [1, 2, 3], [1, 2], len), r'not of shapes .1, 3.'),
    (lambda model: analyses.activation_patching(model, [1], [2], len, 'hook_q'), 'the nearest: blocks.0'),
    (lambda model: analyses.activation_patching(model, [1], [2], len, 'attn.hook_*'), 'not the name'),
    (lambda model: analyses.activation_patching(model, [1], [2], tf.reduce_sum), 'one number for each text'),
    (lambda model: analyses.direct_logit_attribution(model, [1], 557), 'must be token ids from 0 to 556'),
    (lambda model: analyses.direct_logit_attribution(model, [1], 3.0), 'must be token ids from 0 to 556'),
    (lambda model: analyses.direct_logit_attribution(model, [1], [1, 2]), 'must be token ids from 0 to 556'),
    (lambda model: analyses.direct_logit_attribution(model, [1], 3, 'a'), "or 'mean'"),
    (lambda model: analyses.logit_lens(model, [1], 1000), 'k must be from 1 to 557, not 1000')])
def test_bad_questions_are_refused_in_a_line(inspected, question, words):
    with pytest.raises(InputError, match=words):
        question(inspected)


# A head that is known

def walks(random, n, T=32):
    """Rows of tokens in which each of eight has a follower, that comes next, or a random one of them; and
    those followers that could be known, else -1. In all that is random an induction head alone knows them."""
    X, labels = np.zeros([n, T], np.int32), np.full([n, T], -1, np.int32)
    for row in range(n):
        ring, place, seen = random.permutation(64)[:8], 0, set()
        for t in range(T - 1):
            X[row, t] = ring[place]
            follows = random.rand() < 0.5
            if follows and place in seen:
                labels[row, t + 1] = ring[place - 1]
            if follows:
                seen.add(place)
            place = (place - 1) % 8 if follows else random.randint(8)
        X[row, T - 1] = ring[place]
    return X, labels


@pytest.fixture(scope='module')
def repeating(tmp_path_factory):
    """An Inspector of a model trained to go on with what it saw before."""
    folder = str(tmp_path_factory.mktemp('models') / 'repeating')
    hp, random = toy.hparams(n_embd=64, n_head=2), np.random.RandomState(0)
    start = toy.weights(hp, scale=0.05)
    start['model/wte'] *= 4
    angles = np.arange(hp.n_ctx)[:, None] / 30 ** (np.arange(32) / 32)  # neighbours are alike: learned sooner
    start['model/wpe'] = 0.3 * np.concatenate([np.sin(angles), np.cos(angles)], 1)
    with toy.session() as session:
        X, labels = (tf.placeholder(tf.int32, [None, hp.n_ctx]) for _ in range(2))
        nats, count = model.loss(model.model(hp, X)['logits'], labels)
        update = tf.train.AdamOptimizer(3e-3).minimize(nats / count)
        toy.assign(session, start)
        for _ in range(1000):
            session.run(update, dict(zip((X, labels), walks(random, 64), strict=True)))
        values = {v.op.name: session.run(v) for v in tf.trainable_variables('model/')}
    toy.write_model(folder, hp, values)
    return Inspector(folder)


@pytest.mark.slow
def test_a_model_that_repeats_has_an_induction_head(repeating):
    """On random tokens that are repeated, it looks at the one after the present one's first place (Olsson et
    al. 2022)."""
    random = np.random.RandomState(1)
    half = np.array([random.permutation(64)[:16] for _ in range(50)], np.int32)
    tokens = np.concatenate([half, half], 1)
    queries = np.arange(16, 31)

    def right(patch=None):  # the share of the second half's tokens that are foreseen
        logits = trace(repeating, tokens, 'logits', patch)['logits']
        return np.mean(logits[:, queries].argmax(-1) == tokens[:, queries + 1])
    patterns = np.stack(list(trace(repeating, tokens, '*hook_pattern').values()), 1)  # [B, L, H, T, T]
    scores = patterns[..., queries, queries - 15].mean((0, 3))  # [L, H]
    assert scores[1].max() > 0.25 and scores[0].max() < 0.1  # chance: below 0.04
    assert right() > 0.5
    heads = repeating.shapes(*tokens.shape)['blocks.1.attn.hook_z']
    without = np.where(scores[1][:, None] > 0.25, 0, np.full(heads, np.nan))
    assert right({'blocks.1.attn.hook_z': without}) < 0.1
