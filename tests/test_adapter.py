"""Adapters (LoRA): what is read of one with its base, and how it is trained."""
import json
import os
import pathlib
import re
import shutil

import numpy as np
import numpy_gpt2
import pytest
import runs
import tensorflow.compat.v1 as tf
import toy

import memory_saving_gradients
import model
from errors import InputError
from evaluation.likelihood import Likelihood
from formats import hugging_face, saved_model
from generation import generator
from inspection.inspector import Inspector
from storage import checkpoint, new_model, run_state
from training import trainer
from training.graph import Graph

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('usual_signals')]

LORA = {'lora_rank': 4, 'lora_alpha': 12.0, 'lora_targets': 'all', 'learning_rate': 1e-2}
SHAPES = {  # of a toy's layer, for rank 4
    'attn/c_attn': ([32, 4], [4, 96]), 'attn/c_proj': ([32, 4], [4, 32]),
    'mlp/c_fc': ([32, 4], [4, 128]), 'mlp/c_proj': ([128, 4], [4, 32])}


def directory(made):
    return os.path.join(made.checkpoint_dir, made.run_name)


@pytest.fixture
def trained(flags):
    """The flags of a run with an adapter, after 8 updates."""
    made = flags(**LORA)
    trainer.train(made)
    return made


def merged_by_hand(made, prefix=None):
    """{name: array} of the run's weights, as the paper says: W + alpha / rank A B."""
    own = runs.stored(prefix or f'{directory(made)}/model-8')
    return merge(made, {name: value.astype(float) for name, value in own.items()})


def merge(made, own):
    values = runs.stored(f'{made.models_dir}/toy/model.ckpt')
    for name in own:
        if name.endswith('lora_a'):
            scope = name.removesuffix('/lora_a')
            product = np.einsum('ir,ro->io', own[name], own[f'{scope}/lora_b'])
            values[f'{scope}/w'] = values[f'{scope}/w'] + made.lora_alpha / made.lora_rank * product
    return values


def description(made):
    with open(f'{directory(made)}/adapter.json') as file:
        return run_state.check_crc(json.load(file))


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}


def read(prefix, models_dir='models'):
    with checkpoint.readable(prefix, models_dir) as reader:
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


# What is saved

@pytest.mark.parametrize('targets', run_state.TARGETS)
def test_a_checkpoint_holds_the_adapter_alone(flags, targets):
    made = flags(**{**LORA, 'lora_targets': targets}, steps=1)
    trainer.train(made)
    products = {'attn': ['attn/c_attn', 'attn/c_proj'], 'mlp': ['mlp/c_fc', 'mlp/c_proj'], 'all': [*SHAPES],
                'c_attn': ['attn/c_attn'],
                'c_attn+c_proj': ['attn/c_attn', 'attn/c_proj', 'mlp/c_proj']}[targets]
    expected = {f'model/h{layer}/{product}/lora_{letter}': shape for layer in range(2) for product in products
                for letter, shape in zip('ab', SHAPES[product], strict=True)}
    own = runs.stored(f'{directory(made)}/model-1')
    assert {name: list(value.shape) for name, value in own.items()} == expected
    size = os.path.getsize(f'{directory(made)}/model-1.data-00000-of-00001')
    assert size == sum(value.nbytes for value in own.values())
    state = runs.stored(f'{directory(made)}/training-1')
    assert {name.rpartition('/Adam')[0] for name in state if 'Adam' in name} == {*expected}
    assert sorted(name for name in os.listdir(directory(made)) if not name.startswith('events')) == [
        'adapter.json', 'checkpoint', 'counter', 'encoder.json', 'hparams.json', 'metrics.jsonl',
        'model-1.data-00000-of-00001', 'model-1.index', 'training-1.data-00000-of-00001', 'training-1.index',
        'training-1.json', 'vocab.bpe']
    assert description(made) == {
        'rank': 4, 'alpha': 12.0, 'targets': targets, 'base': 'toy',
        'fingerprint': checkpoint.fingerprint(f'{made.models_dir}/toy/model.ckpt')}


