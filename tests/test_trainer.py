import errno
import glob
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from unittest import mock

import numpy as np
import numpy_gpt2
import pytest
import runs
import tensorflow.compat.v1 as tf
import toy

from encoder import get_encoder
from errors import InputError
from fast import kernels
from storage import run_folder, run_state
from training import trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('usual_signals')]

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OPTIONS = [{}, {'accumulate_gradients': 2, 'noise': 0.2, 'memory_saving_gradients': True, 'val_every': 3},
           {'optimizer': 'adafactor', 'precision': 'bfloat16', 'schedule': 'constant', 'warmup_steps': 5},
           {'lora_rank': 4, 'lora_targets': 'all', 'val_every': 3, 'accumulate_gradients': 2},
           {'lora_rank': 2, 'precision': 'bfloat16', 'memory_saving_gradients': True,
            'optimizer': 'adafactor'}]


@pytest.mark.parametrize('worker, told', [
    (trainer.Worker(), ['Device: 0']), (runs.OneRank(1, 2), []), (trainer.Worker(0, 2, gpu=0), ['Device: 0']),
    (runs.OneRank(1, 2, gpu=3), ['Device of rank 1: 3'])])
def test_each_gpu_is_named_once_and_the_cpu_by_one_rank(flags, monkeypatch, capsys, worker, told):
    monkeypatch.setattr(trainer, 'device', str)
    trainer.train(flags(steps=0), worker)
    output = capsys.readouterr()
    assert re.findall('Device.*', output.err) == told and 'Device' not in output.out


@pytest.mark.parametrize('options', OPTIONS)
def test_a_run_that_stops_continues_as_one_that_does_not(flags, options, monkeypatch):
    if 'precision' in options:
        monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 0)  # kernels as larger models have them
    undisturbed = flags(run_name='whole', sample_every=4, **options)
    trainer.train(undisturbed)
    for steps in (3, 4, 8):  # each a new graph and session; sampling or not makes no difference either
        trainer.train(flags(run_name='parts', steps=steps, **options))
    assert runs.final(flags(run_name='parts')) == runs.final(undisturbed)
    assert runs.events(flags(run_name='parts'), 'loss') == runs.events(undisturbed, 'loss')
    assert sorted(runs.events(undisturbed, 'loss')) == list(range(1, 9))


def test_sgd_continues_too_and_trains_the_layers_alone(flags, world):
    options = {'optimizer': 'sgd', 'learning_rate': 0.1, 'only_train_transformer_layers': True}
    trainer.train(flags(run_name='whole', **options))
    trainer.train(flags(run_name='parts', steps=5, **options))
    trainer.train(flags(run_name='parts', **options))
    paths = [os.path.join(flags().checkpoint_dir, name) for name in ('whole', 'parts')]
    whole, parts, start = (tf.train.load_checkpoint(tf.train.latest_checkpoint(path))
                           for path in (*paths, str(world / 'models' / 'toy')))
    for name in whole.get_variable_to_shape_map():
        assert np.array_equal(whole.get_tensor(name), parts.get_tensor(name))
        assert np.array_equal(whole.get_tensor(name), start.get_tensor(name)) == ('/h' not in name)


