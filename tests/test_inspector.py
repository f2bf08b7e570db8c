"""Activations by name: beside NumPy, transformers, TransformerLens and finite differences."""
import collections

from command_line.flags import TrainFlags

import numpy as np
import numpy_gpt2
import pytest
import tensorflow.compat.v1 as tf
import toy

import memory_saving_gradients
import model
import sample
from errors import InputError
from fast import kernels
from inspection.inspector import Inspector, gradients, trace
from training import graph as training_graph

TEXTS = ['the keeper of the light', 'a harbour']


@pytest.fixture(scope='module')
def inspected(toy_model):
    return Inspector(toy_model[0])


@pytest.fixture(scope='module')
def tokens(inspected):
    """One text's, int32 [1, T]."""
    return inspected.tokens(TEXTS[0])


def difference(logits):
    """A metric: of each text, at its sixth token, how much likelier one token is than another."""
    return logits[:, 5, 3] - logits[:, 5, 8]


# Beside NumPy

def test_logits_are_those_of_the_numpy_reference(inspected, toy_model, tokens):
    _, hp, values = toy_model
    logits = trace(inspected, tokens, 'logits')['logits'][0]
    np.testing.assert_allclose(logits, numpy_gpt2.logits(values, tokens[0], hp.n_head), atol=1e-5)


def test_all_names_have_their_shapes(inspected, tokens):
    arrays = trace(inspected, tokens, '*')
    assert {name: array.shape for name, array in arrays.items()} == inspected.shapes(*tokens.shape)
    assert all(array.dtype == np.float32 for array in arrays.values())
    assert list(arrays)[:3] == ['hook_embed', 'hook_pos_embed', 'blocks.0.hook_resid_pre']
    assert inspected.shapes()['blocks.1.attn.hook_pattern'] == ('B', 4, 'T', 'T')


def test_texts_of_unequal_length_are_read_as_if_alone(inspected):
    together = trace(inspected, TEXTS, '*')
    sizes = (inspected.tokens(TEXTS) >= 0).sum(1)
    assert sizes[0] > sizes[1]
    for row, text in enumerate(TEXTS):
        for name, array in trace(inspected, text, '*').items():
            n = sizes[row]
            by_position = together[name][row]
            if name.endswith(('_scores', '_pattern')):
                by_position = by_position[..., :n].swapaxes(0, 1)
                array = array.swapaxes(1, 2)
            np.testing.assert_allclose(by_position[:n], array[0], atol=1e-5, err_msg=name)
            assert np.isnan(by_position[n:]).all()


def test_bfloat16_is_near_float32(inspected, toy_model, tokens):
    rounded = trace(Inspector(toy_model[0], precision='bfloat16'), tokens, '*')
    for name, array in trace(inspected, tokens, '*').items():
        assert not np.array_equal(rounded[name], array) or 'embed' in name or name in (
            'blocks.0.hook_resid_pre', 'blocks.0.ln1.hook_normalized')
        finite = np.isfinite(array)
        np.testing.assert_allclose(rounded[name][finite], array[finite], atol=0.05, err_msg=name)


# Patches

def test_another_embedding_makes_another_text(inspected, tokens):
    others = np.flip(tokens, 1)
    patched = trace(inspected, tokens, 'logits', trace(inspected, others, 'hook_embed'))
    np.testing.assert_allclose(patched['logits'], trace(inspected, others, 'logits')['logits'], atol=1e-6)


def test_a_head_of_zeros_is_one_whose_weights_are_zeros(inspected, toy_model, tokens):
    _, hp, values = toy_model
    name = 'blocks.1.attn.hook_z'
    patch = np.full(inspected.shapes(*tokens.shape)[name], np.nan)
    patch[:, :, 2] = 0
    D = hp.n_embd // hp.n_head
    values = {name: value.copy() for name, value in values.items()}
    values['model/h1/attn/c_proj/w'][:, 2 * D:3 * D] = 0
    expected = numpy_gpt2.logits(values, tokens[0], hp.n_head)
    arrays = trace(inspected, tokens, ['logits', name], {name: patch})
    np.testing.assert_allclose(arrays['logits'][0], expected, atol=1e-5)
    assert not arrays[name][:, :, 2].any() and arrays[name][:, :, 1].all()
    by_function = trace(inspected, tokens, 'logits', {name: lambda z: z * [[1.0], [1.0], [0.0], [1.0]]})
    np.testing.assert_allclose(by_function['logits'], arrays['logits'], atol=1e-6)


def test_a_number_replaces_a_whole_activation(inspected, tokens):
    arrays = trace(inspected, tokens, ['*hook_mlp_out', '*hook_resid_*'], {'blocks.0.hook_mlp_out': 0})
    assert not arrays['blocks.0.hook_mlp_out'].any() and arrays['blocks.1.hook_mlp_out'].any()
    np.testing.assert_array_equal(arrays['blocks.0.hook_resid_mid'], arrays['blocks.0.hook_resid_post'])


