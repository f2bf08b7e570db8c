import os
import sys

import pytest
import runs
import tensorflow.compat.v1 as tf

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


def test_starts_within_a_second_keep_what_each_logged(flags, tmp_path):
    for step in range(8):
        with tf.Graph().as_default():
            log.Log(flags(), Worker(), str(tmp_path), step, 32).close()
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
