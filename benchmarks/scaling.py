#!/usr/bin/env python3
"""Weak scaling of training with random weights: one and two processes of a core each, every one with its own
batch.

What is measured is the update of train-horovod.py, with the gradients of all processes reduced, beside that
of one
process alone; and what a reduction takes by itself.

    ./benchmarks/scaling.py
    ./benchmarks/scaling.py --compression bfloat16 --launcher gloo
"""
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import measure  # before the project's own: it makes their import possible

from command_line import cli

import random_model
import table

from errors import require

EFFICIENCY = 0.85  # of two processes, to reach
WARM_UP = 2  # updates that are not timed
LAUNCHERS = {
    'mpi': [
        'mpirun',
        '--allow-run-as-root',
        '--oversubscribe',
        '-bind-to',
        'none',
        '-map-by',
        'slot',
        '-mca',
        'pml',
        'ob1',
        '-mca',
        'btl',
        '^openib',
        '-np',
    ],
    'gloo': ['horovodrun', '--gloo', '-np'],
}
ONE_THREAD = dict.fromkeys(('OMP_NUM_THREADS', 'TF_NUM_INTRAOP_THREADS', 'TF_NUM_INTEROP_THREADS'), '1')


def scaling(size: str = '124M', batch_size: int = 2, sequence: int = 1024, steps: int = 5, processes: int = 2,
            precision: str = 'float32', compression: str = 'none', launcher: str = 'mpi'):
    """Prints a table of tokens a second, and of the seconds that reducing the gradients takes.

    Args:
        size: of 124M, 355M, 774M and 1558M.
        batch_size: sequences in a batch of each process.
        sequence: tokens in a sequence.
        steps: updates that are timed, after 2 that are not.
        processes: how many, each on a core of its own.
        precision: float32 or bfloat16, of training.
        compression: none, float16 or bfloat16, of the gradients that are sent.
        launcher: mpi or gloo.
    """
    require(launcher in LAUNCHERS, f'--launcher must be one of {", ".join(LAUNCHERS)}, not {launcher!r}')
    require(shutil.which(LAUNCHERS[launcher][0]) and table.installed('horovod'),
            f'{LAUNCHERS[launcher][0]} or Horovod is not installed: make horovod says what is needed')
    random_model.sizes_of(size)
    table.show(lambda: rows(size, batch_size, sequence, steps, processes, precision, compression, launcher))


def rows(size, batch_size, sequence, steps, processes, precision, compression, launcher):
    with tempfile.TemporaryDirectory(prefix='benchmark-') as directory:
        random_model.make(directory, size, sequence)
        settings = {'directory': directory, 'size': size, 'batch_size': batch_size, 'steps': steps,
                    'precision': precision, 'compression': compression}
        alone, several = (launched(launcher, n, settings) for n in (1, processes))
    tokens = batch_size * sequence
    work = f'training {size}, {batch_size} × {sequence} tokens a process, {precision}, {launcher}'
    yield table.Row(f'{work}, {processes} processes; beside one', processes * tokens / several['update'],
                    tokens / alone['update'], 'tokens/s', least=EFFICIENCY * processes)
    yield table.Row('of an update, seconds', several['update'], alone['update'], 's')
    yield table.Row(
        f'reducing the gradients alone ({compression}), seconds',
        several['reduction'],
        None,
        's',
        note=f'Weak scaling efficiency {alone["update"] / several["update"]:.2f}; reduction takes '
        f'{several["reduction"] / several["update"]:.1%} of an update of {processes} processes.',
    )


def launched(launcher, n, settings):
    """What rank 0 of n processes measures; seconds by name."""
    result = os.path.join(settings['directory'], f'result-{n}.json')
    command = [*LAUNCHERS[launcher], str(n), sys.executable, '-c', 'import scaling; scaling.measured()',
               json.dumps({**settings, 'result': result})]
    done = subprocess.run(command, capture_output=True, text=True, errors='replace', check=False,
                          env={**os.environ, **ONE_THREAD, 'PYTHONPATH': measure.HERE})
    if done.returncode:
        raise RuntimeError(f'{command[0]} ended with status {done.returncode}:\n{done.stderr[-3000:]}')
    with open(result, encoding='utf-8') as file:
        return json.load(file)


def measured():
    """In each process: the medians of an update and of a reduction, on one core."""
    settings = json.loads(sys.argv[1])
    rank = int(os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('HOROVOD_RANK', '0')))
    if hasattr(os, 'sched_setaffinity'):  # before TensorFlow counts the cores
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    cli.load_tensorflow()
    from command_line.flags import HorovodFlags

    import tensorflow.compat.v1 as tf

    from training import horovod_worker, trainer
    directory, steps = settings['directory'], settings['steps']
    flags = HorovodFlags(
        dataset=os.path.join(directory, 'tokens.npz'),
        model_name=settings['size'],
        models_dir=directory,
        checkpoint_dir=os.path.join(directory, 'runs'),
        sample_every=0,
        save_every=0,
        seed=1,
        batch_size=settings['batch_size'],
        precision=settings['precision'],
        compression=settings['compression'],
    )
    with (horovod_worker.started(flags.compression) as worker, tf.Graph().as_default(),
          tf.Session(config=trainer.session_config(worker.gpu, worker.threads)) as session):
        training = trainer.Trainer(flags, worker, session)
        training.prepare()
        update = median(training.update, steps, worker)
        # The weights are as many and as large as their gradients. One number of each result is all
        # that is fetched.
        reduced = worker.reduce([v.read_value() for v in training.run.weights])
        first = [tf.reshape(mean, [-1])[0] for mean in reduced]
        reduction = median(lambda: session.run(first), steps, worker)
    if rank == 0:
        with open(settings['result'], 'w', encoding='utf-8') as file:
            json.dump({'update': update, 'reduction': reduction}, file)


def median(function, steps, worker):  # -> seconds
    seconds = []
    for _ in range(WARM_UP + steps):
        worker.gather(None)  # together
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP:])


if __name__ == '__main__':
    cli.run(scaling)
