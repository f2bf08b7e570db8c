
import numpy as np
import numpy_gpt2
import pytest
import tensorflow.compat.v1 as tf
import toy

import model
from errors import InputError
from fast import kernels
from fast.quantized import with_precision

SHAPES = [{}, {'n_embd': 48, 'n_head': 3, 'n_layer': 3}, {'n_embd': 32, 'n_head': 1, 'n_layer': 1},
          {'n_vocab': 64, 'n_ctx': 16, 'n_embd': 64, 'n_head': 16, 'n_layer': 4}]

# transformers 5.23, torch 2.13: GPT2LMHeadModel with toy.weights(toy.hparams()) on [[1, 5, 500, 77, 3]],
# last position.
RECORDED_LOGITS = [0.2703612, 0.0800699, -0.6058089, 0.1259957, 0.4436040, 0.4814835]


def run_model(hp, values, tokens, past=None):
    with toy.session() as s:
        result = model.model(
            hp, tf.constant(tokens, tf.int32), past=None if past is None else tf.constant(past)
        )
        toy.assign(s, values)
        return s.run(result)


def transformers_model(hp, values):
    """transformers' GPT2LMHeadModel with these weights, which are a checkpoint's."""
    torch = pytest.importorskip('torch', reason='make test-all compares with transformers')
    transformers = pytest.importorskip('transformers', reason='make test-all compares with transformers')
    config = transformers.GPT2Config(
        vocab_size=hp.n_vocab,
        n_positions=hp.n_ctx,
        n_embd=hp.n_embd,
        n_head=hp.n_head,
        n_layer=hp.n_layer,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    peer = transformers.GPT2LMHeadModel(config)
    state = {}
    for name, value in values.items():
        name = name.replace('model/h', 'h.') if name.startswith('model/h') else name.replace('model/', '')
        name = name.replace('/', '.').replace('.w', '.weight').replace('.g', '.weight').replace('.b', '.bias')
        name = {'wte': 'wte.weight', 'wpe': 'wpe.weight'}.get(name, name)
        state[f'transformer.{name}'] = torch.tensor(value[0] if value.ndim == 3 else value)
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert set(missing) <= {'lm_head.weight'} and not unexpected
    peer.tie_weights()
    return peer


@pytest.fixture(params=['operations', 'kernels'])
def compiled(request, monkeypatch):
    """Once as small models are computed; once as large ones are, by kernels, and by blocks of attention."""
    if request.param == 'kernels':
        monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 0)
        monkeypatch.setattr(kernels, 'ATTENTION_BLOCK', 4)


@pytest.mark.parametrize('sizes', SHAPES)
@pytest.mark.usefixtures('compiled')
def test_logits_are_those_of_the_numpy_reference(sizes):
    hp = toy.hparams(**sizes)
    values = toy.weights(hp)
    tokens = np.random.RandomState(1).randint(0, hp.n_vocab, [2, hp.n_ctx])
    logits = run_model(hp, values, tokens)['logits']
    for row, sequence in zip(logits, tokens, strict=True):
        np.testing.assert_allclose(row, numpy_gpt2.logits(values, sequence, hp.n_head), atol=1e-4)


