import errno
import functools
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import toy

import checkpoint
import generator
import hugging_face
import likelihood
import model
import paths
import saved_model
from errors import InputError


def silent(line):
    pass


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A model directory, its sizes and its weights."""
    directory = tmp_path_factory.mktemp('models') / 'toy'
    return str(directory), *toy.write_model(directory)


@pytest.fixture
def graph(made):
    """A session with a model and an optimizer that has slots; all variables hold zeros."""
    _, hp, _ = made
    with toy.session() as s:
        loss = tf.add_n([tf.reduce_sum(w) for w in model.weights(hp).values()])
        s.update = tf.train.AdamOptimizer(0.1).minimize(loss)
        s.run([v.assign(tf.zeros_like(v)) for v in tf.global_variables()])
        yield s


def values(session, variables=None):
    return {v.op.name: session.run(v) for v in variables or checkpoint.model_variables()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


def a_run(made, tmp_path):
    return checkpoint.Run(str(tmp_path / 'run'), made[0])


def test_a_run_begins_with_the_model(graph, made, tmp_path):
    assert a_run(made, tmp_path).restore(graph, 'latest', silent) == {'step': 0}
    assert_same(values(graph), made[2])


def test_a_save_restores_everything(graph, made, tmp_path):
    run = a_run(made, tmp_path)
    run.restore(graph, 'latest', silent)
    for _ in range(3):
        graph.run(graph.update)
    everything = values(graph, tf.global_variables())
    assert any('Adam' in name and value.any() for name, value in everything.items())
    run.save(graph, {'step': 3, 'position': 2**70})
    graph.run([v.assign(tf.ones_like(v)) for v in tf.global_variables()])
    assert a_run(made, tmp_path).restore(graph, 'latest', silent) == {'step': 3, 'position': 2**70}
    assert_same(values(graph, tf.global_variables()), everything)


def test_a_run_directory_is_what_other_code_bases_expect(graph, made, tmp_path):
    run = a_run(made, tmp_path)
    run.restore(graph, 'latest', silent)
    run.save(graph, {'step': 7})
    assert sorted(os.listdir(run.directory)) == [
        'checkpoint', 'counter', 'encoder.json', 'hparams.json', 'model-7.data-00000-of-00001', 'model-7.index',
        'model-7.meta', 'training-7.data-00000-of-00001', 'training-7.index', 'training-7.json', 'vocab.bpe']
    assert pathlib.Path(run.directory, 'counter').read_text() == '7\n'
    latest = tf.train.latest_checkpoint(run.directory)
    assert latest == f'{run.directory}/model-7'
    assert dict(tf.train.list_variables(latest)) == {
        f'model/{name}': shape for name, shape in model.weight_shapes(made[1]).items()}
    reader = tf.train.load_checkpoint(latest)
    assert_same({name: reader.get_tensor(name) for name in made[2]}, made[2])


def test_the_last_five_stay_and_only_the_newest_has_a_training_state(graph, made, tmp_path):
    run = a_run(made, tmp_path)
    for step in range(1, 8):
        run.save(graph, {'step': step})
        if step == 4:
            run = a_run(made, tmp_path)  # another process goes on
            run.restore(graph, 'latest', silent)
    names = os.listdir(run.directory)
    assert sorted(name for name in names if name.endswith('.index')) == [
        *(f'model-{step}.index' for step in range(3, 8)), 'training-7.index']
    state = tf.train.get_checkpoint_state(run.directory)
    assert [os.path.basename(path) for path in state.all_model_checkpoint_paths] == [f'model-{i}' for i in range(3, 8)]


def test_a_checkpoint_of_the_original_with_optimizer_slots_is_used(graph, made, tmp_path):
    directory = tmp_path / 'run'
    directory.mkdir()
    with toy.session() as s:
        for name, value in made[2].items():
            tf.get_variable(name, initializer=value * 2)
            tf.get_variable(f'{name}/Adam', initializer=value)
        s.run(tf.global_variables_initializer())
        tf.train.Saver().save(s, str(directory / 'model'), global_step=40)
    (directory / 'counter').write_text('41\n')
    lines = []
    assert a_run(made, tmp_path).restore(graph, 'latest', lines.append) == {'step': 40}
    assert_same(values(graph), {name: value * 2 for name, value in made[2].items()})
    assert 'no training state' in lines[-1]


def test_fresh_starts_at_zero_and_keeps_what_is_there_until_it_is_replaced(graph, made, tmp_path):
    run = a_run(made, tmp_path)
    run.save(graph, {'step': 9})
    assert a_run(made, tmp_path).restore(graph, 'fresh', silent) == {'step': 0}
    assert_same(values(graph), made[2])
    assert os.path.exists(f'{run.directory}/model-9.index')
    assert checkpoint.latest(run.directory) == f'{run.directory}/model-0'


@pytest.mark.parametrize('form', ['{0}', '{0}/model-9', '{0}/model-9.index', '{0}/model-9.data-00000-of-00001'])
def test_restore_from_takes_a_directory_a_checkpoint_or_one_of_its_files(graph, made, tmp_path, form):
    old = checkpoint.Run(str(tmp_path / 'old'), made[0])
    old.save(graph, {'step': 9, 'position': 5})
    assert a_run(made, tmp_path).restore(graph, form.format(old.directory), silent) == {'step': 9, 'position': 5}


def test_a_restored_path_that_is_not_there_is_named(graph, made, tmp_path):
    with pytest.raises(InputError, match=r'no checkpoint .*/model-8: there is no .*/model-8\.index'):
        a_run(made, tmp_path).restore(graph, str(tmp_path / 'model-8'), silent)
    with pytest.raises(InputError, match='holds no file named checkpoint'):
        a_run(made, tmp_path).restore(graph, str(tmp_path), silent)


def test_another_optimizer_starts_anew_and_says_so(graph, made, tmp_path):
    run = a_run(made, tmp_path)
    run.save(graph, {'step': 1})
    with toy.session() as s:
        model.weights(made[1])
        tf.get_variable('other', [2])
        s.run(tf.global_variables_initializer())
        lines = []
        assert a_run(made, tmp_path).restore(s, 'latest', lines.append) == {'step': 1}
    assert 'The optimizer is not the one' in lines[-1]


def test_a_moved_directory_loads(made, tmp_path):
    moved = tmp_path / 'moved'
    shutil.copytree(made[0], moved)
    (moved / 'checkpoint').write_text('model_checkpoint_path: "/somewhere/else/model.ckpt"\n')
    assert checkpoint.find(str(moved)) == str(moved / 'model.ckpt')
    (moved / 'checkpoint').write_text('model_checkpoint_path: "/somewhere/else/model-3"\n')
    with pytest.raises(InputError, match=r'names /somewhere/else/model-3, but there is no .*/moved/model-3\.index'):
        checkpoint.find(str(moved))
    (moved / 'checkpoint').write_text('rubbish')
    with pytest.raises(InputError, match='does not name a checkpoint'):
        checkpoint.find(str(moved))


def test_a_checkpoint_file_leads_nowhere_else(made, tmp_path):
    for name in ('elsewhere', 'toy', 'toy/below'):
        shutil.copytree(made[0], tmp_path / name)
    at = tmp_path / 'toy'
    for name in (tmp_path / 'elsewhere/model.ckpt', '../elsewhere/model.ckpt', 'below/model.ckpt', './model.ckpt'):
        (at / 'checkpoint').write_text(f'model_checkpoint_path: "{name}"\n')
        assert checkpoint.latest(str(at)) == str(at / 'model.ckpt')
    os.unlink(at / 'model.ckpt.index')
    for name in (str(tmp_path / 'elsewhere/model.ckpt'), '../elsewhere/model.ckpt', 'below/../../elsewhere/model.ckpt'):
        (at / 'checkpoint').write_text(f'model_checkpoint_path: "{name}"\n')
        with pytest.raises(InputError, match='no other folder is looked into'):
            checkpoint.latest(str(at))
    (at / 'checkpoint').write_text('model_checkpoint_path: "below/model.ckpt"\n')
    assert checkpoint.latest(str(at)) == str(at / 'below/model.ckpt')


@pytest.mark.parametrize('change', [
    lambda text: text.replace('"position": 52', '"position": 53'), lambda text: text.replace('crc32', 'crc33'),
    lambda text: text.replace('"step": 7', '"step": 8'), lambda text: text[:-1], lambda text: '', lambda text: '[]',
    lambda text: '{}', lambda text: '{"step": "7"}', lambda text: '{"step": -1}', lambda text: '[' * 10**5])
def test_a_damaged_training_state_is_refused(graph, made, tmp_path, change):
    run = a_run(made, tmp_path)
    run.save(graph, {'step': 7, 'position': 52, 'loss': float('nan'), 'average': [0.1, 1e-300]})
    path = pathlib.Path(run.directory, 'training-7.json')
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=r'training-7\.json is damaged .*; remove it to go on with the weights alone'):
        a_run(made, tmp_path).restore(graph, 'latest', silent)
    path.unlink()
    assert a_run(made, tmp_path).restore(graph, 'latest', silent) == {'step': 7}


def test_a_training_state_of_an_earlier_version_is_read(graph, made, tmp_path):
    run = a_run(made, tmp_path)
    run.save(graph, {'step': 7})
    pathlib.Path(run.directory, 'training-7.json').write_text('{"step": 7, "position": 3}')
    assert a_run(made, tmp_path).restore(graph, 'latest', silent) == {'step': 7, 'position': 3}


def test_where_a_run_begins_is_checked_without_a_graph(graph, made, tmp_path):
    other = made[1].__class__(**{**made[1].values(), 'n_layer': 1000})
    run = a_run(made, tmp_path)
    check = functools.partial(checkpoint.check_start, run.directory, made[0])
    check('latest', made[1])
    with pytest.raises(InputError, match='has no variable model/h2/'):
        check('latest', other)
    run.save(graph, {'step': 1})
    for restore_from in ('latest', 'fresh', f'{run.directory}/model-1'):
        check(restore_from, made[1])
        with pytest.raises(InputError, match=r'model-1 has no' if restore_from != 'fresh' else r'model\.ckpt has no'):
            check(restore_from, other)


@pytest.mark.parametrize('sizes, message', [
    ({'n_embd': 64}, r"model/wpe has shape \[32, 32\], but hparams.json makes it \[32, 64\]"),
    ({'n_layer': 3}, 'has no variable model/h2/ln_1/g'),
    ({'n_layer': 1}, r'model\.ckpt has model/h1, too; its model has more layers than hparams\.json says'),
])
def test_a_checkpoint_of_other_sizes_is_refused_and_nothing_is_loaded(made, sizes, message):
    with toy.session() as s:
        model.weights(made[1].__class__(**{**made[1].values(), **sizes}))
        s.run(tf.global_variables_initializer())
        before = values(s)
        with pytest.raises(InputError, match=message):
            checkpoint.restore(s, checkpoint.find(made[0]), checkpoint.model_variables())
        assert_same(values(s), before)


@pytest.mark.parametrize('begin', [
    lambda at: generator.load('toy', at), lambda at: likelihood.Likelihood('toy', at),
    lambda at: saved_model.write(f'{at}/out', f'{at}/toy'), lambda at: hugging_face.write(f'{at}/out', f'{at}/toy')])
@pytest.mark.parametrize('sizes', [{'n_layer': 1000}, {'n_embd': 8192, 'n_layer': 900}, {'n_vocab': 2**31 - 1}])
def test_sizes_of_another_model_are_refused_before_its_graph_is_built(made, tmp_path, monkeypatch, begin, sizes):
    shutil.copytree(made[0], tmp_path / 'toy')
    (tmp_path / 'toy' / 'hparams.json').write_text(json.dumps({**made[1].values(), **sizes}))
    monkeypatch.setattr(tf, 'Session', None)
    monkeypatch.setattr(tf, 'get_variable', None)
    with pytest.raises(InputError, match=r'toy/model\.ckpt'):
        begin(str(tmp_path))


def damage_flip(path):
    data = bytearray(pathlib.Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    pathlib.Path(path).write_bytes(data)


@pytest.mark.parametrize('suffix, damage', [
    ('data-00000-of-00001', damage_flip), ('index', lambda path: os.truncate(path, 100)),
    ('data-00000-of-00001', lambda path: os.truncate(path, 1000)), ('data-00000-of-00001', os.unlink),
    ('index', lambda path: pathlib.Path(path).write_bytes(b'<html>not found</html>' * 50)),
])
def test_damaged_checkpoints_are_one_line(graph, made, tmp_path, suffix, damage):
    shutil.copytree(made[0], tmp_path / 'toy')
    damage(str(tmp_path / 'toy' / f'model.ckpt.{suffix}'))
    with pytest.raises(InputError, match=r'toy/model\.ckpt cannot be read, use another checkpoint') as error:
        checkpoint.restore(graph, checkpoint.find(str(tmp_path / 'toy')), checkpoint.model_variables())
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('moment', ['state_saver', 'model_saver', 'commit'])
def test_a_save_that_fails_leaves_the_last_one_whole(graph, made, tmp_path, monkeypatch, moment):
    run = a_run(made, tmp_path)
    run.restore(graph, 'latest', silent)
    run.save(graph, {'step': 1})
    expected = values(graph, tf.global_variables())

    def fail(*arguments, **more):
        raise OSError(28, 'No space left on device')

    graph.run(graph.update)
    target = run if moment == 'commit' else getattr(run, moment)
    monkeypatch.setattr(target, 'commit' if moment == 'commit' else 'save', fail)
    with pytest.raises(checkpoint.NotSaved, match=r'run/model-2 could not be saved \(No space left'):
        run.save(graph, {'step': 2})
    assert not [name for name in os.listdir(run.directory) if '-2.' in name]
    assert a_run(made, tmp_path).restore(graph, 'latest', silent) == {'step': 1}
    assert_same(values(graph, tf.global_variables()), expected)


def test_the_model_files_beside_a_run_are_those_of_its_model(graph, made, tmp_path):
    run = a_run(made, tmp_path)
    run.save(graph, {'step': 1})
    pathlib.Path(run.directory, 'hparams.json').write_text('{"of": "another model"}')
    run.save(graph, {'step': 2})
    for name in ('hparams.json', 'encoder.json', 'vocab.bpe'):
        assert pathlib.Path(run.directory, name).read_bytes() == pathlib.Path(made[0], name).read_bytes()


def test_remains_of_a_save_that_was_killed_are_removed(graph, made, tmp_path):
    run = a_run(made, tmp_path)
    run.save(graph, {'step': 1})
    remains = ['model-2.data-00000-of-00001.tempstate123', 'counter.99.tmp']
    for name in remains:
        pathlib.Path(run.directory, name).touch()
    run.save(graph, {'step': 3})
    assert not set(remains) & set(os.listdir(run.directory))


class Killed(BaseException):
    """In the place of SIGKILL: nothing that would clear up catches it."""


@pytest.mark.parametrize('moment', ['commit', 'clear_up'])
def test_checkpoints_that_a_killed_save_began_or_was_to_remove_are_removed(graph, made, tmp_path, monkeypatch, moment):
    run = a_run(made, tmp_path)
    for step in range(1, 6):
        run.save(graph, {'step': step})
    method = getattr(checkpoint.Run, moment)

    def killed(self, *arguments):
        if moment == 'commit' or os.path.exists(f'{run.directory}/model-6.index'):
            raise Killed
        method(self, *arguments)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint.Run, moment, killed)
        run.save(graph, {'step': 6})
    assert os.path.exists(f'{run.directory}/model-1.index') and os.path.exists(f'{run.directory}/model-6.index')
    assert os.path.exists(f'{run.directory}/saving')
    a_run(made, tmp_path).restore(graph, 'latest', silent)
    kept = range(1, 6) if moment == 'commit' else range(2, 7)
    assert sorted(name for name in os.listdir(run.directory) if name.endswith('.index')) == [
        *(f'model-{step}.index' for step in kept), f'training-{kept[-1]}.index']
    assert not os.path.exists(f'{run.directory}/saving')


def test_checkpoints_that_nothing_names_any_more_stay(graph, made, tmp_path):
    run = a_run(made, tmp_path)
    run.save(graph, {'step': 9})
    a_run(made, tmp_path).restore(graph, 'fresh', silent)
    pathlib.Path(run.directory, 'saving').write_text('model-4\n')
    run = a_run(made, tmp_path)
    run.restore(graph, 'latest', silent)
    run.save(graph, {'step': 1})
    assert os.path.exists(f'{run.directory}/model-9.index') and os.path.exists(f'{run.directory}/training-9.json')


@pytest.mark.parametrize('find', [
    lambda run, graph: checkpoint.choose(run.directory, toy.hparams(), 'model-best'),
    lambda run, graph: run.restore(graph, 'latest', silent), lambda run, graph: run.save(graph, {'step': 2}),
    lambda run, graph: run.save_best(graph)])
def test_the_best_weights_are_never_of_two_saves(graph, made, tmp_path, monkeypatch, find):
    """Killed between the data of new ones and their index: whoever looks for them next finds them whole."""
    run = a_run(made, tmp_path)
    run.restore(graph, 'latest', silent)
    run.save_best(graph)
    graph.run(graph.update)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, 'finish', lambda prefix: raise_(Killed))
        run.save_best(graph)
    with pytest.raises(tf.errors.OpError, match='Checksum does not match'):
        stored(run.best)
    new = values(graph)
    find(run, graph)
    assert_same(stored(run.best), new)
    assert not any('model-best-new' in name for name in os.listdir(run.directory))


def stored(prefix):
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def raise_(error):
    raise error


@pytest.mark.parametrize('number', [*paths.REMEDIES, errno.EIO])
def test_what_tensorflow_cannot_write_is_told_with_the_remedy_that_fits(number):
    with pytest.raises(OSError) as raised, checkpoint.writing('run/model-1'):
        raise tf.errors.UnknownError(None, None, f'run/model-1.tempstate; {os.strerror(number)}\n\t [[save]]')
    assert raised.value.errno == number
    told = str(checkpoint.not_saved('run/model-1', raised.value))
    assert told.endswith(f'the last: {paths.remedy(raised.value)}')