def held(made):
    """{name: array} of the adapter's and of the base's variables at the end of a run."""
    values = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, 'save_last', lambda self: values.extend(
            runs.values(self.session, variables) for variables in (self.run.weights, self.graph.base)))
        trainer.train(made)
    return values


def test_it_begins_as_in_peft(flags):
    """A uniform within 1 / sqrt(n_in), of the seed and no two alike; B zeros, with the loss of the base."""
    one, same, other = (held(flags(**LORA, run_name='none', steps=0, seed=seed))[0] for seed in (3, 3, 5))
    runs.assert_same(one, same)
    a = {name: value for name, value in one.items() if name.endswith('lora_a')}
    for value in a.values():
        bound = 1 / np.sqrt(len(value))
        assert bound * 0.9 < np.abs(value).max() <= bound and abs(value.mean()) < bound / 4
        assert not any(np.array_equal(value, array) for array in other.values())
    assert len({value.tobytes() for value in a.values()}) == len(a)
    assert not any(value.any() for name, value in one.items() if name.endswith('lora_b'))
    for options in ({'run_name': 'all'}, LORA):
        trainer.train(flags(**options, steps=1))
    assert runs.events(flags(run_name='all'), 'loss')[1] == runs.events(flags(), 'loss')[1]


# What is trained

def make_graph(made, hp):
    own = checkpoint.new_adapter(f'{made.models_dir}/toy', hp, made.lora_rank, made.lora_alpha,
                                 made.lora_targets, directory(made), made.models_dir)
    return Graph(made, hp, None, adapter=own)


@pytest.mark.parametrize('options', [{}, {'precision': 'bfloat16', 'memory_saving_gradients': True,
                                          'accumulate_gradients': 2}, {'optimizer': 'adafactor'}])
def test_the_base_is_in_memory_once_and_has_no_gradients(flags, options):
    made, hp = flags(**LORA, **options), toy.hparams(n_ctx=24)  # no activation has a matrix's shape
    with tf.Graph().as_default():
        graph = make_graph(made, hp)
        base = {v.op.name: v for v in graph.base}
        assert base.keys() == {f'model/{name}' for name in model.weight_shapes(hp)}
        assert not {*base} & {v.op.name for v in tf.global_variables() + tf.local_variables()}
        for name, v in base.items():
            rounded = 'precision' in options and ('attn' in name or 'mlp' in name)
            assert v.dtype.base_dtype == (tf.bfloat16 if rounded else tf.float32), name
        matrices = {(32, 96), (32, 128), (128, 32), (557, 32)}
        fetched = [getattr(x, 'op', x) for x in (graph.apply, graph.update) if x is not None]
        kinds = [op.type for op in memory_saving_gradients.ancestors(fetched)
                 for x in op.outputs if x.shape.rank and tuple(x.shape[-2:].as_list()) in matrices
                 and op.type not in ('ReadVariableOp', 'Identity', 'Squeeze')]  # which copy nothing
    assert kinds == (['Cast'] if 'precision' in options else [])  # of wte, for the output


