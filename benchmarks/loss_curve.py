#!/usr/bin/env python3
"""Draws the losses of a training run, as TensorBoard has them: ./benchmarks/loss_curve.py demo loss.svg

Needs matplotlib (tests/requirements.txt).
"""
import glob
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', 'src'))

from command_line import cli

from errors import InputError, require
from storage import paths

FORGETS = 0.99  # as the mean that training shows beside the loss
STYLE = {'svg.fonttype': 'none', 'svg.hashsalt': 'loss', 'font.family': 'sans-serif',
         'path.simplify_threshold': 0.5}


def draw(run_name: str, out: str, checkpoint_dir: str = 'checkpoint'):
    """Draws training loss, its running mean and validation loss of a run over its updates.

    Args:
        run_name: a directory of checkpoint_dir.
        out: the picture, an .svg or .png.
        checkpoint_dir: where runs are.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError('drawing needs the package matplotlib: pip install matplotlib') from None
    require(out.endswith(('.svg', '.png')), f'OUT must end in .svg or .png, not {out!r}')
    directory = paths.run_dir(run_name, checkpoint_dir)
    files = sorted(glob.glob(os.path.join(glob.escape(directory), 'events.out.tfevents.*')))
    require(files, f'no TensorBoard events in {directory}; give a run that train.py has begun')
    cli.load_tensorflow()
    matplotlib.use('agg')
    matplotlib.rcParams.update(STYLE)
    figure = picture(run_name, *losses(files))
    with paths.output(out, 'wb') as file:
        figure.savefig(file, format=out[-3:], metadata={'Date': None} if out.endswith('.svg') else None)


def losses(files):  # -> {update: loss}, of training and of validation, in nats a token
    """What event files say, given in the order of their sessions.

    What a session logged after the save from which the next one went on is left out.
    """
    import tensorflow.compat.v1 as tf
    curves = {'loss': {}, 'val_loss': {}}
    for path in files:
        for event in tf.train.summary_iterator(path):
            if event.session_log.status == tf.SessionLog.START:
                curves = {tag: {step: loss for step, loss in curve.items() if step <= event.step}
                         for tag, curve in curves.items()}
            for value in event.summary.value:
                if value.tag in curves:
                    curves[value.tag][event.step] = value.simple_value
    return curves['loss'], curves['val_loss']


def running_mean(values):
    """The mean of each value and those before it, each of which counts FORGETS times as much as the next."""
    total = count = 0.0
    for value in values:
        total, count = FORGETS * total + value, FORGETS * count + 1
        yield total / count


def picture(name, training, validation):
    """A matplotlib Figure; told apart by width, dashes and marks, so that it needs no colour."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    axes.plot(*columns(training), color='0.75', linewidth=0.6, label='training, each update')
    axes.plot(list(training), list(running_mean(training.values())), color='black', linewidth=1.5,
              label='training, running mean')
    axes.plot(*columns(validation), 'o--', color='tab:blue', markersize=5, label='validation')
    axes.set(xlabel='updates', ylabel='loss, nats a token', title=f'Training of the run {name}')
    axes.grid(color='0.9')
    axes.legend()
    return figure


def columns(series):  # {x: y} -> [x, …], [y, …]
    return list(series), list(series.values())


if __name__ == '__main__':
    cli.run(draw)
