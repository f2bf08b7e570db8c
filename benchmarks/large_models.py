#!/usr/bin/env python3
"""What larger sizes take, with random weights: an update with Adafactor and memory saving, a start in int8.

    ./benchmarks/large_models.py
    ./benchmarks/large_models.py --sizes 774M
"""
import tempfile

import measure  # before the project's own: it makes their import possible

from command_line import cli

import random_model
import table
import training_speed

AIMS = {'774M': (7, 15), '1558M': (13, 25)}  # GB of training, seconds from the shell to ten tokens
BYTES = 1.5  # a parameter, sampling in int8


def large_models(sizes: str = '774M,1558M'):
    """Prints a table of seconds and peak memory; some twelve minutes, 12 GB of memory and 7 of the disk.

    Args:
        sizes: of 124M, 355M, 774M and 1558M, one or several with commas between.
    """
    table.show(lambda: rows(sizes))


def rows(sizes='774M,1558M'):
    for size in random_model.sizes_of(sizes):
        memory, start = AIMS.get(size, (None, None))
        with tempfile.TemporaryDirectory(prefix='benchmark-') as directory:
            random_model.make(directory, size)
            work = f'training {size}, 1 × 1,024 tokens, float32, adafactor, memory_saving_gradients'
            with measure.children((update, {'directory': directory, 'size': size})) as (child,):
                try:
                    seconds = child.step()
                except RuntimeError as error:  # too little memory
                    yield table.Row(work, None, None, 's', note=f'{size}: {error}')
                    return
            yield table.Row(f'{work}: an update', seconds, None, 's')
            yield table.Row(f'{work}: peak memory (peer: the aim)', child.peak, memory, 'GB', most=1)
            seconds, peak = measure.run_script(
                'src/interactive_conditional_samples.py', '--models_dir', directory, '--model_name', size,
                '--precision', 'int8', '--prompt', 'The lighthouse', '--length', '10')
            work = f'{size}, int8, from the shell to ten tokens'
            yield table.Row(f'{work} (peer: the aim)', seconds, start, 's', most=1)
            n = random_model.hparams(size).n_parameters()
            yield table.Row(f'{work}: peak memory (peer: the aim)', peak, BYTES * n / 1e9, 'GB', most=1)


def update(directory, size):
    """Its seconds; the process needs no more memory for a later one."""
    with training_speed.prepared(directory, size, optimizer='adafactor',
                                 memory_saving_gradients=True) as run:
        yield from measure.seconds(run.update, warm_up=1)


if __name__ == '__main__':
    cli.run(large_models)
