#!/usr/bin/env python3
"""Compares a GPU with this machine's CPU, and times its training: `make check-gpu`, about five minutes.

Prints a Markdown table to paste into an issue. A check that fails says why, and the others follow. Written
where there was no GPU: its tests compare a CPU with itself, and that is all that is known of it.
"""
import contextlib
import functools
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

import measure  # before the project's own: it makes their import possible

from command_line import cli

import numpy as np
import random_model
import scaling
import training_speed

from errors import require

SMALL = {'n_layer': 4, 'n_head': 4, 'n_embd': 256, 'n_ctx': 256}  # of the model that is compared
LIMITS = {'float32': 1e-4, 'tf32': 1e-2, 'bfloat16': 5e-2}  # of errors
GRADIENT = {'optimizer': 'sgd', 'learning_rate': 1.0, 'steps': 1}  # which the weights then change by
SIZE, BATCH_SIZE, SEQUENCE, UPDATES = '124M', 2, 1024, 5  # of the training that is timed


def check_gpu():
    """Prints a table; status 1 where a limit is not kept, 2 without a GPU."""
    cli.load_tensorflow()
    import tensorflow as tf

    from fast import session
    gpus = len(tf.config.list_physical_devices('GPU'))
    require(gpus, 'TensorFlow finds no GPU here, which would be compared with the CPU')
    print(f'{session.device()} (of {gpus}), and CPU, {session.cores()} cores; TensorFlow {tf.__version__}\n')
    with tempfile.TemporaryDirectory(prefix='check-gpu-') as directory:
        kept = [show(*row) for row in Check(directory, 'GPU').rows(gpus)]
    sys.exit(0 if all(kept) else 1)


def show(what, figure_of, limit=None):
    """Prints a row of what figure_of() returns, a number or a text; whether it is within the limit."""
    try:
        figure = figure_of()
        kept = limit is None or figure <= limit
    except RuntimeError as error:  # of a process, whose last line says why
        figure, kept = str(error).strip().rpartition('\n')[2].replace('|', '/'), False
    shown = figure if isinstance(figure, str) else f'{figure:.1e} (at most {limit:g})'
    print(f'| {what} | {shown} | {"ok" if kept else "WRONG"} |', flush=True)
    return kept


