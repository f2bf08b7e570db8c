import importlib.machinery
import json
import os
import pathlib
import signal
import sys
import time

from command_line.interrupts import Stopped

import pytest
import runs
import tensorflow.compat.v1 as tf
import toy

from errors import InputError
from storage.run_state import TrainState
from training import log, trainer
from training.worker import Worker

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('usual_signals')]


def test_what_is_seen_in_tensorboard(flags, capsys):
    made = flags(steps=4, sample_every=2, sample_length=5, val_every=2, clip_norm=0.1)
    trainer.train(made)
    for tag in ('loss', 'learning_rate', 'gradient_norm', 'tokens_per_second', 'peak_memory_gb'):
        values = runs.events(made, tag)
        assert sorted(values) == [1, 2, 3, 4] and min(values.values()) > 0
    assert max(runs.events(made, 'gradient_norm').values()) > 0.1  # as it was before clipping
    assert sorted(runs.events(made, 'val_loss')) == sorted(runs.events(made, 'samples')) == [2, 4]
    assert sorted(runs.events(made, 'flags')) == [0]
    output = capsys.readouterr()
    assert 'tokens/s' in output.err
    last = output.out.strip().rpartition('\n')[2]
    assert last.startswith('4 steps done, loss=') and last.endswith(os.path.join(made.checkpoint_dir, 'run1'))


def lines(flags):
    return [json.loads(line) for line in
            pathlib.Path(flags.checkpoint_dir, flags.run_name, 'metrics.jsonl').read_text().splitlines()]


def test_metrics_has_a_line_for_each_update_and_validation(flags):
    made = flags(steps=4, val_every=2)
    trainer.train(made)
    logged = lines(made)
    assert [line['step'] for line in logged] == [1, 2, 2, 3, 4, 4]
    assert all(time.time() - 100 < line['time'] <= time.time() for line in logged)
    for tag in ('loss', 'learning_rate', 'gradient_norm', 'tokens_per_second', 'peak_memory_gb', 'val_loss'):
        values = {line['step']: line[tag] for line in logged if tag in line}
        assert values == pytest.approx(runs.events(made, tag), rel=1e-6)  # which are float32