@pytest.fixture
def room():
    """A function that bounds the bytes of a file that this process writes; None: not any more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(
        resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1])
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


TOO_SMALL = 50_000  # bytes: for weights, not for the other files


def test_training_goes_on_past_a_save_that_fails(flags, monkeypatch, room, capsys):
    options = {'save_every': 2, 'val_every': 4}
    scripted_validation(monkeypatch, [0, 0, 0, 4.0, 0, 0, 0, 5.0])
    trainer.train(flags(run_name='whole', **options))
    runs.at_step(monkeypatch, {3: lambda: room(TOO_SMALL), 5: lambda: room(None)})
    assert trainer.train(flags(**options)) == 8
    told = capsys.readouterr().err
    assert re.findall(r'run1/(\S+) could not be saved \(.*?\); the same command goes on', told) == [
        'model-best', 'model-4']
    assert told.count('permit larger files') == 2 and 'make room' not in told
    assert runs.final(flags()) == runs.final(flags(run_name='whole'))
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    assert sorted(name for name in os.listdir(directory) if name.endswith('.index')) == [
        'model-2.index', 'model-6.index', 'model-8.index', 'model-best-8.index', 'training-8.index']
    assert runs.weights_of(directory, 'model-best') == runs.weights_of(directory, 'model-8')


@pytest.mark.parametrize('end', ['steps', 'signal'])
def test_a_run_whose_last_save_fails_says_so_and_goes_on_from_the_one_before(flags, monkeypatch, room, end):
    trainer.train(flags(run_name='whole'))
    stop = {5: lambda: os.kill(os.getpid(), signal.SIGTERM)} if end == 'signal' else {}
    runs.at_step(monkeypatch, {4: lambda: room(TOO_SMALL), **stop})
    with pytest.raises(InputError, match=r'run1/model-\d could not be saved .* goes on from the last'):
        trainer.train(flags(save_every=3))
    assert runs.final(flags())[1]['step'] == 3
    room(None)
    monkeypatch.undo()
    trainer.train(flags())
    assert runs.final(flags()) == runs.final(flags(run_name='whole'))


def test_best_weights_that_are_lost_are_an_error_at_the_end(flags, monkeypatch, room):
    scripted_validation(monkeypatch, [4.0, 3.0, 3.5])
    save_best = run_folder.Run.save_best

    def without_room(self, *arguments):
        room(TOO_SMALL if os.path.exists(f'{self.best}.json') else None)
        try:
            save_best(self, *arguments)
        finally:
            room(None)
    monkeypatch.setattr(run_folder.Run, 'save_best', without_room)
    with pytest.raises(InputError, match=r'run1/model-best could not be saved'):
        trainer.train(flags(val_every=1, save_every=1, steps=3))
    assert runs.final(flags())[1]['step'] == 3
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    assert runs.weights_of(directory, 'model-best') == runs.weights_of(directory, 'model-1')


@pytest.mark.parametrize('number', [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize('flag', ['checkpoint_dir', 'samples_dir'])
def test_a_run_folder_that_cannot_be_written_is_told_at_the_start(flags, monkeypatch, flag, number):
    """As the system refuses it: as root, files could be made there."""
    folder = os.path.join(getattr(flags(), flag), 'run1')
    os.makedirs(folder)
    open_file = os.open

    def refuse(path, mode, *arguments, **options):
        if str(path).startswith(folder) and mode & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number), path)
        return open_file(path, mode, *arguments, **options)
    monkeypatch.setattr(os, 'open', refuse)
    monkeypatch.setattr(trainer, 'Graph', None)  # which is not come to
    told = f'--{flag}: no file can be written in {folder} .*; (mount|permit) .*, or give another --{flag}'
    with pytest.raises(InputError, match=told):
        trainer.train(flags(sample_every=1))


@pytest.mark.parametrize('flag', ['checkpoint_dir', 'samples_dir'])
def test_a_folder_below_a_file_is_told_at_the_start(flags, monkeypatch, tmp_path, flag):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(trainer, 'Graph', None)
    with pytest.raises(InputError, match=f'--{flag}: no file can be written in .*/file .*; move that file'):
        trainer.train(flags(sample_every=1, **{flag: str(tmp_path / 'file' / 'below')}))
    assert sorted(os.listdir(tmp_path)) == ['file']


def test_an_error_saves_first_and_is_not_hidden(flags, monkeypatch):
    trainer.train(flags(run_name='whole'))
    draw = trainer.Data.next_batch

    def fails_once(self):
        if self.position == 10:  # halfway between two updates of one
            raise ZeroDivisionError('from within')
        return draw(self)
    monkeypatch.setattr(trainer.Data, 'next_batch', fails_once)
    with pytest.raises(ZeroDivisionError, match='from within'):
        trainer.train(flags())
    assert runs.final(flags())[1]['step'] == 5
    monkeypatch.undo()
    trainer.train(flags())
    assert runs.final(flags()) == runs.final(flags(run_name='whole'))


def test_kill_9_at_random_moments_changes_nothing(flags, world):
    """Real processes. What is killed has no chance to save: each start goes on from the last --save_every."""
    options = {'steps': 60, 'save_every': 4, 'val_every': 10, 'val_batch_count': 2}
    trainer.train(flags(run_name='whole', **options))
    command = runs.command_of(flags(**options))
    directory = os.path.join(flags().checkpoint_dir, flags().run_name)
    rng = random.Random(7)
    for kill in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = 8 * (kill + 1)  # so that each start has gone on from the one before
        while process.poll() is None and runs.newest(directory) < wanted:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.wait()
        assert wanted <= runs.newest(directory) <= 60
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert runs.final(flags()) == runs.final(flags(run_name='whole'))
    assert runs.events(flags(), 'loss') == runs.events(flags(run_name='whole'), 'loss')
    assert 'WARNING' not in done.stderr and 'oneDNN' not in done.stderr  # TensorFlow's own noise


def test_validation_is_that_of_the_reference_on_the_tokens_held_out(flags, world, capsys):
    made = flags(steps=1, val_every=1, val_batch_count=2, learning_rate=1e-9)
    windows = []
    batches = trainer.Data.val_batches

    def seen(self):
        for inputs, tokens in batches(self):
            windows.extend(tokens)
            yield inputs, tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Data, 'val_batches', seen)
        trainer.train(made)
    shown = float(re.search(r'validation loss = ([\d.]+)', capsys.readouterr().out)[1])
    weights = tf.train.load_checkpoint(str(world / 'models' / 'toy'))
    expected = numpy_gpt2.mean_loss(
        {name: weights.get_tensor(name) for name in weights.get_variable_to_shape_map()},
        windows[-4:],
        toy.TOY['n_head'],
    )  # the last two batches of two
    assert abs(shown - expected) < 1e-3
    assert abs(runs.events(made, 'val_loss')[1] - expected) < 1e-3


def scripted_validation(monkeypatch, losses):
    """Validation losses as listed, by step."""
    monkeypatch.setattr(trainer.Trainer, 'val_loss', lambda self: losses[self.state.step - 1])


def test_patience_stops_and_the_best_weights_are_kept(flags, monkeypatch, capsys):
    scripted_validation(monkeypatch, [5.0, 4.0, 4.5, 3.9, 3.9, 4.1, 3.0, 2.0])
    options = {'val_every': 1, 'patience': 2, 'save_every': 1}
    assert trainer.train(flags(run_name='whole', **options)) == 6
    assert 'No validation loss was below 3.9000 of step 4, kept as model-best' in capsys.readouterr().out
    for steps in (2, 3, 5, 8):
        trainer.train(flags(run_name='parts', **{**options, 'steps': steps}))
    assert runs.final(flags(run_name='parts')) == runs.final(flags(run_name='whole'))
    for name in ('whole', 'parts'):
        directory = os.path.join(flags().checkpoint_dir, name)
        assert runs.weights_of(directory, 'model-best') == runs.weights_of(directory, 'model-4')
    assert trainer.train(flags(run_name='whole', **options)) == 6  # the same command has nothing left to do


def test_a_best_checkpoint_is_restored_from_by_its_path(flags, monkeypatch):
    scripted_validation(monkeypatch, [5.0, 4.0, 4.5])
    trainer.train(flags(steps=3, val_every=1, save_every=1))
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    ends = []
    for name in ('best', '2'):  # neither has a training state beside it
        trainer.train(flags(run_name=name, steps=3, optimizer='sgd',
                            restore_from=os.path.join(directory, f'model-{name}')))
        ends.append(runs.weights_of(os.path.join(flags().checkpoint_dir, name), 'model-3'))
    assert ends[0] == ends[1]


def test_the_best_of_another_run_is_not_that_of_this_one(flags, monkeypatch, capsys):
    """It is not in this run's folder, so that nothing may be said to be kept there."""
    scripted_validation(monkeypatch, [1.0, 4.0, 4.5, 4.6])
    trainer.train(flags(steps=2, val_every=1))
    source = os.path.join(flags().checkpoint_dir, 'run1', 'model-2')
    trainer.train(
        flags(run_name='other', steps=4, val_every=1, save_every=1, patience=1, restore_from=source)
    )
    directory = os.path.join(flags().checkpoint_dir, 'other')
    assert 'below 4.5000 of step 3' in capsys.readouterr().out
    assert runs.weights_of(directory, 'model-best') == runs.weights_of(directory, 'model-3')