class Check:
    """The comparisons. Errors are root mean squares, in standard deviations of the CPU's float32 values."""

    def __init__(self, directory, device):  # GPU, or in tests CPU
        from create_model import create_model
        self.directory, self.device, self.large = directory, device, os.path.join(directory, 'large')
        with contextlib.redirect_stdout(sys.stderr):
            create_model('small', models_dir=directory, seed=1, **SMALL)
        tokens = np.random.default_rng(1).integers(256, size=10_000, dtype=np.uint16)
        np.savez(os.path.join(directory, 'tokens.npz'), tokens)
        os.mkdir(self.large)
        random_model.make(self.large, SIZE, SEQUENCE)

    def rows(self, gpus):  # -> what `show` takes
        print('| what | figure | |\n|---|---|---|')
        for precision, limit in LIMITS.items():
            yield f'log-probabilities, {precision}: error', functools.partial(self.scores, precision), limit
            yield f'gradients, {precision}: error', functools.partial(self.gradients, precision), limit
        yield 'sampling: error of log-probabilities', self.samples, LIMITS['float32']
        resumed = functools.partial(self.resumed, self.device)
        yield 'run resumed, TF_DETERMINISTIC_OPS=1: difference', resumed, 0.0
        yield 'run resumed on the CPU: error', functools.partial(self.resumed, 'CPU'), 1e-2
        for precision, xla in itertools.product(LIMITS, (False, True)):
            yield (f'training {SIZE}, {BATCH_SIZE} × {SEQUENCE} tokens, {precision}{", --xla" * xla}',
                   functools.partial(self.speed, precision, xla))
        if gpus > 1:
            yield 'gradients of two processes, NCCL: error', self.gradients_of_two, LIMITS['float32']

    def run(self, function, device, **arguments):
        """The value of a function below, in a process of its own."""
        arguments = {'directory': self.directory, 'device': device, **arguments}
        with measure.children((function, arguments)) as (child,):
            return child.step()

    @functools.cached_property
    def exact_scores(self):
        return self.run(scored, 'CPU', precision='float32')

    @functools.cached_property
    def exact_gradient(self):
        return self.run(trained, 'CPU', name='gradient', **GRADIENT)

    def scores(self, precision):
        return error(self.run(scored, self.device, precision=precision), self.exact_scores)

    def samples(self):
        return error(self.run(sampled, self.device), self.run(sampled, 'CPU'))

    def gradients(self, precision):
        name = f'gradient in {precision}'
        return error_of_runs(self.run(trained, self.device, name=name, precision=precision, **GRADIENT),
                             self.exact_gradient)

    def resumed(self, second):
        """Of a run whose first half was on the device and whose second is on another one, or on the same."""
        parts, whole = ({'name': f'{name} on {second}', 'deterministic': '1'}
                        for name in ('resumed', 'whole'))
        self.run(trained, self.device, steps=2, **parts)
        return error_of_runs(*(self.run(trained, second, steps=4, **name) for name in (parts, whole)))

    def speed(self, precision, xla):
        seconds, peak = self.run(timed, self.device, directory=self.large, precision=precision, xla=xla)
        return f'{BATCH_SIZE * SEQUENCE / seconds:.0f} tokens/s, peak {peak / 1e9:.2f} GB'

    def gradients_of_two(self):
        launcher = 'mpi' if shutil.which('mpirun') else 'gloo'
        flags = flags_of(self.directory, name='two', **GRADIENT, batch_size=2)
        done = subprocess.run([*scaling.LAUNCHERS[launcher], '2', sys.executable, 'train-horovod.py', *(
            f'--{name}={value}' for name, value in flags.items())], cwd=measure.ROOT, capture_output=True,
            text=True, env={**os.environ, 'NCCL_DEBUG': 'INFO'}, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        if self.device == 'GPU' and 'NCCL INFO' not in done.stdout:
            raise RuntimeError('NCCL was not used: make horovod HOROVOD_GPU_OPERATIONS=NCCL')
        return error_of_runs(os.path.join(self.directory, 'runs', 'two'), self.exact_gradient)


def error(values, exact):
    return float(np.sqrt(np.mean(np.square(np.subtract(values, exact)))) / np.std(exact))


def error_of_runs(*paths):
    """The largest error of a weight's change in training, of a run and an exact one. Their folders."""
    import tensorflow as tf
    start, *readers = map(tf.train.load_checkpoint, (os.path.join(paths[0], '../../small'), *paths))
    return max(error(*(reader.get_tensor(name) - start.get_tensor(name) for reader in readers))
               for name in start.get_variable_to_shape_map())


# What is computed, each in a process of its own: a step gives its value


def begin(device):
    if device == 'CPU':
        os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
    cli.load_tensorflow()


def scored(directory, device, precision):
    begin(device)
    from evaluation import likelihood, metrics
    model = likelihood.Likelihood('small', directory, precision=precision)
    tokens = np.load(os.path.join(directory, 'tokens.npz'))['arr_0']
    spans = metrics.spans(tokens[:1000], model.context, model.context // 2)
    yield [value for _, values in model.score(spans) for value in values.tolist()]


def sampled(directory, device):
    begin(device)
    from generation import generator
    rows = generator.load('small', directory).complete([[65, 66, 67]] * 2, [[1], [2]], length=100)
    yield [value for row in rows for value in row.logprobs]


def flags_of(directory, name, **changes):
    return {'dataset': os.path.join(directory, 'tokens.npz'), 'model_name': 'small', 'models_dir': directory,
            'seed': 1, 'checkpoint_dir': os.path.join(directory, 'runs'), 'run_name': name,
            'sample_every': 0, 'save_every': 0, 'batch_size': 4, **changes}


def trained(directory, device, name, deterministic='0', **changes):
    """The folder of a run."""
    os.environ['TF_DETERMINISTIC_OPS'] = deterministic
    begin(device)
    from command_line.flags import TrainFlags

    from training import trainer
    trainer.train(TrainFlags(**flags_of(directory, name, **changes)))
    yield os.path.join(directory, 'runs', name)


def timed(directory, device, precision, xla):
    """Seconds of an update, and the most memory in bytes."""
    begin(device)
    import tensorflow as tf

    from training import log
    updates = training_speed.ours(directory, SIZE, BATCH_SIZE, SEQUENCE, precision, saving=False, xla=xla)
    with contextlib.closing(updates):
        seconds = statistics.median(itertools.islice(updates, UPDATES))
        yield seconds, tf.config.experimental.get_memory_info(f'{device}:0')['peak'] or log.peak_memory()


if __name__ == '__main__':
    cli.run(check_gpu)
