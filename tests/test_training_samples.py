import os
import pathlib

import pytest
import runs
import tensorflow.compat.v1 as tf
import toy

from training import trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('usual_signals')]


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