@pytest.mark.parametrize('restore_from, step', [('model-best', 2), ('model-1', 1), ('fresh', 0)])
def test_going_back_keeps_the_best(flags, monkeypatch, capsys, restore_from, step):
    """Whose loss no validation after it comes below; the lower one of the end then takes its place."""
    options = {'val_every': 1, 'save_every': 1}
    scripted_validation(monkeypatch, [4.0, 3.0, 3.5, 3.6])
    trainer.train(flags(steps=4, **options))
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    best, last = runs.weights_of(directory, 'model-best'), runs.final(flags())
    scripted_validation(monkeypatch, [32.9, 32.8, 32.7, 32.6, 2.9])
    path = restore_from if restore_from == 'fresh' else os.path.join(directory, restore_from)
    trainer.train(flags(steps=4, restore_from=path, learning_rate=0.01, **options))
    output = capsys.readouterr().out
    assert re.search(r'Left behind in \S+run1/left-4, from where --restore_from goes on: .*model-4\n', output)
    assert runs.weights_of(directory, 'model-best') == best
    assert runs.final(flags(checkpoint_dir=directory, run_name='left-4')) == last
    trainer.train(flags(steps=5, learning_rate=0.01, **options))  # another process
    assert runs.weights_of(directory, 'model-best') == runs.weights_of(directory, 'model-5') != best