@pytest.mark.parametrize('sizes', SHAPES)
def test_logits_are_those_of_transformers(sizes):
    hp = toy.hparams(**sizes)
    values = toy.weights(hp)
    tokens = np.random.RandomState(1).randint(0, hp.n_vocab, [2, hp.n_ctx])
    peer = transformers_model(hp, values).eval()
    torch = pytest.importorskip('torch')
    with torch.no_grad():
        expected = peer(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(run_model(hp, values, tokens)['logits'], expected, atol=1e-4)


def test_logits_are_those_that_transformers_once_gave():
    hp = toy.hparams()
    logits = run_model(hp, toy.weights(hp), [[1, 5, 500, 77, 3]])['logits']
    np.testing.assert_allclose(logits[0, -1, :6], RECORDED_LOGITS, atol=1e-4)


def test_past_continues_as_the_reference_does_on_the_whole():
    hp = toy.hparams()
    values = toy.weights(hp)
    tokens = np.random.RandomState(2).randint(0, hp.n_vocab, [1, 20])
    first = run_model(hp, values, tokens[:, :13])
    assert first['present'].shape == tuple(model.past_shape(hparams=hp, batch_size=1, sequence=13))
    rest = run_model(hp, values, tokens[:, 13:], past=first['present'])
    assert rest['present'].shape == (1, 2, 2, 4, 7, 8)
    np.testing.assert_allclose(
        rest['logits'][0], numpy_gpt2.logits(values, tokens[0], hp.n_head)[13:], atol=1e-4
    )


def test_variables_have_the_names_and_shapes_of_the_released_checkpoints():
    with toy.session():
        model.model(toy.hparams(n_layer=1), tf.zeros([1, 4], tf.int32))
        shapes = {v.op.name: v.shape.as_list() for v in tf.global_variables()}
    assert shapes == {
        'model/wpe': [32, 32], 'model/wte': [557, 32], 'model/ln_f/g': [32], 'model/ln_f/b': [32],
        'model/h0/ln_1/g': [32], 'model/h0/ln_1/b': [32], 'model/h0/ln_2/g': [32], 'model/h0/ln_2/b': [32],
        'model/h0/attn/c_attn/w': [1, 32, 96], 'model/h0/attn/c_attn/b': [96],
        'model/h0/attn/c_proj/w': [1, 32, 32], 'model/h0/attn/c_proj/b': [32],
        'model/h0/mlp/c_fc/w': [1, 32, 128], 'model/h0/mlp/c_fc/b': [128],
        'model/h0/mlp/c_proj/w': [1, 128, 32], 'model/h0/mlp/c_proj/b': [32]}


def test_a_second_model_shares_the_variables():
    with toy.session():
        for _ in range(2):
            model.model(toy.hparams(), tf.zeros([1, 4], tf.int32))
        assert len(tf.global_variables()) == 2 * 12 + 4


def test_124m_has_its_number_of_parameters():
    sizes = [np.prod(shape) for shape in model.weight_shapes(model.default_hparams()).values()]
    assert sum(sizes) == 124439808


@pytest.mark.usefixtures('compiled')
def test_loss_leaves_padding_out():
    hp = toy.hparams()
    values = toy.weights(hp)
    tokens = np.random.RandomState(3).randint(0, hp.n_vocab, [2, 10])
    tokens[1, 6:] = -1
    with toy.session() as s:
        X = tf.constant(tokens, tf.int32)
        total, count = model.loss(model.model(hp, tf.maximum(X, 0))['logits'], X)
        toy.assign(s, values)
        total, count = s.run([total, count])
    assert count == 9 + 5
    np.testing.assert_allclose(total / count, numpy_gpt2.mean_loss(values, tokens, hp.n_head), rtol=1e-5)


@pytest.mark.usefixtures('compiled')
def test_gradients_are_finite_differences_of_the_reference():
    hp = toy.hparams(n_vocab=11, n_ctx=6, n_embd=8, n_head=2)
    values = toy.weights(hp, scale=0.3)
    tokens = np.random.RandomState(4).randint(0, hp.n_vocab, [2, 6])
    with toy.session() as s:
        X = tf.constant(tokens, tf.int32)
        total, count = model.loss(model.model(hp, X)['logits'], X)
        toy.assign(s, values)
        names = [v.op.name for v in tf.trainable_variables()]
        found = s.run(
            [tf.convert_to_tensor(g) for g in tf.gradients(total / count, tf.trainable_variables())]
        )
    rng = np.random.RandomState(5)
    for name, gradient in zip(names, found, strict=True):
        direction = rng.standard_normal(values[name].shape)
        ends = [
            numpy_gpt2.mean_loss({**values, name: values[name].astype(float) + step * direction}, tokens, 2)
            for step in (1e-5, -1e-5)
        ]
        np.testing.assert_allclose(
            (gradient * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-3, atol=1e-5
        )


@pytest.mark.usefixtures('compiled')
def test_bfloat16_is_near_the_reference():
    """Loss and gradients, to what a mantissa of 8 bits leaves; the sums are float32, so that nothing
    drifts."""
    hp = toy.hparams()
    values = toy.weights(hp)
    tokens = np.random.RandomState(6).randint(0, hp.n_vocab, [4, hp.n_ctx])
    found = {}
    for dtype in (tf.float32, tf.bfloat16):
        with toy.session() as s:
            X = tf.constant(tokens, tf.int32)
            w = model.weights(hp)
            h, presents = model.transformer(hp, with_precision(w, dtype), X)
            assert h.dtype == tf.float32 and presents[0][0].dtype == dtype
            total, count = model.loss(model.output(with_precision(w, dtype), h), X)
            toy.assign(s, values)
            gradients = [tf.convert_to_tensor(g) for g in tf.gradients(total, [*w.values()])]
            found[dtype] = s.run([total / count, *gradients])
    expected = numpy_gpt2.mean_loss(values, tokens, hp.n_head)
    np.testing.assert_allclose(found[tf.float32][0], expected, rtol=1e-5)
    np.testing.assert_allclose(found[tf.bfloat16][0], expected, rtol=2e-3)
    for low, full in zip(found[tf.bfloat16][1:], found[tf.float32][1:], strict=True):
        assert low.dtype == np.float32
        assert np.linalg.norm(low - full) < 0.03 * np.linalg.norm(full)


def test_more_positions_than_n_ctx_are_refused():
    with toy.session(), pytest.raises(InputError, match='33 positions are more than n_ctx, 32'):
        model.model(toy.hparams(), tf.zeros([1, 33], tf.int32))
