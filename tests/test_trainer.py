import contextlib
import dataclasses
import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

import kills
import numpy as np
import numpy_gpt2
import pytest
import tensorflow.compat.v1 as tf
import toy
from tiny_vocab import ENGLISH

import load_dataset
from command_line import cli
from command_line.flags import PRECISIONS, TrainFlags
from encoder import get_encoder
from errors import InputError
from fast import kernels
from storage import checkpoint, npz, run_folder, run_state
from training import data as training_data
from training import trainer
from training.signals import Signals
from training.windows import Sampler

pytestmark = pytest.mark.slow

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A folder with models/toy and text/*.txt: some documents longer than a window, and one shorter."""
    folder = tmp_path_factory.mktemp('world')
    toy.write_model(folder / 'models' / 'toy')
    (folder / 'text').mkdir()
    (folder / 'text' / 'a.txt').write_text(ENGLISH)
    (folder / 'text' / 'b.txt').write_text(ENGLISH.upper() * 2)
    return folder


@pytest.fixture
def flags(world, tmp_path):
    """A function that makes TrainFlags, with short runs and folders of this test's own."""
    def make(**changes):
        return TrainFlags(**toy.short_run(world, tmp_path, **changes))
    return make


@pytest.fixture(autouse=True)
def usual_signals():
    """The handlers of a program started at a terminal, also where the tests run under nohup or in the
    background."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def final(made):
    """Everything that the newest checkpoint of a run holds: weights, optimizer and state."""
    directory = os.path.join(made.checkpoint_dir, made.run_name)
    prefix = tf.train.latest_checkpoint(directory)
    training = prefix.replace('/model-', '/training-')
    tensors = {}
    for path in (prefix, training):
        reader = tf.train.load_checkpoint(path)
        tensors.update(
            {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map()}
        )
    with open(f'{training}.json') as file:
        state = json.load(file)
    return tensors, {name: state[name] for name in ('step', 'position', 'seed', 'loss', 'average')}


def events(made, tag):
    """{step: value} of a TensorBoard tag, the last value where a step was logged twice."""
    values = {}
    for path in sorted(glob.glob(os.path.join(made.checkpoint_dir, made.run_name, 'events*'))):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                if value.tag == tag:
                    values[event.step] = value.simple_value
    return values


class OneRank(trainer.Worker):
    """One of several ranks without the others."""
    def run_on_rank0(self, function):
        return function()


OPTIONS = [{}, {'accumulate_gradients': 2, 'noise': 0.2, 'memory_saving_gradients': True, 'val_every': 3},
           {'optimizer': 'adafactor', 'precision': 'bfloat16', 'schedule': 'constant', 'warmup_steps': 5}]


@pytest.mark.parametrize('precision', PRECISIONS)
def test_products_are_rounded_to_tf32_only_where_it_is_asked_for(flags, precision):
    tf.config.experimental.enable_tensor_float_32_execution(precision != 'tf32')
    trainer.train(flags(steps=1, precision=precision))
    assert tf.config.experimental.tensor_float_32_execution_enabled() == (precision == 'tf32')


@pytest.mark.parametrize('worker, told', [
    (trainer.Worker(), ['Device: 0']), (OneRank(1, 2), []), (trainer.Worker(0, 2, gpu=0), ['Device: 0']),
    (OneRank(1, 2, gpu=3), ['Device of rank 1: 3'])])
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
    assert final(flags(run_name='parts')) == final(undisturbed)
    assert events(flags(run_name='parts'), 'loss') == events(undisturbed, 'loss')
    assert sorted(events(undisturbed, 'loss')) == list(range(1, 9))


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


ANSWER = 'Ctrl-C: training saves and ends after this batch; Ctrl-C again ends it at once'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_ends_with_its_status(flags, monkeypatch, number, capfd):
    trainer.train(flags(run_name='whole'))
    at_step_5(monkeypatch, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stopped:
        trainer.train(flags())
    assert stopped.value.code == 128 + number
    output = capfd.readouterr()
    assert f'Stopped by {number.name} at step 5' in output.out
    assert output.err.count(ANSWER) == (number == signal.SIGINT)
    assert final(flags())[1]['step'] == 5
    assert signal.getsignal(number) not in (None, Signals.note)
    monkeypatch.undo()
    trainer.train(flags())
    assert final(flags()) == final(flags(run_name='whole'))


def test_a_second_signal_does_not_cut_the_save_off(flags, monkeypatch):
    save = run_folder.Run.save

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, *arguments)
    monkeypatch.setattr(run_folder.Run, 'save', interrupted)
    at_step_5(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        trainer.train(flags())
    assert final(flags())[1]['step'] == 5


linux = pytest.mark.skipif(sys.platform != 'linux', reason='looks for processes as Linux lists them')


@linux
def test_a_second_ctrl_c_ends_at_once_and_saves_nothing():
    """Also while C++ code is at work, which Python's handlers of signals wait for."""
    kills.in_new_process(interrupt_twice)


def interrupt_twice():
    kills.import_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        flags = dataclasses.replace(kills.world(folder), steps=3, save_every=0, val_every=0, sample_every=0)
        for name, owner, method, options in (
                ('validation', trainer.Trainer, 'mean_of_all', {'val_every': 1}),
                ('sampling', trainer.generator.Generator, 'complete', {'sample_every': 1}),
                ('accumulation', trainer.Data, 'next_batch', {'accumulate_gradients': 2})):
            made = dataclasses.replace(flags, run_name=name, **options)
            attempt = kills.Attempt(functools.partial(interrupted_twice, made, owner, method),
                                    os.path.join(folder, 'log'))
            assert attempt.end() == 130, f'{name}: {attempt.said()}'
            assert attempt.said().count(ANSWER) == 1 and 'Saving' not in attempt.said()
            assert not glob.glob(os.path.join(made.checkpoint_dir, name, 'model-*'))


def interrupted_twice(flags, owner, method, tell):
    """Trains, and in the second call of a method is deaf, but for Ctrl-C again and again."""
    original, calls = getattr(owner, method), []

    def call(*arguments, **options):
        calls.append(method)
        if len(calls) == 2:
            threading.Thread(target=insist, daemon=True).start()
            hashlib.pbkdf2_hmac('sha256', b'', b'', 1 << 30)
        return original(*arguments, **options)

    def insist():
        while True:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    setattr(owner, method, call)
    cli.run(lambda: trainer.train(flags), [])


@linux
def test_a_signal_before_the_first_update_ends_as_in_other_scripts():
    kills.in_new_process(interrupt_starts)


def interrupt_starts():
    kills.import_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        flags = kills.world(folder)
        before = sorted(os.listdir(folder))
        for (owner, method), number in (
                ((load_dataset, 'encode_items'), signal.SIGINT),
                ((load_dataset, 'encode_items'), signal.SIGTERM),
                ((run_folder, 'check_start'), signal.SIGINT),
                ((trainer.Graph, 'losses_of'), signal.SIGINT),
                ((checkpoint, 'load'), signal.SIGTERM)):
            attempt = kills.Attempt(functools.partial(interrupted_start, flags, owner, method, number),
                                    f'{folder}/log')
            status = 130 if method == 'encode_items' and number == signal.SIGINT else -number
            assert attempt.end() == status, f'{method}: {attempt.said()}'
            assert 'Traceback' not in attempt.said() and 'Stopped' not in attempt.said()
            assert sorted(os.listdir(folder)) == before


def interrupted_start(flags, owner, method, number, tell):
    """Trains, and a signal comes in a method, in which what is raised is lost, as it may be within C++ code.

    Text is encoded into the run's folder, as by one of several processes; there it is not lost.
    """
    original = getattr(owner, method)

    def call(*arguments, **options):
        with contextlib.suppress(*([] if method == 'encode_items' else [BaseException])):
            os.kill(os.getpid(), number)
        return original(*arguments, **options)
    setattr(owner, method, call)
    cli.run(lambda: trainer.train(flags, trainer.Worker(0, 2 if method == 'encode_items' else 1)), [])


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
    at_step(monkeypatch, {3: lambda: room(TOO_SMALL), 5: lambda: room(None)})
    assert trainer.train(flags(**options)) == 8
    told = capsys.readouterr().err
    assert re.findall(r'run1/(\S+) could not be saved \(.*?\); the same command goes on', told) == [
        'model-best', 'model-4']
    assert told.count('permit larger files') == 2 and 'make room' not in told
    assert final(flags()) == final(flags(run_name='whole'))
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    assert sorted(name for name in os.listdir(directory) if name.endswith('.index')) == [
        'model-2.index', 'model-6.index', 'model-8.index', 'model-best-8.index', 'training-8.index']
    assert weights_of(directory, 'model-best') == weights_of(directory, 'model-8')


@pytest.mark.parametrize('end', ['steps', 'signal'])
def test_a_run_whose_last_save_fails_says_so_and_goes_on_from_the_one_before(flags, monkeypatch, room, end):
    trainer.train(flags(run_name='whole'))
    stop = {5: lambda: os.kill(os.getpid(), signal.SIGTERM)} if end == 'signal' else {}
    at_step(monkeypatch, {4: lambda: room(TOO_SMALL), **stop})
    with pytest.raises(InputError, match=r'run1/model-\d could not be saved .* goes on from the last'):
        trainer.train(flags(save_every=3))
    assert final(flags())[1]['step'] == 3
    room(None)
    monkeypatch.undo()
    trainer.train(flags())
    assert final(flags()) == final(flags(run_name='whole'))


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
    assert final(flags())[1]['step'] == 3
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    assert weights_of(directory, 'model-best') == weights_of(directory, 'model-1')


GONE = {'moved': lambda folder: os.rename(folder, f'{folder}-moved'), 'removed': shutil.rmtree,
        'replaced': lambda folder: (os.rename(folder, f'{folder}-moved'), os.mkdir(folder))}


@pytest.mark.parametrize('change', GONE)
def test_a_run_whose_folder_goes_away_ends_at_once_and_makes_no_other(flags, monkeypatch, capsys, change):
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    at_step(monkeypatch, {3: lambda: GONE[change](directory)})
    with pytest.raises(InputError) as ended:
        trainer.train(flags(save_every=2))
    if change == 'removed':
        assert str(ended.value).startswith(f'{directory} was removed or moved while it was trained')
        assert not os.path.exists(directory)
    else:
        assert str(ended.value).startswith(f'{directory} was removed or moved while it was trained')
        assert newest(f'{directory}-moved') == 2 and os.path.exists(f'{directory}-moved/model-2.index')
        assert os.path.exists(directory) == (change == 'replaced') and not glob.glob(f'{directory}/*')
    assert 'be saved' not in capsys.readouterr().err  # nor tried once more


@pytest.mark.parametrize('method', ['validation_loss', 'sample', 'try_save'])
def test_a_folder_that_goes_away_before_a_save_is_not_made_again(flags, monkeypatch, capsys, method):
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    original = getattr(trainer.Trainer, method)

    def removing(self):
        result = original(self)
        shutil.rmtree(directory)
        return result
    monkeypatch.setattr(trainer.Trainer, method, removing)
    with pytest.raises(InputError, match='run1 was removed or moved while it was trained'):
        trainer.train(flags(val_every=2, sample_every=2, save_every=2, sample_length=3))
    assert not os.path.exists(directory) and 'be saved' not in capsys.readouterr().err


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


def test_a_samples_dir_without_use_may_be_anywhere(flags, tmp_path):
    (tmp_path / 'samples').write_text('a file where the folder should be')
    assert trainer.train(flags(steps=1, sample_every=1, sample_num=0)) == 1


def test_what_is_ignored_stays_ignored(flags, monkeypatch):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    at_step_5(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGHUP))
    assert trainer.train(flags()) == 8


def at_step_5(monkeypatch, action):
    at_step(monkeypatch, {5: action})


def at_step(monkeypatch, actions):  # {step: function}
    log = trainer.log.Log.update

    def update(self, step, *values, **scalars):
        log(self, step, *values, **scalars)
        actions.get(step, lambda: None)()
    monkeypatch.setattr(trainer.log.Log, 'update', update)


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
    assert final(flags())[1]['step'] == 5
    monkeypatch.undo()
    trainer.train(flags())
    assert final(flags()) == final(flags(run_name='whole'))


def test_kill_9_at_random_moments_changes_nothing(flags, world):
    """Real processes. What is killed has no chance to save: each start goes on from the last --save_every."""
    options = {'steps': 60, 'save_every': 4, 'val_every': 10, 'val_batch_count': 2}
    trainer.train(flags(run_name='whole', **options))
    command = command_of(flags(**options))
    directory = os.path.join(flags().checkpoint_dir, flags().run_name)
    rng = random.Random(7)
    for kill in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = 8 * (kill + 1)  # so that each start has gone on from the one before
        while process.poll() is None and newest(directory) < wanted:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.wait()
        assert wanted <= newest(directory) <= 60
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert final(flags()) == final(flags(run_name='whole'))
    assert events(flags(), 'loss') == events(flags(run_name='whole'), 'loss')
    assert 'WARNING' not in done.stderr and 'oneDNN' not in done.stderr  # TensorFlow's own noise


def command_of(made):
    return [sys.executable, os.path.join(ROOT, 'train.py'),
            *(f'--{name}={value}' for name, value in vars(made).items() if value is not None)]


def test_operations_can_be_deterministic_which_exact_resume_on_gpus_needs(flags):
    done = subprocess.run(
        command_of(flags(steps=1, val_every=1)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, 'TF_DETERMINISTIC_OPS': '1'},
    )
    assert done.returncode == 0, done.stderr


def newest(directory):
    """The step of the committed checkpoint, 0 where there is none."""
    prefix = tf.train.latest_checkpoint(directory)
    return int(prefix.rpartition('-')[2]) if prefix else 0


def test_accumulated_batches_give_the_update_of_one_large_batch(flags, world):
    """Of windows with and without padding."""
    (world / 'short').mkdir(exist_ok=True)
    for i, words in enumerate(ENGLISH.split('"')):
        (world / 'short' / f'{i}.txt').write_text(words)
    options = {'dataset': str(world / 'short'), 'optimizer': 'sgd', 'learning_rate': 0.5, 'steps': 3}
    trainer.train(flags(run_name='large', batch_size=6, **options))
    trainer.train(flags(run_name='small', batch_size=2, accumulate_gradients=3, memory_saving_gradients=True,
                        **options))
    large, small = (
        tf.train.load_checkpoint(tf.train.latest_checkpoint(os.path.join(flags().checkpoint_dir, name)))
        for name in ('large', 'small')
    )
    for name in large.get_variable_to_shape_map():
        np.testing.assert_allclose(small.get_tensor(name), large.get_tensor(name), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        *[list(events(flags(run_name=name), 'loss').values()) for name in ('large', 'small')], rtol=1e-5
    )


def test_validation_is_that_of_the_reference_on_the_tokens_held_out(flags, world, capsys):
    made = flags(steps=1, val_every=1, val_batch_count=2, learning_rate=1e-9)
    windows = []
    batches = trainer.Data.validation_batches

    def seen(self):
        for inputs, tokens in batches(self):
            windows.extend(tokens)
            yield inputs, tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Data, 'validation_batches', seen)
        trainer.train(made)
    shown = float(re.search(r'validation loss = ([\d.]+)', capsys.readouterr().out)[1])
    weights = tf.train.load_checkpoint(str(world / 'models' / 'toy'))
    expected = numpy_gpt2.mean_loss(
        {name: weights.get_tensor(name) for name in weights.get_variable_to_shape_map()},
        windows[-4:],
        toy.TOY['n_head'],
    )  # the last two batches of two
    assert abs(shown - expected) < 1e-3
    assert abs(events(made, 'val_loss')[1] - expected) < 1e-3


def scripted_validation(monkeypatch, losses):
    """Validation losses as listed, by step."""
    monkeypatch.setattr(trainer.Trainer, 'validation_loss', lambda self: losses[self.state.step - 1])


def weights_of(directory, name):
    reader = tf.train.load_checkpoint(checkpoint.files_prefix(os.path.join(directory, name)))
    return {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map()}


def test_patience_stops_and_the_best_weights_are_kept(flags, monkeypatch, capsys):
    scripted_validation(monkeypatch, [5.0, 4.0, 4.5, 3.9, 3.9, 4.1, 3.0, 2.0])
    options = {'val_every': 1, 'patience': 2, 'save_every': 1}
    assert trainer.train(flags(run_name='whole', **options)) == 6
    assert 'No validation loss was below 3.9000 of step 4, kept as model-best' in capsys.readouterr().out
    for steps in (2, 3, 5, 8):
        trainer.train(flags(run_name='parts', **{**options, 'steps': steps}))
    assert final(flags(run_name='parts')) == final(flags(run_name='whole'))
    for name in ('whole', 'parts'):
        directory = os.path.join(flags().checkpoint_dir, name)
        assert weights_of(directory, 'model-best') == weights_of(directory, 'model-4')
    assert trainer.train(flags(run_name='whole', **options)) == 6  # the same command has nothing left to do


def test_a_best_checkpoint_is_restored_from_by_its_path(flags, monkeypatch):
    scripted_validation(monkeypatch, [5.0, 4.0, 4.5])
    trainer.train(flags(steps=3, val_every=1, save_every=1))
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    ends = []
    for name in ('best', '2'):  # neither has a training state beside it
        trainer.train(flags(run_name=name, steps=3, optimizer='sgd',
                            restore_from=os.path.join(directory, f'model-{name}')))
        ends.append(weights_of(os.path.join(flags().checkpoint_dir, name), 'model-3'))
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
    assert weights_of(directory, 'model-best') == weights_of(directory, 'model-3')


@pytest.mark.parametrize('restore_from, step', [('model-best', 2), ('model-1', 1), ('fresh', 0)])
def test_going_back_keeps_the_best(flags, monkeypatch, capsys, restore_from, step):
    """Whose loss no validation after it comes below; the lower one of the end then takes its place."""
    options = {'val_every': 1, 'save_every': 1}
    scripted_validation(monkeypatch, [4.0, 3.0, 3.5, 3.6])
    trainer.train(flags(steps=4, **options))
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    best, last = weights_of(directory, 'model-best'), final(flags())
    scripted_validation(monkeypatch, [32.9, 32.8, 32.7, 32.6, 2.9])
    path = restore_from if restore_from == 'fresh' else os.path.join(directory, restore_from)
    trainer.train(flags(steps=4, restore_from=path, learning_rate=0.01, **options))
    output = capsys.readouterr().out
    assert re.search(r'Left behind in \S+run1/left-4, from where --restore_from goes on: .*model-4\n', output)
    assert weights_of(directory, 'model-best') == best
    assert final(flags(checkpoint_dir=directory, run_name='left-4')) == last
    trainer.train(flags(steps=5, learning_rate=0.01, **options))  # another process
    assert weights_of(directory, 'model-best') == weights_of(directory, 'model-5') != best


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
    np.testing.assert_allclose(list(events(flags(), 'learning_rate').values()),
                               [0.003, 0.006, 0.006, 0.005, 0.004, 0.003, 0.002, 0.001], rtol=1e-5)


def test_what_is_seen_in_tensorboard(flags, capsys):
    made = flags(steps=4, sample_every=2, sample_length=5, val_every=2, clip_norm=0.1)
    trainer.train(made)
    for tag in ('loss', 'learning_rate', 'gradient_norm', 'tokens_per_second', 'peak_memory_gb'):
        values = events(made, tag)
        assert sorted(values) == [1, 2, 3, 4] and min(values.values()) > 0
    assert max(events(made, 'gradient_norm').values()) > 0.1  # as it was before clipping
    assert sorted(events(made, 'val_loss')) == sorted(events(made, 'samples')) == [2, 4]
    assert sorted(events(made, 'flags')) == [0]
    output = capsys.readouterr()
    assert 'tokens/s' in output.err
    last = output.out.strip().rpartition('\n')[2]
    assert last.startswith('4 steps done, loss=') and last.endswith(os.path.join(made.checkpoint_dir, 'run1'))


def test_files_whose_names_are_not_utf_8_are_trained_on(flags, tmp_path):
    name = os.path.join(tmp_path, '\udcff')
    for part in ('.txt', '.val'):
        with open(name + part, 'w') as file:
            file.write(ENGLISH)
    made = flags(dataset=f'{name}.txt', val_dataset=f'{name}.val', val_every=1, steps=1, sample_every=1,
                 sample_length=2, samples_dir=f'{name}.samples')
    trainer.train(made)
    assert sorted(events(made, 'flags')) == [0] and os.listdir(f'{name}.samples/run1') == ['samples-1']
    trainer.train(dataclasses.replace(made, steps=2))


def test_the_gradient_norm_is_that_of_finite_differences(flags, world):
    made = flags(steps=1, optimizer='sgd', learning_rate=1e-3)
    trainer.train(made)
    start, end = (tf.train.load_checkpoint(path) for path in (
        str(world / 'models' / 'toy' / 'model.ckpt'), os.path.join(made.checkpoint_dir, 'run1', 'model-1')))
    moved = [(start.get_tensor(name).astype(float) - end.get_tensor(name)) / 1e-3
             for name in start.get_variable_to_shape_map()]
    expected = np.sqrt(sum((each**2).sum() for each in moved))  # SGD moves by the gradient itself
    np.testing.assert_allclose(events(made, 'gradient_norm')[1], expected, rtol=1e-2)


def test_bfloat16_trains_as_float32_does(flags, monkeypatch):
    """To 1%, with weights and slots that are float32."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 0)
    losses = []
    for precision in ('float32', 'bfloat16'):
        made = flags(run_name=precision, precision=precision, steps=60, batch_size=4)
        trainer.train(made)
        losses.append(list(events(made, 'loss').values()))
        reader = tf.train.load_checkpoint(
            tf.train.latest_checkpoint(os.path.join(made.checkpoint_dir, precision))
        )
        assert set(reader.get_variable_to_dtype_map().values()) == {tf.float32}
    assert losses[0][-1] < losses[0][0] - 0.5  # something was learnt
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'precision': 'bfloat16'},
        {'memory_saving_gradients': True, 'accumulate_gradients': 2, 'val_every': 2},
    ],
)
def test_xla_gives_the_same_losses(flags, options):
    for name in ('plain', 'xla'):
        trainer.train(flags(run_name=name, xla=name == 'xla', steps=4, **options))
    for tag in ('loss', 'val_loss', 'gradient_norm'):
        plain, xla = (events(flags(run_name=name), tag) for name in ('plain', 'xla'))
        assert plain.keys() == xla.keys()
        tolerance = 1e-4 if 'precision' not in options else 1e-2
        np.testing.assert_allclose(list(xla.values()), list(plain.values()), rtol=tolerance)


def test_batches_read_ahead_are_those_of_the_stream(flags):
    made = flags(batch_size=3, noise=0.3)
    enc = checkpoint.load_sizes_and_vocabulary('toy', made.models_dir)[2]
    data = trainer.Data(made, enc, toy.hparams(), trainer.Worker())
    data.start(seed=1, position=6)
    sampler = Sampler(data.training, seed=1)
    sampler.position = 6
    for i in range(4):
        assert data.position == 6 + 3 * i
        inputs, tokens = data.next_batch()
        assert tokens.tolist() == [sampler.sample(toy.hparams().n_ctx).tolist() for _ in range(3)]
        assert 0 < (inputs != np.maximum(tokens, 0)).mean() < 0.5


def test_text_that_was_trained_on_before_it_is_held_out_is_told(flags, capsys):
    told = []
    for steps, val_every in ((1, 0), (2, 1), (3, 1), (4, 0), (5, 0), (6, 1)):
        trainer.train(flags(steps=steps, val_every=val_every, val_batch_count=1))
        out = capsys.readouterr().out
        told.append(('--val_every now holds out was' in out, 'order of the data starts anew' in out))
    assert told == [(False, False), (True, True), (False, False), (False, True), (False, False), (True, True)]
    trainer.train(flags(steps=7, seed=4))
    assert '--val_every' not in capsys.readouterr().out


def test_a_long_validation_shows_how_far_it_is(flags, monkeypatch, capsys):
    for every, expected in ((60, []), (-1, ['0 of 3', '1 of 3', '2 of 3'])):
        monkeypatch.setattr(trainer, 'PROGRESS_EVERY', every)
        trainer.train(flags(run_name=f'{every}', steps=1, val_every=1, val_batch_count=3))
        assert re.findall('Validation: (.*) batches done', capsys.readouterr().err) == expected


def test_held_out_tokens_are_not_trained_on(flags, world):
    made = flags(val_every=1)
    data = trainer.Data(
        made, checkpoint.load_sizes_and_vocabulary('toy', made.models_dir)[2], toy.hparams(), trainer.Worker()
    )
    whole = trainer.Data(
        flags(),
        checkpoint.load_sizes_and_vocabulary('toy', made.models_dir)[2],
        toy.hparams(),
        trainer.Worker(),
    )
    join = [np.concatenate(each).tolist() for each in (data.training, data.validation, whole.training)]
    assert join[0] + join[1] == join[2] and len(join[1]) == round(0.05 * len(join[2]))


def test_samples_are_written_and_repeat(flags, capsys):
    made = flags(steps=2, sample_every=1, sample_num=3, sample_length=20)
    trainer.train(made)
    directory = os.path.join(made.samples_dir, 'run1')
    assert sorted(os.listdir(directory)) == ['samples-1', 'samples-2']
    text = pathlib.Path(directory, 'samples-2').read_text(encoding='utf-8')
    assert [line for line in text.split('\n') if line.startswith('=====')] == [
        f'======== SAMPLE {i} ========' for i in (1, 2, 3)]
    assert '======== SAMPLE 3 ========' in capsys.readouterr().out
    trainer.train(
        flags(steps=2, sample_every=1, sample_num=3, sample_length=20, run_name='again', batch_size=2)
    )
    assert pathlib.Path(made.samples_dir, 'again', 'samples-2').read_text(encoding='utf-8') == text


@pytest.mark.parametrize('method', ['validation_loss', 'sample', 'try_save'])
def test_what_a_signal_interrupts_is_done_when_the_run_goes_on(flags, monkeypatch, method):
    """Validation, by which the best weights are chosen, and samples: none is left out, none is counted
    twice."""
    options = {
        'val_every': 2,
        'sample_every': 2,
        'save_every': 2,
        'sample_num': 2,
        'sample_length': 3,
        'patience': 3,
    }
    undisturbed = flags(run_name='whole', **options)
    trainer.train(undisturbed)
    original, calls = getattr(trainer.Trainer, method), []

    def interrupted(self):
        calls.append(self.state.step)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)
    monkeypatch.setattr(trainer.Trainer, method, interrupted)
    with pytest.raises(SystemExit):
        trainer.train(flags(**options))
    assert calls == [2, 4]
    trainer.train(flags(**options))
    assert calls == [2, 4, 4, 6, 8]  # where it was the save, the second one finds it done
    assert everything_of(flags()) == everything_of(undisturbed)


def test_ids_without_a_text_are_no_part_of_samples(flags, tmp_path, capsys):
    toy.write_padded_model(tmp_path / 'models' / 'padded')
    trainer.train(
        flags(model_name='padded', models_dir=str(tmp_path / 'models'), steps=1, sample_every=1, top_k=0)
    )
    assert 'could not be written' not in capsys.readouterr().err
    assert os.listdir(tmp_path / 'samples' / 'run1') == ['samples-1']


def test_what_a_kill_leaves_of_a_sample_is_removed(flags):
    made = flags(steps=2, sample_every=2, sample_length=3)
    directory = os.path.join(made.samples_dir, 'run1')
    os.makedirs(directory)
    pathlib.Path(directory, 'samples-2.123.tmp').write_text('of another process')
    trainer.train(made)
    assert os.listdir(directory) == ['samples-2']


def everything_of(made):
    """What is left of a run at its end, and its losses of validation."""
    directory = os.path.join(made.samples_dir, made.run_name)
    with open(os.path.join(made.checkpoint_dir, made.run_name, 'training-8.json')) as file:
        state = json.load(file)
    samples = {
        name: pathlib.Path(directory, name).read_text(encoding='utf-8') for name in os.listdir(directory)
    }
    return (final(made), samples, events(made, 'val_loss'),
            {name: state[name] for name in ('best', 'validations_since_best', 'actions_done')})


def test_samples_are_what_the_saved_weights_give_to_a_generator(flags, monkeypatch):
    """Longer than the window, and of whatever the weights were at that update; the second time adds no
    operation."""
    counts = []
    sample = trainer.Trainer.sample

    def counted(self):
        is_done = sample(self)
        counts.append(len(self.session.graph.get_operations()))
        return is_done
    monkeypatch.setattr(trainer.Trainer, 'sample', counted)
    made = flags(steps=4, sample_every=2, sample_num=2, sample_length=40, save_every=2, top_k=5, top_p=0.9)
    trainer.train(made)
    assert len(counts) == 2 and counts[0] == counts[1]
    for step in (2, 4):
        gpt2 = trainer.generator.load('run1', made.checkpoint_dir, f'model-{step}')
        rows = gpt2.complete(
            [[gpt2.enc.eot]] * 2, [[made.seed + step, i] for i in range(2)], length=40, top_k=5, top_p=0.9
        )
        text = pathlib.Path(made.samples_dir, 'run1', f'samples-{step}').read_text(encoding='utf-8')
        assert all(f'======== SAMPLE {i} ========\n{row.text}\n' in text for i, row in enumerate(rows, 1))


def test_samples_and_events_that_cannot_be_written_do_not_stop_training(flags, tmp_path, monkeypatch, capsys):
    at_step(monkeypatch, {1: lambda: (tmp_path / 'samples').write_text('a file where the folder should be')})

    def fail(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, 'disk full')
    monkeypatch.setattr(tf.summary, 'FileWriter', fail)
    trainer.train(flags(steps=4, sample_every=2))
    output = capsys.readouterr()
    assert final(flags())[1]['step'] == 4
    assert all(
        output.err.count(f'{what} could not be written') == n for what, n in (('samples', 2), ('events', 1))
    )


def test_a_loss_that_is_no_number_ends_training_and_spoils_no_checkpoint(flags):
    trainer.train(flags(steps=2))
    good = final(flags())
    with pytest.raises(
        InputError, match=r'not finite after step \d+; the last save is kept: .* lower --learning_rate'
    ):
        trainer.train(flags(learning_rate=1e30, steps=50))
    assert final(flags()) == good


@pytest.mark.parametrize('options', [{'save_every': 1}, {'steps': 1}, {'val_every': 1}])
def test_weights_that_an_update_spoils_are_not_saved(flags, options):
    """The loss is that of the weights before the update, and tells nothing of those after it."""
    with pytest.raises(
        InputError, match=r'not finite after step [01]; the last save .* lower --learning_rate'
    ):
        trainer.train(flags(optimizer='sgd', learning_rate=1e39, **options))
    assert not glob.glob(os.path.join(flags().checkpoint_dir, 'run1', '*model-*'))


def test_a_run_is_one_process_at_a_time(flags):
    trainer.train(flags(steps=1))
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    with open(os.path.join(directory, 'counter'), 'rb') as file:  # whichever file, the lock is the folder's
        before = file.read()
    other = subprocess.Popen([sys.executable, '-c', 'import fcntl, os, sys, time\n'
                              'fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n'
                              'print(flush=True)\ntime.sleep(60)', directory], stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(InputError, match=r'another process is training .*run1; give another --run_name'):
        trainer.train(flags(steps=2))
    assert pathlib.Path(directory, 'counter').read_bytes() == before
    other.kill()
    other.wait()
    other.stdout.close()
    assert trainer.train(flags(steps=2)) == 2


@pytest.mark.parametrize('size, function', [(1, 'load_dataset'), (2, 'encode_to_npz')])
def test_the_folder_is_kept_to_one_process_before_text_is_read(flags, monkeypatch, size, function):
    """Also of a run that begins; of several processes, it is encoded into that folder."""
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    original, refused = getattr(training_data, function), []

    def second(*arguments, **options):
        with pytest.raises(InputError, match=r'another process is training .*run1'):
            trainer.train(flags(steps=1))
        descriptor = os.open(directory, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        refused.append(function)
        return original(*arguments, **options)
    monkeypatch.setattr(training_data, function, second)
    assert trainer.train(flags(steps=1), trainer.Worker(0, size)) == 1
    assert refused == [function]


@pytest.mark.parametrize('kept', ['', 'checkpoint', 'checkpoint/run1'])
def test_a_start_that_fails_removes_the_empty_folders_that_it_has_made(flags, tmp_path, kept):
    (tmp_path / kept).mkdir(parents=True, exist_ok=True)
    with pytest.raises(InputError, match='nothing matches'):
        trainer.train(flags(dataset='nowhere/*.txt'))
    folders = [os.path.relpath(path, tmp_path) for path, _, _ in os.walk(tmp_path)]
    assert folders == ['.', 'checkpoint', 'checkpoint/run1'][:1 + len(pathlib.Path(kept).parts)]


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


def test_no_samples_are_no_error(flags):
    assert trainer.train(flags(steps=2, sample_every=1, sample_num=0)) == 2


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
    once = final(flags())
    trainer.train(flags(steps=6, restore_from='fresh'))
    assert final(flags()) == once  # and not a continuation, which would have had nothing to do


def test_restore_from_a_checkpoint_goes_on_from_its_step(flags):
    trainer.train(flags(run_name='whole'))
    trainer.train(flags(run_name='first', steps=5))
    source = os.path.join(flags().checkpoint_dir, 'first', 'model-5.index')
    trainer.train(flags(run_name='second', restore_from=source))
    assert final(flags(run_name='second')) == final(flags(run_name='whole'))


def test_without_a_seed_the_run_keeps_its_own(flags, capsys):
    trainer.train(flags(steps=2, seed=None))
    seed = final(flags())[1]['seed']
    trainer.train(flags(steps=4, seed=None))
    assert final(flags())[1]['seed'] == seed
    trainer.train(flags(steps=5, seed=seed + 1))
    assert 'the order of the data starts anew' in capsys.readouterr().out
    assert final(flags())[1]['position'] == 2


def test_another_vocabularys_tokens_are_refused_before_anything_is_written(flags, tmp_path):
    np.savez(tmp_path / 'other.npz', np.array([5, 50256] * 100, np.uint16))
    with pytest.raises(InputError, match='the dataset holds token 50256, but n_vocab is 557'):
        trainer.train(flags(dataset=str(tmp_path / 'other.npz')))
    assert not os.path.exists(flags().checkpoint_dir)


def test_a_npz_encoded_with_another_vocabulary_is_refused_before_anything_is_written(flags, tmp_path):
    for name in ('dataset', 'val_dataset'):
        path = str(tmp_path / f'{name}.npz')
        npz.write_npz(path, [np.arange(200)], 557, vocabulary='0123456789abcdef')
        with pytest.raises(InputError, match=rf'{name}\.npz is of the vocabulary 0123456789'):
            trainer.train(flags(**{name: path}, val_every=1))
    assert not os.path.exists(flags().checkpoint_dir)


def test_special_tokens_in_texts_are_a_flag_for_training_and_validation_alike(flags, world, tmp_path, capsys):
    (tmp_path / 'a.txt').write_text(f'{ENGLISH}<|endoftext|>' * 2)
    enc = get_encoder('toy', str(world / 'models'))
    hp = checkpoint.load_sizes_and_vocabulary('toy', str(world / 'models'))[1]
    for special, expected in ((True, [*enc.encode(ENGLISH), enc.eot] * 2),
                              (False, [*enc.encode(f'{ENGLISH}<|endoftext|>' * 2), enc.eot])):
        path = str(tmp_path / 'a.txt')
        made = flags(dataset=path, val_dataset=path, val_every=1, special_tokens=special)
        data = trainer.Data(made, enc, hp, trainer.Worker())
        assert [each.tolist() for each in (*data.training, *data.validation)] == [expected, expected]
        said = capsys.readouterr()
        assert said.err.count('the text has 2 special tokens;') == 2 * special
        assert said.out == ''
        trainer.Data(flags(dataset=path, special_tokens=special), enc, hp, OneRank(rank=1))
        assert capsys.readouterr().err == ''  # rank 0 tells


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
    ({'dataset': os.devnull}, f'{os.devnull} has 0 tokens, but at least 16'),
    ({'dataset': os.devnull, 'val_every': 1}, f'{os.devnull} has 0 tokens'),
    ({'val_dataset': os.devnull, 'val_every': 1}, f'{os.devnull} has 0 tokens, but'),
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


def test_two_workers_share_the_windows_of_an_epoch(flags, tmp_path):
    np.savez(tmp_path / 'data.npz', np.arange(500, dtype=np.uint16))  # 469 windows, no two alike
    made = flags(batch_size=2, dataset=str(tmp_path / 'data.npz'))
    enc = checkpoint.load_sizes_and_vocabulary('toy', made.models_dir)[2]
    seen = []
    for rank in range(2):
        data = trainer.Data(made, enc, toy.hparams(), OneRank(rank, 2))
        data.start(seed=1, position=0)
        seen += [window[0] for _ in range(117) for window in data.next_batch()[1]]
    assert len(set(seen)) == len(seen) == 468


def test_a_terminal_that_is_gone_does_not_stop_training(flags, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError(32, 'Broken pipe')

        def flush(self):
            pass

        def isatty(self):
            return False
    monkeypatch.setattr(sys, 'stdout', Closed())
    monkeypatch.setattr(sys, 'stderr', Closed())
    trainer.train(flags(save_every=4, val_every=4, sample_every=4))
    assert final(flags())[1]['step'] == 8


def test_sizes_that_are_not_the_checkpoints_are_refused_before_memory_is_taken(flags, world, tmp_path):
    shutil.copytree(world / 'models', tmp_path / 'models')
    sizes = tmp_path / 'models' / 'toy' / 'hparams.json'
    sizes.write_text(json.dumps({**json.loads(sizes.read_text()), 'n_ctx': 1 << 24, 'n_embd': 2048}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r'is float32 .* but hparams.json makes it'):
        trainer.train(flags(models_dir=str(tmp_path / 'models')))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KB; Adam's would be 256 GB
