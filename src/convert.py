#!/usr/bin/env python3
"""Converts models and adapters to and from Hugging Face's formats, and merges an adapter into a model."""
from command_line import cli
from command_line.flags import ExportFlags, FromPeftFlags

from storage import paths


@cli.takes(ExportFlags)
def to_hf(flags):
    """Writes a model or run into a folder that transformers reads."""
    cli.write_model(flags, 'formats.hugging_face')


@cli.takes(ExportFlags)
def to_peft(flags):
    """Writes a run's adapter into a folder that peft reads."""
    cli.write_model(flags, 'formats.peft')


@cli.takes(ExportFlags)
def merge(flags):
    """Makes a model of a run, with its adapter in the weights."""
    paths.for_tensorflow(paths.expand(flags.out))
    cli.write_model(flags, 'storage.new_model', 'merge')


def from_hf(directory: str, name: str, models_dir: str = 'models'):
    """Makes a model from a folder of transformers, with safetensors.

    Args:
        directory: has config.json, vocabulary and weights.
        name: of the new model.
        models_dir: where models are.
    """
    target = paths.for_tensorflow(paths.child(models_dir, name, 'NAME'))
    with cli.load_tensorflow(computes=False):
        from formats import hugging_face
    with paths.making(target) as folder:
        hparams = hugging_face.read(directory, folder)
    print(f'Made {target}: {hparams.n_parameters():,} parameters')


@cli.takes(FromPeftFlags)
def from_peft(flags):
    """Makes a run of an adapter of peft, with safetensors."""
    target, model = paths.run_dir(flags.name, flags.checkpoint_dir), flags.find_model(flags.model_name)
    with cli.load_tensorflow(computes=False):
        from formats import peft
    with paths.making(target) as folder:
        own = peft.read(flags.directory, model, folder, target, flags.models_dir)
    print(f'Made {target}: {own}')


COMMANDS = {'to_hf': to_hf, 'from_hf': from_hf, 'to_peft': to_peft, 'from_peft': from_peft, 'merge': merge}

if __name__ == '__main__':
    cli.run(COMMANDS)