@pytest.mark.parametrize('change', [
    {'step': 10**30}, {'position': 1.5}, {'position': 2**63}, {'seed': 'x'}, {'average': None}, {'best': 1.0},
    {'actions_done': 'x'}, {'validations_since_best': [1]}, {'average': [0, 0]},
    {'best': None, 'validations_since_best': 5}])
def test_an_odd_state_with_a_right_checksum_is_no_traceback(flags, change):
    options = {'val_every': 1, 'patience': 2, 'val_batch_count': 1}
    trainer.train(flags(steps=1, **options))
    path = os.path.join(flags().checkpoint_dir, 'run1', 'training-1.json')
    with open(path) as file:
        state = run_state.check_crc(json.load(file))
    with open(path, 'w') as file:
        json.dump(run_state.with_crc({**state, **change}), file)
    try:
        trainer.train(flags(steps=2, **options))
    except InputError as error:
        assert 'training-1.json is damaged' in str(error)
    else:
        assert change in ({'average': [0, 0]}, {'best': None, 'validations_since_best': 5})


def test_the_learning_rate_follows_the_schedule(flags):
    trainer.train(flags(warmup_steps=2, schedule='linear', learning_rate=0.006, steps=8))
    np.testing.assert_allclose(list(runs.events(flags(), 'learning_rate').values()),
                               [0.003, 0.006, 0.006, 0.005, 0.004, 0.003, 0.002, 0.001], rtol=1e-5)