def test_an_update_moves_against_finite_differences_of_the_merged_model(flags):
    """In NumPy and float64, along the update itself, which SGD makes the gradient."""
    made = flags(**{**LORA, 'learning_rate': 1e-4}, optimizer='sgd', steps=1, batch_size=1)
    windows = []
    with pytest.MonkeyPatch.context() as patch:
        batch = trainer.Data.next_batch
        patch.setattr(trainer.Data, 'next_batch', lambda self: windows.append(batch(self)) or windows[-1])
        trainer.train(flags(**LORA, steps=4, run_name='first'))  # B is not 0
        first = os.path.join(made.checkpoint_dir, 'first', 'model-4')
        windows.clear()
        trainer.train(flags(**{**vars(made), 'steps': 5, 'restore_from': first}))
    start, end = runs.stored(first), runs.stored(f'{directory(made)}/model-5')
    gradient = {name: (start[name].astype(float) - end[name]) / 1e-4 for name in start}
    norm = np.sqrt(sum((value ** 2).sum() for value in gradient.values()))

    def loss(distance):
        moved = {name: start[name] + distance * gradient[name] / norm for name in start}
        return numpy_gpt2.mean_loss(merge(made, moved), windows[0][1], toy.TOY['n_head'])
    np.testing.assert_allclose((loss(1e-4) - loss(-1e-4)) / 2e-4, norm, rtol=5e-3)
    np.testing.assert_allclose(runs.events(made, 'loss')[5], loss(0), rtol=1e-5)


def test_the_base_stays_and_the_loss_falls(flags):
    made = flags(**LORA, steps=40, batch_size=4)
    before = bytes_of(f'{made.models_dir}/toy')
    runs.assert_same(held(made)[1], runs.stored(f'{made.models_dir}/toy/model.ckpt'))
    assert bytes_of(f'{made.models_dir}/toy') == before
    losses = runs.events(made, 'loss')
    assert losses[40] < losses[1] - 0.5


def test_in_bfloat16_it_learns_the_same(flags):
    for precision in ('float32', 'bfloat16'):
        trainer.train(flags(**LORA, run_name=precision, precision=precision, steps=30, sample_every=30,
                            sample_length=4))
    plain, rounded = ([*runs.events(flags(run_name=name), 'loss').values()]
                      for name in ('float32', 'bfloat16'))
    np.testing.assert_allclose(rounded, plain, rtol=0.01)
    assert plain != rounded


@pytest.mark.parametrize('change', [
    {'lora_rank': 3}, {'lora_rank': 0}, {'lora_alpha': 8.0}, {'lora_targets': 'attn'},
    {'restore_from': 'fresh', 'lora_rank': 2},
    {'restore_from': '{}/model-8', 'lora_rank': 0, 'run_name': 'new'},
    {'restore_from': '{}', 'lora_rank': 2, 'run_name': 'new'}])
def test_another_adapter_is_refused_and_nothing_is_lost(flags, trained, change):
    before = runs.final(trained)
    if 'restore_from' in change:
        change = {**change, 'restore_from': change['restore_from'].format(directory(trained))}
    told = 'has an adapter of toy .* --lora_rank 4 --lora_alpha 12.0 --lora_targets all, not (all|an adapter)'
    with pytest.raises(InputError, match=rf'run1(/model-8)? {told}.*; give the same flags'):
        trainer.train(flags(**{**LORA, **change}))
    assert runs.final(trained) == before and os.listdir(trained.checkpoint_dir) == ['run1']
    trainer.train(flags(**LORA, steps=9))


@pytest.mark.parametrize('restore_from', ['latest', 'fresh', 'run1/model-8'])
def test_an_adapter_does_not_go_on_from_all_weights(flags, restore_from):
    trainer.train(flags())
    with pytest.raises(InputError, match=r'run1(/model-8)? has all weights, not an adapter of toy'):
        path = restore_from.replace('run1', directory(flags()))
        trainer.train(flags(**LORA, restore_from=path, run_name='new' if '/' in path else 'run1'))
    assert trainer.train(flags(steps=9)) == 9


def test_what_a_start_left_before_its_first_save_stops_no_other_run(flags, trained):
    os.makedirs(directory(flags(run_name='new')))
    shutil.copy(f'{directory(trained)}/adapter.json', directory(flags(run_name='new')))
    for steps in (1, 2):
        trainer.train(flags(run_name='new', steps=steps))
    assert not os.path.exists(f'{directory(flags(run_name="new"))}/adapter.json')


