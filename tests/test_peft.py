"""Adapters in peft's format, beside peft itself."""
import json
import os
import re

from command_line.flags import TrainFlags

import numpy as np
import pytest
import runs
import safetensors.numpy
import tensorflow.compat.v1 as tf
import toy
from test_model import transformers_model

import convert
from errors import InputError
from generation import generator
from inspection.inspector import Inspector
from storage import checkpoint, run_state
from training.graph import Graph

pytestmark = pytest.mark.slow

RANK, ALPHA, TOKENS = 4, 12.0, [[5, 6, 7, 8, 300, 9]]
ROOT = 'base_model.model.transformer.'
MODULES = {'attn': ['attn.c_attn', 'attn.c_proj'], 'mlp': ['c_fc', 'mlp.c_proj'], 'all': 'all-linear',
           'c_attn': None, 'c_attn+c_proj': ['c_attn', 'c_proj']}  # None: peft's own choice for GPT-2


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A folder with models/toy, its sizes and its weights."""
    folder = tmp_path_factory.mktemp('home')
    hp, values = toy.write_model(folder / 'models' / 'toy')
    return folder, hp, values


def make_run(home, folder, targets='all'):  # -> its arrays
    return toy.write_adapter(folder, home[0] / 'models' / 'toy', home[1], targets, RANK, ALPHA)


def peft_model(home, targets, values=None, **more):
    peft = pytest.importorskip('peft', reason='make test-all compares with peft')
    pytest.importorskip('torch').manual_seed(0)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MODULES[targets], lora_dropout=0.0,
                             task_type='CAUSAL_LM', fan_in_fan_out=True, **more)
    return peft.get_peft_model(transformers_model(home[1], values or home[2]), config)


def ours(name):  # of a parameter of peft's -> as in our checkpoints
    parts = name.removeprefix('base_model.model.transformer.h.').split('.')
    return f'h{parts[0]}/{parts[1]}/{parts[2]}/{parts[3].lower()}'


def parameters(model):  # -> {our name: parameter} of peft's adapter
    return {ours(name): p for name, p in model.named_parameters() if 'lora_' in name}


def logits_of(peer):
    torch = pytest.importorskip('torch')
    with torch.no_grad():
        return peer(torch.tensor(TOKENS)).logits.numpy()


def our_logits(folder, models_dir='models'):
    return Inspector(str(folder), models_dir).run(TOKENS, lambda x: x['logits'])


# Training

@pytest.mark.parametrize('targets', ['attn', 'all'])
@pytest.mark.parametrize('optimizer, rate, decay', [
    ('sgd', 0.5, 0.0), ('adam', 1e-2, 0.0), ('adamw', 1e-2, 0.1)])
def test_updates_are_those_of_peft(home, optimizer, rate, decay, targets):
    """Of the same A, B and batches."""
    torch = pytest.importorskip('torch')
    peer = peft_model(home, targets)
    theirs = parameters(peer)
    if optimizer != 'sgd':  # from B = 0, A's first gradients are small, and Adam's steps their rounding's
        for p in theirs.values():
            torch.nn.init.normal_(p, std=0.1)
    start = {name: p.detach().numpy().T.copy() for name, p in theirs.items()}
    kind = {'sgd': torch.optim.SGD, 'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW}[optimizer]
    opt = kind(theirs.values(), lr=rate, **({'weight_decay': decay} if optimizer == 'adamw' else {}))
    data = np.random.RandomState(1).randint(0, home[1].n_vocab, [6, 2, 32])
    flags = TrainFlags(dataset='none', optimizer=optimizer, learning_rate=rate, weight_decay=decay, seed=1)
    with toy.session() as session:
        own = checkpoint.new_adapter(f'{home[0]}/models/toy', home[1], RANK, ALPHA, targets,
                                     f'{home[0]}/checkpoint/x', f'{home[0]}/models')
        graph = Graph(flags, home[1], None, adapter=own)
        session.run(tf.global_variables_initializer())
        checkpoint.restore(session, f'{home[0]}/models/toy/model.ckpt', graph.base)
        variables = {v.op.name.removeprefix('model/'): v for v in checkpoint.model_variables()}
        assert variables.keys() == start.keys()
        for name, v in variables.items():
            v.load(start[name], session)
        for batch in data:
            X = torch.tensor(batch)
            loss = peer(X, labels=X).loss
            opt.zero_grad()
            loss.backward()
            opt.step()
            (total, count), _ = session.run([graph.update_losses, graph.update],
                                            {graph.batch: (batch, batch), graph.rate: rate})
            np.testing.assert_allclose(total / count, loss.item(), rtol=2e-6 if optimizer == 'sgd' else 2e-5)
        for name, v in variables.items():
            p = theirs[name].detach().numpy().T
            moved, error = np.abs(p - start[name]).max(), np.abs(p - session.run(v))
            assert moved > 1e-3
            if optimizer == 'sgd':
                assert error.max() < 1e-4 * moved, name
            else:
                assert np.quantile(error, 0.98) < 5e-3 * moved, name


# There and back

@pytest.mark.parametrize('targets', run_state.TARGETS)
def test_peft_reads_what_is_written(home, tmp_path, targets):
    peft = pytest.importorskip('peft', reason='make test-all compares with peft')
    make_run(home, tmp_path / 'run', targets)
    convert.to_peft(str(tmp_path / 'run'), str(tmp_path / 'out'), models_dir=f'{home[0]}/models')
    loaded = peft.PeftModel.from_pretrained(transformers_model(home[1], home[2]), tmp_path / 'out')
    theirs = logits_of(loaded)
    np.testing.assert_allclose(theirs, our_logits(tmp_path / 'run', f'{home[0]}/models'), atol=2e-5)
    assert np.abs(theirs - our_logits(f'{home[0]}/models/toy')).max() > 0.1


@pytest.mark.parametrize('targets', run_state.TARGETS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_what_peft_writes_is_read(home, tmp_path, targets, dtype):
    torch = pytest.importorskip('torch', reason='make test-all compares with peft')
    peer = peft_model(home, targets)
    torch.manual_seed(0)
    for p in parameters(peer).values():
        torch.nn.init.normal_(p, std=0.1)
        p.data = p.to(getattr(torch, dtype))
    peer.save_pretrained(tmp_path / 'theirs')
    convert.from_peft(str(tmp_path / 'theirs'), 'back', model_name='toy', models_dir=f'{home[0]}/models',
                      checkpoint_dir=str(tmp_path / 'runs'))
    for p in parameters(peer).values():
        p.data = p.float()
    found = our_logits(tmp_path / 'runs' / 'back', f'{home[0]}/models')
    np.testing.assert_allclose(logits_of(peer), found, atol=2e-5)


def test_there_and_back_each_bit_is_the_same(home, tmp_path, capsys):
    arrays = make_run(home, tmp_path / 'run')
    convert.to_peft(str(tmp_path / 'run'), str(tmp_path / 'out'), models_dir=f'{home[0]}/models')
    theirs = safetensors.numpy.load_file(tmp_path / 'out' / 'adapter_model.safetensors')
    modules = 'attn.c_attn', 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj'
    assert theirs.keys() == {f'base_model.model.transformer.h.{i}.{module}.lora_{letter}.weight'
                             for i in (0, 1) for module in modules for letter in 'AB'}
    for name, value in theirs.items():
        np.testing.assert_array_equal(value, arrays[ours(name)].T)
    convert.from_peft(str(tmp_path / 'out'), 'back', model_name=f'{home[0]}/models/toy',
                      models_dir=f'{home[0]}/models', checkpoint_dir=str(tmp_path))
    runs.assert_same(runs.stored(str(tmp_path / 'back' / 'model.ckpt')),
                     {f'model/{name}': value for name, value in arrays.items()})
    assert (tmp_path / 'back' / 'adapter.json').read_text() == (tmp_path / 'run' / 'adapter.json').read_text()
    fingerprint = checkpoint.fingerprint(f'{home[0]}/models/toy/model.ckpt')
    assert capsys.readouterr().out.endswith(
        f'Made {tmp_path}/back: an adapter of toy ({fingerprint}) '
        'with --lora_rank 4 --lora_alpha 12.0 --lora_targets all\n')
    generator.load(str(tmp_path / 'back'), f'{home[0]}/models')


# What is refused

@pytest.fixture
def folder(home, tmp_path):
    make_run(home, tmp_path / 'run')
    convert.to_peft(str(tmp_path / 'run'), str(tmp_path / 'out'), models_dir=f'{home[0]}/models')
    return tmp_path / 'out'


def refusal(home, folder, tmp_path):
    with pytest.raises(InputError) as raised:
        convert.from_peft(str(folder), 'back', model_name='toy', models_dir=f'{home[0]}/models',
                          checkpoint_dir=str(tmp_path / 'runs'))
    assert '\n' not in str(raised.value) and len(str(raised.value)) < 1000
    assert not os.path.exists(tmp_path / 'runs')
    return str(raised.value)


@pytest.mark.parametrize('field, value', [
    ('use_rslora', True), ('use_dora', True), ('bias', 'lora_only'), ('modules_to_save', ['lm_head']),
    ('rank_pattern', {'c_attn': 2}), ('alpha_pattern', {'c_attn': 2}), ('layer_replication', [[0, 2]]),
    ('init_lora_weights', 'pissa'), ('lora_bias', True), ('peft_type', 'IA3'), ('peft_type', None),
    ('trainable_token_indices', [1]), ('of_the_future', 'x'), ('r', '4'), ('r', 0), ('r', 4.0), ('r', None),
    ('lora_alpha', 'x'), ('lora_alpha', 1e999), ('lora_alpha', None)])
def test_a_field_that_means_something_else_is_refused_by_its_name(home, folder, tmp_path, field, value):
    path = folder / 'adapter_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    assert field in refusal(home, folder, tmp_path)


@pytest.mark.parametrize('change, message', [
    (lambda x: x.pop(f'{ROOT}h.1.mlp.c_fc.lora_B.weight'), 'h.1.mlp.c_fc.lora_B.weight is missing'),
    (lambda x: x.update({'base_model.model.lm_head.lora_A.weight': np.ones([4, 32])}), 'must be missing'),
    (lambda x: x.update({f'{ROOT}h.2.attn.c_attn.lora_A.weight': np.ones([4, 32])}), 'h.2.attn.* missing'),
    (lambda x: x.update({name: x[name].T.copy() for name in x}), 'but must be F32'),
    (lambda x: x.update({name: x[name].astype(np.float64) for name in x}), r'is F64'),
    (lambda x: [x.pop(name) for name in [*x] if 'c_fc' in name or 'attn.c_proj' in name], 'can be one of'),
    (lambda x: [x.pop(name) for name in [*x][1:]], 'adapts nothing|is missing')])
def test_other_tensors_are_refused(home, folder, tmp_path, change, message):
    path = folder / 'adapter_model.safetensors'
    tensors = dict(safetensors.numpy.load_file(path))
    change(tensors)
    safetensors.numpy.save_file(tensors, path)
    assert re.search(message, refusal(home, folder, tmp_path))


def test_a_pickle_and_another_rank_are_refused(home, folder, tmp_path):
    path = folder / 'adapter_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'r': 40}))
    assert 'at most n_embd, 32, not 40' in refusal(home, folder, tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), 'r': 5}))
    assert 'but must be F32 [5, ' in refusal(home, folder, tmp_path)
    os.rename(folder / 'adapter_model.safetensors', folder / 'adapter_model.bin')
    assert str(folder) in refusal(home, folder, tmp_path)


def test_all_weights_are_no_adapter(home, tmp_path):
    with pytest.raises(InputError, match=r'model\.ckpt has all weights and no adapter; use to_hf'):
        convert.to_peft('toy', str(tmp_path / 'out'), models_dir=f'{home[0]}/models')
    assert os.listdir(tmp_path) == []
