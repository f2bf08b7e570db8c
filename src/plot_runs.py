#!/usr/bin/env python3
"""Draws the losses of runs in one picture, from their metrics.jsonl."""
import os
from dataclasses import dataclass

from command_line import cli
from command_line.flags import REQUIRED, Checked, flag

from errors import require, require_package
from storage import metrics_file, paths

FORGETS = 0.99  # as the mean that training shows beside the loss
STYLE: dict = {'svg.fonttype': 'none', 'svg.hashsalt': 'loss', 'path.simplify_threshold': 0.5}
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000')  # Okabe & Ito 2008
DASHES = ('-', '--', ':', '-.')  # once all colours are used


@dataclass(frozen=True)
class Flags(Checked):
    """Draws training loss, its running mean and validation loss of runs over their updates, by matplotlib."""
    runs: tuple[str, ...] = flag(REQUIRED, 'names in checkpoint_dir, or paths with a /')
    output: str = flag('runs.svg', 'the picture, an .svg or .png')
    checkpoint_dir: str = flag('checkpoint', 'where runs are')

    def __post_init__(self):
        super().__post_init__()
        self.check('output', self.output.endswith(('.svg', '.png')), 'a name that ends in .svg or .png')


@cli.takes(Flags)
def plot_runs(flags):
    require_package('matplotlib', 'drawing')
    curves = {name: losses(paths.expand(name) if os.path.dirname(name)
                           else paths.run_dir(name, flags.checkpoint_dir)) for name in flags.runs}
    with paths.output(paths.expand(flags.output), 'wb') as file:
        picture(curves).savefig(file, format=flags.output[-3:], metadata={'Date': None})
    print(f'Made {flags.output}')


def losses(folder):  # -> {update: loss}, of training and of validation, in nats a token
    require(os.path.exists(os.path.join(folder, metrics_file.NAME)),
            f'{folder} has no {metrics_file.NAME}; give a run that train.py of this version has trained')
    curves = {'loss': {}, 'val_loss': {}}
    for _, values in metrics_file.read(folder):
        for tag in curves.keys() & values.keys():
            curves[tag][values['step']] = values[tag]
    return curves.values()


def running_mean(values):
    """The mean of each value and those before it, each of which counts FORGETS times as much as the next."""
    total = count = 0.0
    for value in values:
        total, count = FORGETS * total + value, FORGETS * count + 1
        yield total / count


def picture(curves):  # {name: the dicts of losses} -> matplotlib's Figure
    import matplotlib.figure
    matplotlib.rcParams.update(STYLE)
    figure = matplotlib.figure.Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    for i, (name, (training, validation)) in enumerate(curves.items()):
        name = name.replace('$', r'\$')  # no formula
        dashes, colour = divmod(i, len(COLOURS))
        look: dict = {'color': COLOURS[colour], 'linestyle': DASHES[dashes % len(DASHES)]}
        updates, values = training.keys(), training.values()
        axes.plot(updates, values, linewidth=0.6, alpha=0.25, **look)
        axes.plot(updates, [*running_mean(values)], label=f'training of {name}, running mean', **look)
        if validation:
            axes.plot(validation.keys(), validation.values(), marker='o', markersize=5, linewidth=0.8,
                      label=f'validation of {name}', **look)
    axes.set(xlabel='updates', ylabel='loss, nats a token')
    axes.grid(color='0.9')
    axes.legend()
    return figure


if __name__ == '__main__':
    cli.run(plot_runs)