def test_the_same_question_builds_no_new_graph(inspected, tokens):
    trace(inspected, tokens, 'logits', {'hook_embed': 1})
    before = len(inspected.session.graph.get_operations())
    trace(inspected, tokens[:, :3], 'logits', {'hook_embed': np.float32(2)})
    trace(inspected, tokens, 'blocks.1.attn.hook_pattern', {'hook_embed': np.float32(2)})
    assert len(inspected.session.graph.get_operations()) == before


# Gradients

@pytest.mark.parametrize('name', [
    'hook_embed', 'blocks.0.hook_resid_pre', 'blocks.0.attn.hook_q', 'blocks.1.attn.hook_k',
    'blocks.0.attn.hook_v', 'blocks.0.attn.hook_attn_scores', 'blocks.0.attn.hook_pattern',
    'blocks.0.attn.hook_z', 'blocks.0.hook_attn_out', 'blocks.0.hook_resid_mid', 'blocks.0.mlp.hook_pre',
    'blocks.1.mlp.hook_post', 'blocks.1.hook_resid_post', 'ln_final.hook_normalized'])
def test_gradients_are_finite_differences(inspected, tokens, name):
    gradient = gradients(inspected, tokens, difference, name)[name]
    value = trace(inspected, tokens, name)[name]
    seen = np.isfinite(value)
    direction = np.where(seen, np.random.RandomState(1).standard_normal(value.shape), 0)
    h = 4e-3

    def at(step):
        patch = {name: np.where(seen, value + step * direction, value)}
        return difference(trace(inspected, tokens, 'logits', patch)['logits'])[0]
    up, down = at(h), at(-h)
    assert (up - down) / (2 * h) == pytest.approx((gradient * direction)[seen].sum(), rel=0.02, abs=1e-4)


def test_gradients_of_several_texts_are_each_its_own(inspected, tokens):
    other = np.flip(tokens, 1)
    name = 'blocks.0.hook_resid_pre'
    both = gradients(inspected, np.concatenate([tokens, other]), difference, name)[name]
    np.testing.assert_allclose(both[1:], gradients(inspected, other, difference, name)[name], atol=1e-6)
    assert not both[:, 6:].any() and both[:, :6].any()  # what comes later has no part in it


# The model without a hook

def operations(build, output=None):
    with tf.Graph().as_default() as graph:
        result = build()
        if output:
            definition = tf.graph_util.extract_sub_graph(graph.as_graph_def(), [result.op.name])
        else:
            definition = graph.as_graph_def()
        return collections.Counter(node.op for node in definition.node)


def logits(**options):
    hp = toy.hparams()
    h, _ = model.transformer(hp, model.weights(hp), tf.zeros([1, hp.n_ctx], tf.int32), **options)
    return h


def test_a_hook_that_reads_leaves_attention_in_blocks(monkeypatch):
    """Scores and patterns are computed only where they are asked for."""
    monkeypatch.setattr(kernels, 'ATTENTION_BLOCK', 8)
    plain = operations(logits, output=True)
    assert plain['Softmax'] == plain['Slice'] / 3 == 4 * toy.TOY['n_layer']
    read = operations(lambda: logits(hook=lambda name, x: x), output=True)
    gains = {'Mul', 'AddV2', 'Fill', 'Const'}  # of normalizations, after what the hook sees
    assert {kind for kind in read | plain if read[kind] != plain[kind]} <= gains


def test_training_and_sampling_pass_no_hook(monkeypatch):
    hooks, hooked_norm = [], model.hooked_norm

    def norm(*args):
        hooks.append(args[-1])
        return hooked_norm(*args)
    monkeypatch.setattr(model, 'hooked_norm', norm)
    hp = toy.hparams()
    with tf.Graph().as_default():
        training_graph.Graph(TrainFlags(dataset=''), hp, None)
        sample.sample_sequence(hparams=hp, length=2, start_token=0, batch_size=1)
    assert len(hooks) > 4 * hp.n_layer and {*hooks} == {model.unhooked}