def test_a_run_that_goes_on_drops_what_is_done_again(flags, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(trainer.Trainer, 'save_last', lambda self: None)
        trainer.train(flags(steps=5, save_every=3, val_every=2))
    before = lines(flags())
    with open(pathlib.Path(flags().checkpoint_dir, 'run1', 'metrics.jsonl'), 'a') as file:
        file.write('{"step": 6, "lo')  # a process was killed within a line
    trainer.train(flags(steps=6, save_every=3, val_every=2))
    after = lines(flags())
    assert after[:4] == before[:4]  # to step 3
    assert [line['step'] for line in after] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert [line.get('loss') for line in after[:7]] == [line.get('loss') for line in before]


def test_lines_of_checkpoints_that_are_left_go_with_them(flags):
    trainer.train(flags(steps=4, save_every=2))
    before = lines(flags())
    trainer.train(flags(steps=3, save_every=2, restore_from=f'{flags().checkpoint_dir}/run1/model-2'))
    assert [line['step'] for line in lines(flags())] == [1, 2, 3]
    assert lines(flags(run_name='run1/left-4')) == before


def test_a_run_goes_on_from_what_it_left_with_its_lines(flags):
    trainer.train(flags(steps=4, save_every=2))
    trainer.train(flags(steps=3, save_every=2, restore_from=f'{flags().checkpoint_dir}/run1/model-2'))
    trainer.train(flags(steps=6, restore_from=f'{flags().checkpoint_dir}/run1/left-4/model-4'))
    whole = lines(flags())
    assert [line['step'] for line in whole] == [1, 2, 3, 4, 5, 6]
    assert whole[:4] == lines(flags(run_name='run1/left-4'))


def test_a_validation_that_was_not_finished_is_not_there_twice(flags, monkeypatch):
    def stopped(self, loss):
        raise Stopped(signal.SIGTERM)
    with monkeypatch.context() as interrupted, pytest.raises(SystemExit):
        interrupted.setattr(trainer.Trainer, 'save_best', stopped)
        trainer.train(flags(steps=4, val_every=2))
    assert [line['step'] for line in lines(flags())] == [1, 2, 2]
    trainer.train(flags(steps=4, val_every=2))
    assert [line['step'] for line in lines(flags())] == [1, 2, 2, 3, 4, 4]


class Tracker:
    """As wandb and trackio; it fails where `fails` says so."""

    def __init__(self, fails='', error=None):
        self.fails, self.error, self.told = fails, error or ConnectionResetError('Connection lost'), []

    def __getattr__(self, name):
        def call(*values, **options):
            if name == self.fails:
                raise self.error
            self.told.append((name, *values, options.get('step', options.get('group'))))
        return call


@pytest.fixture
def tracker(monkeypatch):
    def make(fails='', error=None):
        made = Tracker(fails, error)
        monkeypatch.setitem(sys.modules, 'wandb', made)
        monkeypatch.setattr('importlib.util.find_spec', lambda name: importlib.machinery.ModuleSpec(
            name, None, origin='wandb/__init__.py'))
        return made
    return make


def test_a_tracker_is_told_all(flags, tracker):
    made = tracker()
    trainer.train(flags(steps=2, val_every=2, log_to='wandb'))
    assert [(name, step) for name, *_, step in made.told] == [
        ('init', 'run1'), ('log', 1), ('log', 2), ('log', 2), ('finish', None)]
    update = ['loss', 'learning_rate', 'gradient_norm', 'tokens_per_second', 'peak_memory_gb']
    logged = [list(values[0]) for name, *values, _ in made.told if name == 'log']
    assert logged == [update, update, ['val_loss']]


@pytest.mark.parametrize('fails, error', [
    ('log', None), ('finish', None), ('log', SystemExit('Connection lost'))])
def test_a_tracker_that_fails_does_not_end_training(flags, tracker, capsys, fails, error):
    tracker(fails, error)
    trainer.train(flags(steps=2, log_to='wandb'))
    assert runs.final(flags())[1]['step'] == 2 and len(lines(flags())) == 2
    assert capsys.readouterr().err.count('the log of --log_to could not be written: Connection lost') == 1


def test_a_tracker_that_cannot_start_is_told(flags, tracker):
    tracker('init')
    with pytest.raises(InputError, match='--log_to wandb: Connection lost'):
        trainer.train(flags(steps=2, log_to='wandb'))
    assert not os.path.exists(flags().checkpoint_dir)


def test_a_missing_tracker_is_told_before_training(flags):
    with pytest.raises(InputError, match='--log_to needs the package trackio: pip install trackio'):
        flags(log_to='trackio')


def test_starts_within_a_second_keep_what_each_logged(flags, tmp_path):
    for step in range(8):
        with tf.Graph().as_default():
            log.Log(flags(), Worker(), str(tmp_path), TrainState(step), 32).close()
    assert len(list(tmp_path.glob('events.out.tfevents.*'))) == 8


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
    assert runs.final(flags())[1]['step'] == 8


# Samples

def test_a_samples_dir_without_use_may_be_anywhere(flags, tmp_path):
    (tmp_path / 'samples').write_text('a file where the folder should be')
    assert trainer.train(flags(steps=1, sample_every=1, sample_num=0)) == 1


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


def test_the_largest_seed_draws_samples(flags):
    assert trainer.train(flags(steps=1, sample_every=1, sample_length=2, seed=2**63 - 1)) == 1


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
    runs.at_step(
        monkeypatch, {1: lambda: (tmp_path / 'samples').write_text('a file where the folder should be')}
    )

    def fail(*arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, 'disk full')
    monkeypatch.setattr(tf.summary, 'FileWriter', fail)
    trainer.train(flags(steps=4, sample_every=2))
    output = capsys.readouterr()
    assert runs.final(flags())[1]['step'] == 4
    assert all(
        output.err.count(f'{what} could not be written') == n for what, n in (('samples', 2), ('events', 1))
    )


def test_no_samples_are_no_error(flags):
    assert trainer.train(flags(steps=2, sample_every=1, sample_num=0)) == 2