def test_the_best_of_a_run_that_was_killed_before_a_save_keeps_its_adapter(flags, trained):
    made = flags(**LORA, run_name='killed', val_every=1, steps=1)
    trainer.train(made)
    for name in ('checkpoint', 'model-1.index'):
        os.unlink(f'{directory(made)}/{name}')
    with pytest.raises(InputError, match=r'model-best has an adapter of toy .*, not all weights'):
        trainer.train(flags(run_name='killed', steps=1))
    trainer.train(flags(**LORA, run_name='killed', restore_from=f'{directory(made)}/model-best', steps=2))


def test_a_run_is_a_base_and_a_damaged_namesake_is_passed_over(flags):
    trainer.train(flags(run_name='base', steps=1))
    made = flags(**LORA, model_name=directory(flags(run_name='base')), steps=1)
    trainer.train(made)
    before = read(f'{directory(made)}/model-1', made.models_dir)
    trainer.train(flags(**LORA, model_name=made.model_name, restore_from='fresh', steps=1))
    os.makedirs(f'{made.models_dir}/base')
    with open(f'{made.models_dir}/base/checkpoint', 'w') as file:
        file.write('model_checkpoint_path: "nowhere"\n')
    runs.assert_same(read(f'{directory(made)}/left-1/model-1', made.models_dir), before)
    shutil.rmtree(f'{made.models_dir}/base')


def test_going_back_leaves_a_run_with_an_adapter(flags, trained):
    last = runs.final(trained)
    trainer.train(flags(**{**LORA, 'learning_rate': 1e-3}, restore_from='fresh', steps=8))
    left = flags(**LORA, checkpoint_dir=directory(trained), run_name='left-8')
    assert runs.final(left) == last
    assert_close(read(f'{directory(left)}/model-8', trained.models_dir),
                 merged_by_hand(trained, f'{directory(left)}/model-8'))


# What is read

def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_matrix_is_the_bases_and_the_product(trained):
    merged = read(f'{directory(trained)}/model-8', trained.models_dir)
    assert_close(merged, merged_by_hand(trained))
    base = runs.stored(f'{trained.models_dir}/toy/model.ckpt')
    changed = {name for name in merged if not np.array_equal(merged[name], base[name])}
    assert changed == {f'model/h{layer}/{product}/w' for layer in range(2) for product in SHAPES}


def test_whatever_reads_a_run_reads_it_merged(trained, tmp_path):
    """Compared with a model of the weights that were merged here."""
    folder, models = directory(trained), trained.models_dir
    merged = checkpoint.find(folder, models)
    assert merged[-1] == f'{folder}/model-8'
    toy.write_model(tmp_path / 'hand', toy.hparams(), merged_by_hand(trained))
    new_model_folder, hf = tmp_path / 'merged', tmp_path / 'hf'
    for write, target in ((new_model.merge, new_model_folder), (hugging_face.write, hf)):
        target.mkdir()
        write(str(target), *merged, models)
    assert_close(runs.stored(f'{new_model_folder}/model.ckpt'), merged_by_hand(trained))
    hand = str(tmp_path / 'hand')
    texts = [generator.load(path, models).complete([[5, 6, 7]], [[1]], length=12)[0].text
             for path in (folder, hand, str(new_model_folder))]
    assert len(set(texts)) == 1
    scores = [next(Likelihood(path, models).score([(np.arange(5, 30), 20)]))[1] for path in (folder, hand)]
    np.testing.assert_allclose(*scores, rtol=1e-5)
    logits = [Inspector(path, models).run([[5, 6, 7]], lambda x: x['logits']) for path in (folder, hand)]
    np.testing.assert_allclose(*logits, atol=1e-5)
    saved_model.write(str(tmp_path / 'served'), *merged, models)
    served = runs.stored(f'{tmp_path}/served/variables/variables')
    served = {name: value for name, value in served.items() if name.startswith('model/')}
    assert_close(served, merged_by_hand(trained))