def test_a_hook_sees_what_memory_saving_computes_again():
    hp = toy.hparams()
    with toy.session() as session:
        w, activations = model.weights(hp), {}

        def hook(name, x):
            activations[name] = x = 2 * x if name == 'blocks.1.attn.hook_pattern' else x
            return x
        X = tf.range(hp.n_ctx)[None]
        h, _ = model.transformer(hp, w, X, hook=hook)
        total, _ = model.loss(model.output(w, h), X)
        toy.assign(session, toy.weights(hp))
        xs = [value for name, value in w.items() if name not in ('wte', 'wpe')]  # whose are sparse
        plain, saving = session.run([tf.gradients(total, xs), memory_saving_gradients.gradients(total, xs)])
        for ours, expected in zip(saving, plain, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
        assert session.run(activations['blocks.1.attn.hook_pattern']).sum() == pytest.approx(2 * 4 * hp.n_ctx)


# Bad input

@pytest.mark.parametrize(('names', 'words'), [
    ('blocks.0.hook_q', 'no activation is named blocks.0.hook_q; the nearest: blocks.0.attn.hook_q'),
    (['logits', 'blocks.2.hook_z'], 'no activation is named blocks.2.hook_z; the nearest: blocks.'),
])
def test_unknown_names_are_refused_with_the_nearest(inspected, tokens, names, words):
    with pytest.raises(InputError, match=words):
        trace(inspected, tokens, names)


@pytest.mark.parametrize(('patch', 'words'), [
    ({'hook_embed': np.zeros([1, 3, 32])}, 'broadcast to shape .1, 14, 32., not .1, 3, 32.'),
    ({'hook_embed': np.zeros([2, 14, 32])}, 'broadcast to shape .1, 14, 32., not .2, 14, 32.'),
    ({'hook_embed': [[1, 2], [3]]}, 'broadcast to shape'), ({'hook_embed': 'zeros'}, "not 'zeros'"),
    ({'hook_embed': lambda x: x[..., :3]}, 'a function of the patch gives another shape'),
    ({'hook_embed': lambda x: x[:, :3]}, 'a function of the patch gives another shape'),
    ({'hook_embed': lambda x: tf.transpose(x, [1, 0, 2])}, 'a function of the patch gives another shape'),
    ({'blocks.0.hook_z': 0}, 'no activation is named'),
    ({'blocks.*.hook_mlp_out': 0}, 'cannot be patched'),
    ({'logits': 0}, 'logits cannot be patched'),
])
def test_patches_of_other_shapes_and_names_are_refused(inspected, tokens, patch, words):
    with pytest.raises(InputError, match=words):
        trace(inspected, tokens, 'logits', patch)


@pytest.mark.parametrize(('texts', 'words'), [
    ('', 'an empty text'), ([], 'an empty text'), ([[1], []], 'an empty text'),
    ([1, -1, 2], 'token ids are from 0 to'),
    ([1] * 33, 'a text has 33 tokens; at most n_ctx, 32, fit'), ([1, 99999], 'token ids are from 0 to'),
    ([1, -3], 'token ids are from 0 to')])
def test_texts_that_cannot_be_read_are_refused(inspected, texts, words):
    with pytest.raises(InputError, match=words):
        trace(inspected, texts, 'logits')


# Beside other programs

def test_hidden_states_and_attentions_are_those_of_transformers(inspected, toy_model, tokens):
    torch = pytest.importorskip('torch', reason='make test-all compares with transformers')
    from test_model import transformers_model
    peer = transformers_model(*toy_model[1:]).eval()
    peer.set_attn_implementation('eager')
    with torch.no_grad():
        theirs = peer(torch.tensor(tokens).long(), output_hidden_states=True, output_attentions=True)
    ours = trace(inspected, tokens, '*')
    for i, attention in enumerate(theirs.attentions):
        np.testing.assert_allclose(ours[f'blocks.{i}.attn.hook_pattern'], attention, atol=1e-5)
        np.testing.assert_allclose(ours[f'blocks.{i}.hook_resid_pre'], theirs.hidden_states[i], atol=1e-5)
    np.testing.assert_allclose(ours['logits'], theirs.logits, atol=1e-5)


@pytest.fixture(scope='module')
def lens(toy_model):
    """TransformerLens' model with the toy's weights, not processed."""
    reason = 'make test-all compares with TransformerLens'
    transformer_lens = pytest.importorskip('transformer_lens', reason=reason)
    from test_model import transformers_model
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    _, hp, values = toy_model
    peer = transformer_lens.HookedTransformer(transformer_lens.HookedTransformerConfig(
        n_layers=hp.n_layer, d_model=hp.n_embd, n_ctx=hp.n_ctx, d_head=hp.n_embd // hp.n_head,
        n_heads=hp.n_head, d_vocab=hp.n_vocab, act_fn='gelu_new', normalization_type='LN', device='cpu'))
    peer.load_state_dict(convert_gpt2_weights(transformers_model(hp, values), peer.cfg), strict=False)
    return peer


def test_every_activation_is_transformerlens_s(inspected, lens, tokens):
    import torch
    logits, cache = lens.run_with_cache(torch.tensor(tokens).long())
    ours = trace(inspected, tokens, '*')
    np.testing.assert_allclose(ours.pop('logits'), logits.detach(), atol=1e-5)
    for name, array in ours.items():
        np.testing.assert_allclose(array, cache[name], atol=1e-5, err_msg=name)


def test_patched_runs_are_transformerlens_s(inspected, lens, tokens):
    import torch
    random = np.random.RandomState(2)
    for name, shape in list(inspected.shapes(*tokens.shape).items())[:-1]:
        patch = random.standard_normal(shape).astype(np.float32)
        patch[random.random(shape) < 0.5] = np.nan
        if name.endswith('_scores'):
            patch[:, 1, 3] = -np.inf  # a query that sees nothing
        tensor = torch.tensor(patch)

        def changed(value, hook, patch=tensor):
            return torch.where(torch.isnan(patch), value, patch)
        theirs = lens.run_with_hooks(torch.tensor(tokens).long(), fwd_hooks=[(name, changed)])
        ours = trace(inspected, tokens, 'logits', {name: patch})['logits']
        np.testing.assert_allclose(ours, theirs.detach(), atol=2e-5, err_msg=name)