def test_a_long_validation_shows_how_far_it_is(flags, monkeypatch, capsys):
    for every, expected in ((60, []), (-1, ['0 of 3', '1 of 3', '2 of 3'])):
        monkeypatch.setattr(trainer, 'PROGRESS_EVERY', every)
        trainer.train(flags(run_name=f'{every}', steps=1, val_every=1, val_batch_count=3))
        assert re.findall('Validation: (.*) batches done', capsys.readouterr().err) == expected


def test_a_loss_that_is_no_number_ends_training_and_spoils_no_checkpoint(flags):
    trainer.train(flags(steps=2))
    good = runs.final(flags())
    with pytest.raises(
        InputError, match=r'not finite after step \d+; the last save is kept: .* lower --learning_rate'
    ):
        trainer.train(flags(learning_rate=1e30, steps=50))
    assert runs.final(flags()) == good


@pytest.mark.parametrize('options', [{'save_every': 1}, {'steps': 1}, {'val_every': 1}])
def test_weights_that_an_update_spoils_are_not_saved(flags, options):
    """The loss is that of the weights before the update, and tells nothing of those after it."""
    with pytest.raises(
        InputError, match=r'not finite after step [01]; the last save .* lower --learning_rate'
    ):
        trainer.train(flags(optimizer='sgd', learning_rate=1e39, **options))
    assert not glob.glob(os.path.join(flags().checkpoint_dir, 'run1', '*model-*'))


def test_another_vocabulary_than_the_runs_is_refused(flags, world, tmp_path):
    trainer.train(flags(steps=1))
    shutil.copytree(world / 'models', tmp_path / 'models')
    path = tmp_path / 'models' / 'toy' / 'encoder.json'
    ids = json.loads(path.read_text())
    ids['a'], ids['b'] = ids['b'], ids['a']
    path.write_text(json.dumps(ids))
    with pytest.raises(
        InputError,
        match=r'run1/model-\d+ was trained from a model of other sizes or vocabulary than .*models/toy; give',
    ):
        trainer.train(flags(models_dir=str(tmp_path / 'models'), steps=2))
    assert trainer.train(flags(steps=2)) == 2


def test_the_runs_last_checkpoint_by_another_path_is_the_same_run(flags, monkeypatch):
    trainer.train(flags(steps=3, save_every=1))
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    monkeypatch.chdir(directory)
    trainer.train(flags(steps=4, restore_from=os.path.join('..', 'run1', 'model-3')))
    assert sorted(glob.glob('model-*.index')) == [f'model-{step}.index' for step in (1, 2, 3, 4)]
    with open('checkpoint') as file:
        assert file.read().count('all_model_checkpoint_paths') == 4


def test_a_window_of_one_token_is_refused(flags, tmp_path):
    toy.write_model(tmp_path / 'models' / 'toy', toy.hparams(n_ctx=1))
    with pytest.raises(InputError, match='n_ctx 1, too few to predict a token'):
        trainer.train(flags(models_dir=str(tmp_path / 'models')))


def test_an_update_without_memory_names_the_flags_that_help(flags, monkeypatch):
    def none(self):
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor')
    monkeypatch.setattr(trainer.Trainer, 'update', none)
    with pytest.raises(InputError, match='no memory is left for the update; lower --batch_size'):
        trainer.train(flags())


def test_fresh_starts_over(flags, world):
    trainer.train(flags(steps=6))
    once = runs.final(flags())
    trainer.train(flags(steps=6, restore_from='fresh'))
    assert runs.final(flags()) == once  # and not a continuation, which would have had nothing to do


def test_restore_from_a_checkpoint_goes_on_from_its_step(flags):
    trainer.train(flags(run_name='whole'))
    trainer.train(flags(run_name='first', steps=5))
    source = os.path.join(flags().checkpoint_dir, 'first', 'model-5.index')
    trainer.train(flags(run_name='second', restore_from=source))
    assert runs.final(flags(run_name='second')) == runs.final(flags(run_name='whole'))