def test_the_loss_of_training_is_that_of_the_merged_model(flags, trained):
    made = flags(**LORA, steps=9, val_every=9, val_batch_count=2)
    windows, batches = [], trainer.Data.val_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Data, 'val_batches', lambda self: (
            windows.extend(tokens) or (inputs, tokens) for inputs, tokens in batches(self)))
        trainer.train(made)
    weights = merged_by_hand(made, f'{directory(made)}/model-9')
    expected = numpy_gpt2.mean_loss(weights, windows[-4:], toy.TOY['n_head'])
    np.testing.assert_allclose(runs.events(made, 'val_loss')[9], expected, rtol=1e-5)
    best = read(f'{directory(made)}/model-best', made.models_dir)
    runs.assert_same(best, read(f'{directory(made)}/model-9', made.models_dir))


def test_all_weights_can_be_trained_from_a_merged_adapter(flags, trained):
    made = flags(run_name='next', model_name=directory(trained), steps=1, learning_rate=1e-12)
    trainer.train(made)
    assert_close(runs.stored(f'{directory(made)}/model-1'), merged_by_hand(trained))
    assert not os.path.exists(f'{directory(made)}/adapter.json')


# Where the base is

def test_the_base_is_found_wherever_it_was_moved_to(flags, trained, tmp_path):
    prefix, expected = f'{directory(trained)}/model-8', merged_by_hand(trained)
    copies = [tmp_path / 'others' / 'toy', tmp_path / 'checkpoint' / 'toy']  # the second is beside the run
    for copy in copies:
        shutil.copytree(f'{trained.models_dir}/toy', copy)
    toy.write_model(tmp_path / 'wrong' / 'toy', toy.hparams(), toy.weights(toy.hparams(), seed=1))
    for models_dir in ('others', 'wrong', 'nowhere'):
        assert_close(read(prefix, str(tmp_path / models_dir)), expected)
    shutil.rmtree(copies[1])
    for models_dir in ('wrong', 'nowhere'):
        places = f'{tmp_path}/{models_dir} or {tmp_path}/checkpoint or {tmp_path}'
        with pytest.raises(InputError, match=re.escape(
                f'{prefix} adapts toy, and none in {places} has the '
                'fingerprint ') + r'[0-9a-f]{16}; give the folder that has it as --models_dir'):
            read(prefix, str(tmp_path / models_dir))
    with pytest.raises(InputError, match='adapts toy'):
        trainer.train(flags(**LORA, model_name=f'{trained.models_dir}/toy', run_name='new',
                            models_dir=str(tmp_path / 'nowhere')))


def test_a_base_may_be_a_run_which_must_stay(flags):
    trainer.train(flags(run_name='base', steps=1))
    made = flags(**LORA, model_name=directory(flags(run_name='base')))
    trainer.train(made)
    read(f'{directory(made)}/model-8')
    trainer.train(flags(run_name='base', steps=2))
    with pytest.raises(InputError, match='adapts base, and none'):
        read(f'{directory(made)}/model-8')


def test_an_adapter_is_no_base(flags, trained):
    with pytest.raises(InputError, match=r'run1/model-8 is an adapter; make a model of it with src/convert'):
        trainer.train(flags(**LORA, model_name=directory(trained), run_name='new'))


def test_a_rank_above_that_of_the_matrices_is_refused(flags):
    with pytest.raises(InputError, match='the rank of an adapter must be at most n_embd, 32, not 33'):
        trainer.train(flags(**{**LORA, 'lora_rank': 33}))
    assert not os.path.exists(flags().checkpoint_dir)


# What is forged

