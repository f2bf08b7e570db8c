"""A long run with all that is periodic: memory, open files and operations of the graph stay as they are."""
import os
import tempfile
import unittest.mock

from command_line.flags import TrainFlags

import numpy as np
import toy
from tiny_vocab import ENGLISH
from tqdm import tqdm

from training import trainer

LARGEST_SLOPE = 1000  # bytes a step
WARM_UP = 0.3  # the share of the steps in which caches fill and allocators settle


def long_run(steps: int = 10_000, seed: int = 0):
    """Trains a toy model with saving, sampling and validation on, and measures the process every hundredth
    part."""
    measured = []
    update = trainer.log.Log.update
    graph = {}

    def measuring(self, step, *values, **scalars):
        update(self, step, *values, **scalars)
        if step % (steps // 100) == 0:
            # Anonymous memory: what is mapped from files, such as code that runs for the first
            # time, is not held.
            measured.append((step, anonymous_memory(), len(os.listdir('/proc/self/fd')),
                             len(graph['session'].graph.get_operations())))
        bar.update()
    prepare = trainer.Trainer.prepare

    def noting(self):
        prepare(self)
        graph['session'] = self.session
    with (tempfile.TemporaryDirectory() as folder, tqdm(total=steps, desc='long run', disable=None) as bar,
          unittest.mock.patch.object(trainer.log.Log, 'update', measuring),
          unittest.mock.patch.object(trainer.Trainer, 'prepare', noting),
          unittest.mock.patch.object(trainer.log, 'say', lambda *_: None)):
        trainer.train(flags_for(folder, steps, seed))
    return counts(np.array([row for row in measured if row[0] > WARM_UP * steps]), steps)


def flags_for(folder, steps, seed):
    toy.write_model(os.path.join(folder, 'models', 'toy'))
    with open(os.path.join(folder, 'text.txt'), 'w', encoding='utf-8') as file:
        file.write(ENGLISH * 10)
    return TrainFlags(
        dataset=os.path.join(folder, 'text.txt'),
        model_name='toy',
        models_dir=os.path.join(folder, 'models'),
        checkpoint_dir=os.path.join(folder, 'checkpoint'),
        samples_dir=os.path.join(folder, 'samples'),
        steps=steps,
        seed=seed,
        learning_rate=1e-4,
        save_every=40,
        sample_every=min(100, steps // 5),
        sample_length=40,
        val_every=50,
        val_batch_count=2,
    )


def counts(measured, steps):  # rows of step, bytes, open files, operations
    """Raises AssertionError where something grows."""
    step, memory, files, operations = measured.T
    slope = np.polyfit(step, memory, 1)[0]
    assert slope < LARGEST_SLOPE, f'memory grows by {slope:.0f} bytes a step'
    assert files.max() == files.min(), f'from {files.min():g} to {files.max():g} open files'
    assert operations.max() == operations.min(), (
        f'from {operations.min():g} to {operations.max():g} operations'
    )
    return {'steps': steps, 'slope of memory, bytes a step': round(slope), 'open files': int(files[-1]),
            'operations of the graph': int(operations[-1])}


def anonymous_memory():  # -> bytes
    with open('/proc/self/status', encoding='utf-8') as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith('RssAnon'))
