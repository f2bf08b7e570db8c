"""Runs of a toy model, what they leave, and helpers for several test files."""
import glob
import json
import os
import pathlib
import sys

import numpy as np
import tensorflow.compat.v1 as tf

from storage import checkpoint, run_folder
from training import trainer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def silent(line):
    pass


def values(session, variables=None):
    return {v.op.name: session.run(v) for v in variables or checkpoint.model_variables()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name in actual:
        np.testing.assert_array_equal(actual[name], expected[name])


def a_run(toy_model, tmp_path):
    return new_run(toy_model, tmp_path / 'run')


def new_run(toy_model, directory):
    directory.mkdir(parents=True, exist_ok=True)
    return run_folder.Run(str(directory), toy_model[0])


def stored(prefix):
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def raise_(error):
    raise error


def final(flags):
    """Everything that the newest checkpoint of a run holds: weights, optimizer and state."""
    directory = os.path.join(flags.checkpoint_dir, flags.run_name)
    prefix = tf.train.latest_checkpoint(directory)
    training = prefix.replace('/model-', '/training-')
    tensors = {}
    for path in (prefix, training):
        reader = tf.train.load_checkpoint(path)
        tensors.update(
            {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map()}
        )
    with open(f'{training}.json') as file:
        state = json.load(file)
    return tensors, {name: state[name] for name in ('step', 'position', 'seed', 'loss', 'average')}


def events(flags, tag):
    """{step: value} of a TensorBoard tag, the last value where a step was logged twice."""
    values = {}
    for path in sorted(glob.glob(os.path.join(flags.checkpoint_dir, flags.run_name, 'events*'))):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                if value.tag == tag:
                    values[event.step] = value.simple_value
    return values


class OneRank(trainer.Worker):
    """One of several ranks without the others."""
    def run_on_rank0(self, function):
        return function()


def at_step_5(monkeypatch, action):
    at_step(monkeypatch, {5: action})


def at_step(monkeypatch, actions):  # {step: function}
    log = trainer.log.Log.update

    def update(self, step, *values, **scalars):
        log(self, step, *values, **scalars)
        actions.get(step, lambda: None)()
    monkeypatch.setattr(trainer.log.Log, 'update', update)


def command_of(flags):
    return [sys.executable, os.path.join(ROOT, 'train.py'),
            *(f'--{name}={value}' for name, value in vars(flags).items() if value is not None)]


def newest(directory):
    """The step of the committed checkpoint, 0 where there is none."""
    prefix = tf.train.latest_checkpoint(directory)
    return int(prefix.rpartition('-')[2]) if prefix else 0


def weights_of(directory, name):
    reader = tf.train.load_checkpoint(checkpoint.files_prefix(os.path.join(directory, name)))
    return {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map()}


def everything_of(flags):
    """What is left of a run at its end, and its losses of validation."""
    directory = os.path.join(flags.samples_dir, flags.run_name)
    with open(os.path.join(flags.checkpoint_dir, flags.run_name, 'training-8.json')) as file:
        state = json.load(file)
    samples = {
        name: pathlib.Path(directory, name).read_text(encoding='utf-8') for name in os.listdir(directory)
    }
    return (final(flags), samples, events(flags, 'val_loss'),
            {name: state[name] for name in ('best', 'validations_since_best', 'actions_done')})