@pytest.mark.parametrize('change, message', [
    ({'rank': 0}, '"rank" cannot be 0'), ({'rank': 2.0}, '"rank"'), ({'rank': '4'}, '"rank"'),
    ({'rank': None}, '"rank"'), ({'rank': 10**400}, '"rank"'), ({'rank': 10**9}, 'does not have the shapes'),
    ({'rank': 5}, 'does not have the shapes'), ({'alpha': 'x'}, '"alpha"'),
    ({'alpha': float('inf')}, '"alpha"'), ({'alpha': float('nan')}, '"alpha"'),
    ({'targets': 'attn'}, 'does not have the shapes'), ({'targets': 'head'}, '"targets"'),
    ({'targets': ['all']}, 'damaged'), ({'base': '../models/toy'}, 'is not a plain folder name'),
    ({'base': '/etc'}, 'is not a plain folder name'), ({'base': '..'}, 'is not a plain folder name'),
    ({'base': 'to*'}, r"has the character '\*'"), ({'base': 'a\nb'}, '"base"'),
    ({'base': 'x' * 256}, '"base"'), ({'base': 7}, '"base"'), ({'base': 'other'}, 'adapts other, and none'),
    ({'fingerprint': 'x'}, 'and none in .* has the fingerprint x'), ({'fingerprint': None}, '"fingerprint"'),
    ({'base': ...}, 'damaged')])
def test_a_forged_description_is_one_line(trained, change, message):
    path = f'{directory(trained)}/adapter.json'
    values = {**description(trained), **change}
    with open(path, 'w') as file:
        values = {name: value for name, value in values.items() if value is not ...}
        json.dump(run_state.with_crc(values), file)
    for load in (lambda: read(f'{directory(trained)}/model-8', trained.models_dir),
                 lambda: generator.load(directory(trained), trained.models_dir),
                 lambda: trainer.train(trained)):
        with pytest.raises(InputError, match=f'{message}|run1/model-8 has an adapter .*, not') as raised:
            load()
        assert '\n' not in str(raised.value) and len(str(raised.value)) < 1000
    assert runs.newest(directory(trained)) == 8


def test_an_adapter_without_its_description_is_refused(trained):
    os.unlink(f'{directory(trained)}/adapter.json')
    with pytest.raises(InputError, match=r'run1/model-8 is an adapter without .*adapter\.json; copy'):
        read(f'{directory(trained)}/model-8', trained.models_dir)


@pytest.mark.parametrize('at', ['base', 'adapter'])
def test_damage_is_told_of_the_file_that_has_it(trained, tmp_path, at):
    shutil.copytree(trained.models_dir, tmp_path / 'models')
    path = {'base': f'{tmp_path}/models/toy/model.ckpt', 'adapter': f'{directory(trained)}/model-8'}[at]
    with open(f'{path}.data-00000-of-00001', 'r+b') as file:
        file.seek(400)
        file.write(b'damage')
    with pytest.raises(InputError, match=f'^{path} cannot be read, use another checkpoint'):
        read(f'{directory(trained)}/model-8', str(tmp_path / 'models'))


def test_one_with_other_tensors_is_refused(trained, tmp_path):
    """Of another type, or of a rank that its own tensors have and the base has not."""
    own = run_state.read(f'{directory(trained)}/adapter.json', run_state.Adapter)
    for rank, dtype in ((4, np.float64), (64, np.float32)):
        folder = tmp_path / 'checkpoint' / f'{rank}'
        folder.mkdir()
        run_state.write(f'{folder}/adapter.json', run_state.Adapter(**{**vars(own), 'rank': rank}))
        shapes = run_state.Adapter(**{**vars(own), 'rank': rank}).shapes(model.weight_shapes(toy.hparams()))
        with toy.session() as s:
            for name, shape in shapes.items():
                tf.get_variable(f'model/{name}', initializer=np.zeros(shape, dtype))
            s.run(tf.global_variables_initializer())
            tf.train.Saver().save(s, f'{folder}/model-1')
        with pytest.raises(InputError, match=r'model-1 does not have the shapes of adapter\.json'):
            read(f'{folder}/model-1', trained.models_dir)