def test_without_a_seed_the_run_keeps_its_own(flags, capsys):
    trainer.train(flags(steps=2, seed=None))
    seed = runs.final(flags())[1]['seed']
    trainer.train(flags(steps=4, seed=None))
    assert runs.final(flags())[1]['seed'] == seed
    trainer.train(flags(steps=5, seed=seed + 1))
    assert 'the order of the data starts anew' in capsys.readouterr().out
    assert runs.final(flags())[1]['position'] == 2


def test_a_run_has_its_models_special_tokens(flags, world, tmp_path, monkeypatch):
    shutil.copytree(world / 'models', tmp_path / 'models')
    model_dir = tmp_path / 'models' / 'toy'
    (model_dir / 'special_tokens.json').write_text('{"tokens": ["x"], "end": "x"}')
    contexts = []
    monkeypatch.setattr(trainer.generator.Generator, 'complete',
                        lambda self, rows, *_, **options: contexts.extend(rows) or [mock.Mock(text='')])
    made = flags(models_dir=str(tmp_path / 'models'), steps=1, sample_every=1)
    trainer.train(made)
    x, run = get_encoder('toy', str(world / 'models')).encoder['x'], get_encoder('run1', made.checkpoint_dir)
    assert (run.special, run.eot, contexts) == ({'x': x}, x, [[x]])
    (model_dir / 'special_tokens.json').unlink()
    with pytest.raises(
        InputError, match=r'run1/model-\d+ was trained from a model of other sizes or vocabulary'
    ):
        trainer.train(flags(models_dir=str(tmp_path / 'models'), steps=2))
    trainer.train(flags(models_dir=str(tmp_path / 'models'), steps=1, restore_from='fresh'))
    assert get_encoder('run1', made.checkpoint_dir).special == {'<|endoftext|>': 556}


@pytest.mark.parametrize('changes, message', [
    ({'dataset': 'nowhere/*.txt'}, 'nowhere'),
    ({'dataset': os.devnull}, f'{os.devnull} is a pipe or a device; give a file'),
    ({'model_name': 'none'}, 'no model directory'),
    ({'restore_from': 'nowhere/model-3'}, 'no checkpoint nowhere/model-3'),
    ({'run_name': '../up'}, '--run_name'),
    ({'run_name': 'a[1]'}, r"a\[1\]' has the character '\['"),
    ({'restore_from': 'a*/model-3'}, r"a\*/model-3' has the character '\*'"),
    ({'models_dir': 'what?'}, r'no model directory what\?/toy'),
])
def test_flags_that_cannot_be_used_write_nothing(flags, changes, message):
    with pytest.raises(InputError, match=message):
        trainer.train(flags(**changes))
    assert not os.path.exists(flags().checkpoint_dir)


@pytest.mark.parametrize('name, val_every', [('dataset', 0), ('dataset', 1), ('val_dataset', 1)])
def test_a_dataset_without_tokens_is_refused(flags, tmp_path, name, val_every):
    (tmp_path / 'empty.txt').write_text('')
    with pytest.raises(InputError, match=r'empty\.txt has 0 tokens, but at least 16 are needed'):
        trainer.train(flags(**{name: str(tmp_path / 'empty.txt'), 'val_every': val_every}))


def test_sizes_that_are_not_the_checkpoints_are_refused_before_memory_is_taken(flags, world, tmp_path):
    shutil.copytree(world / 'models', tmp_path / 'models')
    sizes = tmp_path / 'models' / 'toy' / 'hparams.json'
    sizes.write_text(json.dumps({**json.loads(sizes.read_text()), 'n_ctx': 1 << 24, 'n_embd': 2048}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r'is float32 .* but hparams.json makes it'):
        trainer.train(flags(models_dir=str(tmp_path / 'models')))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KB; Adam's would be 256 GB
