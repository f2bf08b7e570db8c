import contextlib
import dataclasses
import functools
import glob
import hashlib
import os
import signal
import sys
import tempfile
import threading
import time

from command_line import cli
from command_line.interrupts import Signals

import kills
import pytest
import runs

import load_dataset
from storage import checkpoint, run_folder
from training import trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('usual_signals')]


ANSWER = 'Ctrl-C: training saves and ends after this batch; Ctrl-C again ends it at once'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_ends_with_its_status(flags, monkeypatch, number, capfd):
    trainer.train(flags(run_name='whole'))
    runs.at_step_5(monkeypatch, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stopped:
        trainer.train(flags())
    assert stopped.value.code == 128 + number
    output = capfd.readouterr()
    assert f'Stopped by {number.name} at step 5' in output.out
    assert output.err.count(ANSWER) == (number == signal.SIGINT)
    assert runs.final(flags())[1]['step'] == 5
    assert signal.getsignal(number) not in (None, Signals.note)
    monkeypatch.undo()
    trainer.train(flags())
    assert runs.final(flags()) == runs.final(flags(run_name='whole'))


def test_a_second_signal_does_not_cut_the_save_off(flags, monkeypatch):
    save = run_folder.Run.save

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, *arguments)
    monkeypatch.setattr(run_folder.Run, 'save', interrupted)
    runs.at_step_5(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        trainer.train(flags())
    assert runs.final(flags())[1]['step'] == 5


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


def test_what_is_ignored_stays_ignored(flags, monkeypatch):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    runs.at_step_5(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGHUP))
    assert trainer.train(flags()) == 8


@pytest.mark.parametrize('method', ['val_loss', 'sample', 'try_save'])
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
    assert runs.everything_of(flags()) == runs.everything_of(undisturbed)
