import contextlib
import errno
import functools
import json
import os
import pathlib
import shutil
import threading

import pytest
import runs
import tensorflow.compat.v1 as tf
import toy

import model
from errors import InputError
from evaluation import likelihood
from generation import generator
from storage import checkpoint, run_folder, run_state
from storage.run_state import TrainState

pytestmark = pytest.mark.slow


def test_a_run_begins_with_the_model(graph, toy_model, tmp_path):
    assert runs.a_run(toy_model, tmp_path).restore(graph, 'latest', runs.silent) == TrainState(0)
    runs.assert_same(runs.values(graph), toy_model[2])


def test_a_save_restores_everything(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    run.restore(graph, 'latest', runs.silent)
    for _ in range(3):
        graph.run(graph.update)
    everything = runs.values(graph, tf.global_variables())
    assert any('Adam' in name and value.any() for name, value in everything.items())
    run.save(graph, TrainState(3, position=2**40))
    graph.run([v.assign(tf.ones_like(v)) for v in tf.global_variables()])
    assert runs.a_run(toy_model, tmp_path).restore(graph, 'latest', runs.silent) == TrainState(
        3, position=2**40
    )
    runs.assert_same(runs.values(graph, tf.global_variables()), everything)


def test_a_run_directory_is_what_other_code_bases_expect(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    run.restore(graph, 'latest', runs.silent)
    run.save(graph, TrainState(7))
    assert sorted(os.listdir(run.folder)) == [
        'checkpoint',
        'counter',
        'encoder.json',
        'hparams.json',
        'model-7.data-00000-of-00001',
        'model-7.index',
        'model-7.meta',
        'training-7.data-00000-of-00001',
        'training-7.index',
        'training-7.json',
        'vocab.bpe',
    ]
    assert pathlib.Path(run.folder, 'counter').read_text() == '7\n'
    latest = tf.train.latest_checkpoint(run.folder)
    assert latest == f'{run.folder}/model-7'
    assert dict(tf.train.list_variables(latest)) == {
        f'model/{name}': shape for name, shape in model.weight_shapes(toy_model[1]).items()}
    reader = tf.train.load_checkpoint(latest)
    runs.assert_same({name: reader.get_tensor(name) for name in toy_model[2]}, toy_model[2])


def test_the_last_five_stay_and_only_the_newest_has_a_training_state(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    for step in range(1, 8):
        run.save(graph, TrainState(step))
        if step == 4:
            run = runs.a_run(toy_model, tmp_path)  # another process goes on
            run.restore(graph, 'latest', runs.silent)
    names = os.listdir(run.folder)
    assert sorted(name for name in names if name.endswith('.index')) == [
        *(f'model-{step}.index' for step in range(3, 8)), 'training-7.index']
    state = tf.train.get_checkpoint_state(run.folder)
    assert [os.path.basename(path) for path in state.all_model_checkpoint_paths] == [
        f'model-{i}' for i in range(3, 8)
    ]


def test_a_checkpoint_of_the_original_with_optimizer_slots_is_used(graph, toy_model, tmp_path):
    directory = tmp_path / 'run'
    directory.mkdir()
    with toy.session() as s:
        for name, value in toy_model[2].items():
            tf.get_variable(name, initializer=value * 2)
            tf.get_variable(f'{name}/Adam', initializer=value)
        s.run(tf.global_variables_initializer())
        tf.train.Saver().save(s, str(directory / 'model'), global_step=40)
    (directory / 'counter').write_text('41\n')
    lines = []
    assert runs.a_run(toy_model, tmp_path).restore(graph, 'latest', lines.append) == TrainState(40)
    runs.assert_same(runs.values(graph), {name: value * 2 for name, value in toy_model[2].items()})
    assert 'no training state' in lines[-1]


def test_fresh_starts_at_zero_and_keeps_what_is_there(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    run.save(graph, TrainState(9))
    assert runs.a_run(toy_model, tmp_path).restore(graph, 'fresh', runs.silent) == TrainState(0)
    runs.assert_same(runs.values(graph), toy_model[2])
    assert checkpoint.latest(run.folder) == f'{run.folder}/model-0'
    assert checkpoint.latest(f'{run.folder}/left-9') == f'{run.folder}/left-9/model-9'


@pytest.mark.parametrize(
    'form', ['{0}', '{0}/model-9', '{0}/model-9.index', '{0}/model-9.data-00000-of-00001']
)
def test_restore_from_takes_a_directory_a_checkpoint_or_one_of_its_files(graph, toy_model, tmp_path, form):
    old = runs.new_run(toy_model, tmp_path / 'old')
    old.save(graph, TrainState(9, position=5))
    state = runs.a_run(toy_model, tmp_path).restore(graph, form.format(old.folder), runs.silent)
    assert state == TrainState(9, position=5)


def test_a_restored_path_that_is_not_there_is_named(graph, toy_model, tmp_path):
    with pytest.raises(InputError, match=r'no checkpoint .*/model-8: there is no .*/model-8\.index'):
        runs.a_run(toy_model, tmp_path).restore(graph, str(tmp_path / 'model-8'), runs.silent)
    with pytest.raises(InputError, match='holds no file named checkpoint'):
        runs.a_run(toy_model, tmp_path).restore(graph, str(tmp_path), runs.silent)


def test_another_optimizer_starts_anew_and_says_so(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    run.save(graph, TrainState(1))
    with toy.session() as s:
        model.weights(toy_model[1])
        tf.get_variable('other', [2])
        s.run(tf.global_variables_initializer())
        lines = []
        assert runs.a_run(toy_model, tmp_path).restore(s, 'latest', lines.append) == TrainState(1)
    assert 'The optimizer is not the one' in lines[-1]


def test_a_save_does_not_make_a_folder_that_was_moved(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    run.restore(graph, 'latest', runs.silent)
    os.rename(run.folder, f'{run.folder}-moved')
    for save in (lambda: run.save(graph, TrainState(1)), lambda: run.save_best(graph, 1, 2.0)):
        with pytest.raises(run_folder.NotSaved, match=r'could not be saved \(No such file or directory\)'):
            save()
    assert not os.path.exists(run.folder)


@pytest.mark.parametrize(
    'change',
    [
        lambda text: text.replace('"position": 52', '"position": 53'),
        lambda text: text.replace('crc32', 'crc33'),
        lambda text: text.replace('"step": 7', '"step": 8'),
        lambda text: text[:-1],
        lambda text: '',
        lambda text: '[]',
        lambda text: '{}',
        lambda text: '{"step": "7"}',
        lambda text: '{"step": -1}',
        lambda text: '[' * 10**5,
    ],
)
def test_a_damaged_training_state_is_refused(graph, toy_model, tmp_path, change):
    run = runs.a_run(toy_model, tmp_path)
    run.save(graph, TrainState(7, position=52, loss=6.5, average=[0.1, 1e-300]))
    path = pathlib.Path(run.folder, 'training-7.json')
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=r'training-7\.json .*; remove it to go on with the weights alone'):
        runs.a_run(toy_model, tmp_path).restore(graph, 'latest', runs.silent)
    path.unlink()
    assert runs.a_run(toy_model, tmp_path).restore(graph, 'latest', runs.silent) == TrainState(7)


def test_a_training_state_without_its_tensors_is_refused(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    run.save(graph, TrainState(7))
    os.unlink(f'{run.folder}/training-7.index')
    with pytest.raises(InputError, match=r'training-7 cannot be read'):
        runs.a_run(toy_model, tmp_path).restore(graph, 'latest', runs.silent)


def test_a_training_state_of_an_earlier_version_is_read(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    run.save(graph, TrainState(7))
    pathlib.Path(run.folder, 'training-7.json').write_text('{"step": 7, "position": 3}')
    assert runs.a_run(toy_model, tmp_path).restore(graph, 'latest', runs.silent) == TrainState(7, position=3)


def test_where_a_run_begins_is_checked_without_a_graph(graph, toy_model, tmp_path):
    other = toy_model[1].__class__(**{**toy_model[1].values(), 'n_layer': 1000})
    run = runs.a_run(toy_model, tmp_path)
    check = functools.partial(run_folder.check_start, run.folder, toy_model[0])
    check('latest', toy_model[1])
    with pytest.raises(InputError, match=r'model/h2/\S+ is missing'):
        check('latest', other)
    run.save(graph, TrainState(1))
    messages = {
        'latest': 'model-1 was trained from a model of other sizes or .* than .*, or another --run_name',
        f'{run.folder}/model-1': 'model-1 was trained from',
        'fresh': r'model\.ckpt: .* is missing',
    }
    for restore_from, message in messages.items():
        check(restore_from, toy_model[1])
        with pytest.raises(InputError, match=message):
            check(restore_from, other)
    os.unlink(f'{run.folder}/hparams.json')  # as other code bases have it
    with pytest.raises(InputError, match=r'model-1: \S+ is missing'):
        check('latest', other)


@pytest.mark.parametrize('moment', ['state_saver', 'model_saver', 'commit'])
def test_a_save_that_fails_leaves_the_last_one_whole(graph, toy_model, tmp_path, monkeypatch, moment):
    run = runs.a_run(toy_model, tmp_path)
    run.restore(graph, 'latest', runs.silent)
    run.save(graph, TrainState(1))
    expected = runs.values(graph, tf.global_variables())

    def fail(*arguments, **more):
        raise OSError(28, 'No space left on device')

    graph.run(graph.update)
    target = checkpoint if moment == 'commit' else getattr(run, moment)
    monkeypatch.setattr(target, 'commit' if moment == 'commit' else 'save', fail)
    with pytest.raises(run_folder.NotSaved, match=r'run/model-2 could not be saved \(No space left'):
        run.save(graph, TrainState(2))
    assert not [name for name in os.listdir(run.folder) if '-2.' in name]
    assert runs.a_run(toy_model, tmp_path).restore(graph, 'latest', runs.silent) == TrainState(1)
    runs.assert_same(runs.values(graph, tf.global_variables()), expected)


def test_the_model_files_beside_a_run_are_those_of_its_model(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    run.save(graph, TrainState(1))
    pathlib.Path(run.folder, 'hparams.json').write_text('{"of": "another model"}')
    run.save(graph, TrainState(2))
    for name in ('hparams.json', 'encoder.json', 'vocab.bpe'):
        assert pathlib.Path(run.folder, name).read_bytes() == pathlib.Path(toy_model[0], name).read_bytes()


def test_remains_of_what_was_killed_are_removed_and_nothing_else(graph, toy_model, tmp_path):
    """The names are those that inotify showed of a save."""
    run = runs.a_run(toy_model, tmp_path)
    run.save(graph, TrainState(1))
    remains = [
        'model-2.data-00000-of-00001.tempstate13408955334330569106',
        'model-2.index.tempstate53660237943948',
        'model-2.meta.tmp898b7ad741bb441ab3f4beec5abdc1a8',
        'training-2.index.tempstate1',
        'counter.99.tmp',
        'training-2.json.14987.tmp',
        'saving.1.tmp',
        'checkpoint.1.tmp',
        'vocab.bpe.1.tmp',
        'model-best-2.data-00000-of-00001.tempstate1',
        'model-best.json.7.tmp',
        'dataset-0123abcd.npz.7.tmp',
    ]
    mine = ['notes.99.tmp', 'thesis.tempstate1', 'model-2.txt', 'model-1.txt', 'model-x.index.tempstate1',
            'counter.tmp', 'model-2.meta.tmp', 'left-2.abcdefgh', '.left-2.notes', 'model-best-notes.index',
            'best-new.index']
    folders = ['notes_temp', 'model-2_temp', 'x.tempstate1', 'counter.1.tmp', 'left-1']
    (tmp_path / 'run/.left-4-2.a1b2c3_d/left-4-2').mkdir(parents=True)
    for name in [*remains, *mine]:
        pathlib.Path(run.folder, name).touch()
    for name in folders:
        pathlib.Path(run.folder, name).mkdir()
        pathlib.Path(run.folder, name, 'chapter').write_text('mine')
    for step in range(3, 9):
        run.save(graph, TrainState(step))
        run.save_best(graph, step, 1 / step)
    run.restore(graph, 'latest', runs.silent)
    names = os.listdir(run.folder)
    assert not {*remains, '.left-4-2.a1b2c3_d', 'model-1.index'} & set(names)
    assert {*mine, *folders} <= set(names)
    assert all(pathlib.Path(run.folder, name, 'chapter').read_text() == 'mine' for name in folders)


FOREIGN_NAMES = [
    '../../elsewhere/thesis',
    '{}/elsewhere/thesis',
    'thesis',
    '../run/model-1',
    'below/../model-1',
    'model-1.x',
    'model-',
    'model-\u0661',
    'model-1 ',
    'training-1',
    '..',
    '',
    '\udcff',
    'model-1\0',
]


@pytest.mark.parametrize('file', ['saving', 'checkpoint'])
def test_no_name_in_a_run_folder_removes_another_file(graph, toy_model, tmp_path, file):
    run = runs.new_run(toy_model, tmp_path / 'runs/run')
    run.save(graph, TrainState(1))
    names = [name.format(tmp_path) for name in FOREIGN_NAMES]
    mine = [
        tmp_path / 'elsewhere/thesis.index',
        tmp_path / 'elsewhere/thesis.tex',
        tmp_path / 'runs/run/thesis.index',
        tmp_path / 'runs/run/model-1.x.index',
        tmp_path / 'runs/run/model-1.txt',
    ]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text('mine')
    with open(f'{run.folder}/{file}', 'ab') as opened:
        opened.write(''.join(f'{name}\n' if file == 'saving' else f'all_model_checkpoint_paths: "{name}"\n'
                             for name in names).encode(errors='surrogateescape'))
    run = run_folder.Run(run.folder, toy_model[0])
    run.restore(graph, 'latest', runs.silent)
    assert os.path.exists(f'{run.folder}/model-1.index')
    for step in range(2, 8):
        run.save(graph, TrainState(step))
    assert not os.path.exists(f'{run.folder}/model-1.index')
    assert all(path.read_text() == 'mine' for path in mine)


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda path: os.symlink('/dev/zero', path)])
def test_a_file_saving_that_is_none_is_told(graph, toy_model, tmp_path, make):
    run = runs.a_run(toy_model, tmp_path)
    run.save(graph, TrainState(1))
    make(run.pending)
    with pytest.raises((InputError, OSError), match='run/saving'):  # either of which cli.run tells in a line
        runs.a_run(toy_model, tmp_path).restore(graph, 'latest', runs.silent)


def test_a_damaged_list_of_checkpoints_does_not_remove_the_newest(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    for step in (1, 2):
        run.save(graph, TrainState(step))
    path = pathlib.Path(run.folder, 'checkpoint')
    path.write_text(path.read_text().replace('all_model', 'all-model'))
    pathlib.Path(run.pending).write_text('model-2\n')  # as after a kill just behind the commit
    assert runs.a_run(toy_model, tmp_path).restore(graph, 'latest', runs.silent).step == 2


class Killed(BaseException):
    """In the place of SIGKILL: nothing that would clear up catches it."""


@pytest.mark.parametrize('moment', ['commit', 'clear_up'])
def test_checkpoints_that_a_killed_save_began_or_was_to_remove_are_removed(
    graph, toy_model, tmp_path, monkeypatch, moment
):
    run = runs.a_run(toy_model, tmp_path)
    for step in range(1, 6):
        run.save(graph, TrainState(step))
    owner = checkpoint if moment == 'commit' else run_folder.Run
    method = getattr(owner, moment)

    def killed(*arguments):
        if os.path.exists(f'{run.folder}/model-6.index'):
            raise Killed
        method(*arguments)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, moment, killed)
        run.save(graph, TrainState(6))
    assert os.path.exists(f'{run.folder}/model-1.index') and os.path.exists(
        f'{run.folder}/model-6.index'
    )
    assert os.path.exists(f'{run.folder}/saving')
    runs.a_run(toy_model, tmp_path).restore(graph, 'latest', runs.silent)
    kept = range(1, 6) if moment == 'commit' else range(2, 7)
    assert sorted(name for name in os.listdir(run.folder) if name.endswith('.index')) == [
        *(f'model-{step}.index' for step in kept), f'training-{kept[-1]}.index']
    assert not os.path.exists(f'{run.folder}/saving')


# The best weights


def train_to(graph, run, step, **state):
    """An update, so that all weights are new, and a save. Returns all variables."""
    graph.run(graph.update)
    run.save(graph, TrainState(step, **state))
    return runs.values(graph, tf.global_variables())


def best_of(run):
    return runs.stored(checkpoint.files_prefix(checkpoint.resolve_path(run.best)))


@pytest.mark.parametrize('moment', ['weights', 'pointer', 'former'])
def test_the_best_weights_are_whole_whenever_a_save_is_killed(
    graph, toy_model, tmp_path, monkeypatch, moment
):
    run = runs.a_run(toy_model, tmp_path)
    run.restore(graph, 'latest', runs.silent)
    for step in (1, 2):
        graph.run(graph.update)
        run.save_best(graph, step, 3 - step)
    expected, save, replacing = runs.values(graph), run.model_saver.save, checkpoint.paths.replacing

    def killed_save(*arguments, **options):
        save(*arguments, **options)
        raise Killed

    def killed_replacing(path, *arguments):
        if path.endswith('model-best.json'):
            raise Killed
        return replacing(path, *arguments)
    graph.run(graph.update)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if moment == 'weights':
            patch.setattr(run.model_saver, 'save', killed_save)
        elif moment == 'pointer':
            patch.setattr(checkpoint.paths, 'replacing', killed_replacing)
        else:
            patch.setattr(run, 'remove_old_best', lambda: runs.raise_(Killed))
        run.save_best(graph, 3, 0.5)
    runs.assert_same(best_of(run), expected)
    run.save_best(graph, 3, 0.5)
    runs.assert_same(best_of(run), runs.values(graph))
    assert sorted(
        name for name in os.listdir(run.folder) if 'best' in name and name.endswith('.index')
    ) == ['model-best-2.index', 'model-best-3.index']  # the one before stays for who is reading it
    assert json.loads(pathlib.Path(run.folder, 'model-best.json').read_text())['loss'] == 0.5


def test_the_best_weights_are_read_while_they_are_replaced(graph, toy_model, tmp_path):
    """100 saves, between two of which a read ends: so it may begin before one and end after it, but not go
    past two."""
    run, variables = runs.a_run(toy_model, tmp_path), checkpoint.model_variables()
    number = tf.placeholder(tf.float32, [])
    fill = [v.assign(tf.fill(v.shape, number)) for v in variables]
    graph.run(fill, {number: 0})
    run.save_best(graph, 0, 1.0)
    read_once, ended, failures = threading.Event(), threading.Event(), []

    def read():
        while not ended.is_set():
            try:
                *_, best = checkpoint.find(toy_model[0], checkpoint_name=f'{run.folder}/model-best')
                with checkpoint.readable(best) as reader:
                    numbers = {number for v in variables for number in reader.get_tensor(v.op.name).flat}
                assert len(numbers) == 1
            except Exception as error:
                failures.append(error)
            read_once.set()
    thread = threading.Thread(target=read)
    thread.start()
    try:
        for step in range(1, 101):
            read_once.clear()
            assert read_once.wait(60)
            graph.run(fill, {number: step})
            run.save_best(graph, step, 1 / (step + 1))
    finally:
        ended.set()
        thread.join()
    assert not failures
    assert len(os.listdir(run.folder)) == 3 + 1 + 2 * 2  # of the model, model-best.json, the last two


def test_what_was_found_as_the_best_is_still_there_after_the_next(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    run.save_best(graph, 1, 2.0)
    prefix, expected = checkpoint.files_prefix(checkpoint.resolve_path(run.best)), runs.values(graph)
    graph.run(graph.update)
    run.save_best(graph, 2, 1.0)
    runs.assert_same(runs.stored(prefix), expected)


def test_a_best_of_an_earlier_version_is_read_and_then_replaced(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    run.save(graph, TrainState(5, best=[4.0, 3], validations_since_best=1))
    run.model_saver.save(graph, run.best, write_state=False, write_meta_graph=False)
    expected = runs.values(graph)
    runs.assert_same(best_of(run), expected)
    state = runs.a_run(toy_model, tmp_path).restore(graph, 'latest', runs.silent)
    assert (state.best, state.validations_since_best) == ([4.0, 3], 1)
    assert runs.a_run(toy_model, tmp_path).restore(graph, 'fresh', runs.silent).best == [4.0, 3]
    assert runs.a_run(toy_model, tmp_path).restore(graph, 'latest', runs.silent).best == [4.0, 3]
    for step in (6, 7):
        run.save_best(graph, step, 1 / step)
        assert (f'{run.best}.index' in map(str, tmp_path.glob('run/*'))) == (step == 6)


def snapshot(folder):
    """All files below a folder: their bytes and times."""
    return {str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in [pathlib.Path(folder), *pathlib.Path(folder).rglob('*')]}


def test_what_reads_changes_nothing(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    run.save(graph, TrainState(1))
    run.save_best(graph, 1, 2.0)
    for name in ('best', 'best-new', 'model-best-new'):
        run.model_saver.save(graph, f'{run.folder}/{name}', write_state=False)
    os.rename(
        f'{run.folder}/best-new.data-00000-of-00001', f'{run.folder}/best-new.data-00000-of-00002'
    )
    for name in ('saving', 'model-2.index.tempstate1', 'counter.9.tmp', 'model-2.index'):
        pathlib.Path(run.folder, name).write_text('model-2\n')
    os.unlink(f'{run.folder}/model-best-new.data-00000-of-00001')
    before = snapshot(tmp_path)
    for name in ('run', 'run/best', 'run/model-best', 'run/model-best.json', 'run/model-best-1.index'):
        checkpoint.resolve_path(f'{tmp_path}/{name}')
        checkpoint.find(toy_model[0], checkpoint_name=f'{tmp_path}/{name}')
    run_folder.check_start(run.folder, toy_model[0], 'latest', toy_model[1])
    generator.load('run', str(tmp_path), checkpoint_name='model-best')
    likelihood.Likelihood('run', str(tmp_path), checkpoint_name='best')
    assert snapshot(tmp_path) == before


def test_a_damaged_pointer_to_the_best_is_refused(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    run.save_best(graph, 1, 2.0)
    path = pathlib.Path(run.folder, 'model-best.json')
    state = run_state.check_crc(json.loads(path.read_text()))
    odd = {'name': ('../../thesis', 'model-best', 'model-1', 'model-best-1/x', 'model-best-1\n', 1, None),
           'loss': (None, float('nan'), 'x', True), 'step': (-1, 10**30, None)}
    contents = [
        json.dumps(run_state.with_crc({**state, name: value})).encode() for name in odd for value in odd[name]
    ]
    for content in (*contents, b'\xff', b'', b'[]', b'{}', json.dumps({'crc32': 0, **state}).encode()):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r'model-best\.json (is damaged|is not JSON|must hold an object).*; remove it'
        ):
            checkpoint.resolve_path(run.best)


# Going back


@pytest.fixture
def trained(graph, toy_model, tmp_path):
    """A run of four updates, the second of which is the best, and all variables after each."""
    run = runs.a_run(toy_model, tmp_path)
    run.restore(graph, 'latest', runs.silent)
    expected = {}
    for step in range(1, 5):
        expected[step] = train_to(graph, run, step, position=10 * step, seed=5)
        run.save_best(graph, step, [4.0, 3.0, 3.5, 3.2][step - 1])
    return run, expected


def weights_in(variables):
    return {
        name: value for name, value in variables.items() if name.startswith('model/') and 'Adam' not in name
    }


@pytest.mark.parametrize('restore_from, step, left', [
    ('{}/model-3', 3, [3, 4]), ('{}/model-best', 2, [2, 3, 4]), ('fresh', 0, [1, 2, 3, 4])])
def test_going_back_loses_nothing(graph, toy_model, trained, restore_from, step, left):
    run, expected = trained
    lines = []
    state = run_folder.Run(run.folder, toy_model[0]).restore(
        graph, restore_from.format(run.folder), lines.append
    )
    assert state == TrainState(step, best=[3.0, 2], validations_since_best=0)
    runs.assert_same(runs.values(graph), weights_in(expected[step]) if step else toy_model[2])
    folder = f'{run.folder}/left-4'
    assert f'Left behind in {folder}' in lines[-1] and all(f'model-{n}' in lines[-1] for n in left)
    assert not any('\n' in line for line in lines)
    assert run_folder.named_steps(folder) == left
    assert run_folder.named_steps(run.folder) == [*(n for n in range(1, 5) if n not in left), step]
    run = run_folder.Run(run.folder, toy_model[0])
    assert run.restore(graph, 'latest', runs.silent).best == [3.0, 2]  # kept by what has gone back
    before = snapshot(folder)
    run.save_best(graph, step + 1, 32.9)
    runs.assert_same(best_of(run), weights_in(expected[2]))
    for later in range(step + 1, 8):
        train_to(graph, run, later)
    assert snapshot(folder) == before
    for n in left:
        runs.assert_same(runs.stored(f'{folder}/model-{n}'), weights_in(expected[n]))
    checkpoint.find('left-4', run.folder)  # it is a model directory
    state = run_folder.Run(run.folder, toy_model[0]).restore(graph, folder, lines.append)
    assert (state.step, state.position) == (4, 40)
    runs.assert_same(runs.values(graph, tf.global_variables()), expected[4])


def test_the_best_of_a_step_replaces_that_of_the_same_step_before_the_run_went_back(graph, trained, tmp_path):
    run, expected = trained
    prefix = checkpoint.files_prefix(run.best)
    graph.run(graph.update)
    run.save_best(graph, 2, 1.0)
    runs.assert_same(best_of(run), runs.values(graph))
    runs.assert_same(runs.stored(prefix), weights_in(expected[2]))
    assert run_folder.step_of(checkpoint.files_prefix(run.best)) == 2


def test_the_best_is_kept_where_the_training_state_is_removed(graph, toy_model, trained):
    run, _ = trained
    os.unlink(f'{run.folder}/training-4.json')
    assert run_folder.Run(run.folder, toy_model[0]).restore(graph, 'latest', runs.silent).best == [3.0, 2]


def test_a_later_checkpoint_from_elsewhere_leaves_the_last_behind(graph, toy_model, trained, tmp_path):
    run, expected = trained
    other = runs.new_run(toy_model, tmp_path / 'other')
    train_to(graph, other, 9, best=[0.1, 1], validations_since_best=7)
    state = run_folder.Run(run.folder, toy_model[0]).restore(graph, other.folder, runs.silent)
    assert (state.step, state.best, state.validations_since_best) == (9, [3.0, 2], 0)
    assert (
        runs.new_run(toy_model, tmp_path / 'new').restore(graph, f'{run.folder}/left-4', runs.silent).step
        == 4
    )
    runs.assert_same(runs.values(graph, tf.global_variables()), expected[4])


def test_a_save_overwrites_no_checkpoint_that_nothing_names(graph, toy_model, trained):
    run, _ = trained
    shutil.copyfile(f'{run.folder}/checkpoint', f'{run.folder}/before')
    train_to(graph, run, 5)
    os.replace(f'{run.folder}/before', f'{run.folder}/checkpoint')
    stale = runs.stored(f'{run.folder}/model-5')
    lines = []
    run = run_folder.Run(run.folder, toy_model[0])
    run.restore(graph, 'latest', lines.append)
    train_to(graph, run, 5)
    runs.assert_same(runs.stored(f'{run.folder}/left-5/model-5'), stale)
    assert 'Left behind' in lines[-1]


def test_where_files_have_one_name_only_they_are_copied(graph, toy_model, trained, monkeypatch):
    run, expected = trained
    monkeypatch.setattr(os, 'link', lambda *_: runs.raise_(OSError(errno.EPERM, 'Operation not permitted')))
    run_folder.Run(run.folder, toy_model[0]).restore(graph, 'fresh', runs.silent)
    for step in range(1, 5):
        runs.assert_same(runs.stored(f'{run.folder}/left-4/model-{step}'), weights_in(expected[step]))


def test_going_back_may_be_killed_at_any_file_operation(graph, toy_model, trained, tmp_path, monkeypatch):
    """Each checkpoint and the last training state is then in the run or in a folder left-4; and it works
    again."""
    run, expected = trained
    monkeypatch.setattr(os, 'fsync', lambda _: None)
    checkpoint.restore(graph, f'{run.folder}/model-3', checkpoint.model_variables())
    kill, dead = 0, True
    while dead:
        kill += 1
        directory = shutil.copytree(run.folder, tmp_path / f'killed-{kill}')
        going_back, operations, dead = (
            run_folder.Run(str(directory), toy_model[0]),
            iter(range(1, kill)),
            False,
        )

        def until_killed(function):
            def call(*arguments, **options):
                nonlocal dead
                dead = dead or next(operations, None) is None  # noqa: B023
                return runs.raise_(Killed) if dead else function(*arguments, **options)
            return call
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            for name in ('replace', 'rename', 'unlink', 'link', 'mkdir', 'rmdir'):
                patch.setattr(os, name, until_killed(getattr(os, name)))
            patch.setattr(tf.train.Saver, 'save', until_killed(tf.train.Saver.save))
            going_back.save(graph, TrainState(3, best=[3.0, 2]), left=4)
        whole = {home: run_folder.named_steps(str(home)) for home in (directory, *directory.glob('left-4*'))}
        for home, steps in whole.items():
            for step in steps:
                assert weights_files(f'{home}/model-{step}') == weights_files(f'{run.folder}/model-{step}')
        assert set().union(*whole.values()) == {1, 2, 3, 4}
        if kill % 5 == 0 or not dead:
            home = next(home for home, steps in whole.items() if steps[-1] == 4)
            runs.new_run(toy_model, tmp_path / 'new').restore(graph, str(home), runs.silent)
            runs.assert_same(runs.values(graph, tf.global_variables()), expected[4])
            state = run_folder.Run(str(directory), toy_model[0]).restore(
                graph, f'{directory}/model-3', runs.silent
            )
            assert (state.step, state.best) == (3, [3.0, 2])
        assert (
            not [name for name in os.listdir(directory) if 'tmp' in name or name.startswith('.')] or kill % 5
        )
        shutil.rmtree(directory)
    assert kill > 25


def weights_files(prefix):
    return [pathlib.Path(f'{prefix}.{kind}').read_bytes() for kind in ('index', 'data-00000-of-00001')]


# The training state


def test_a_number_in_a_name_that_no_run_reaches_is_none():
    assert run_folder.step_of('run/model-1000') == 1000
    assert run_folder.step_of(f'run/model-{10**30}') == 0
