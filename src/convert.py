#!/usr/bin/env python3
"""Converts models to and from Hugging Face's format."""
from command_line import cli
from command_line.flags import ExportFlags

from storage import paths


@cli.takes(ExportFlags)
def to_hf(flags):
    """Writes a model or run into a folder that transformers reads."""
    cli.write_model(flags, 'hugging_face')


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


COMMANDS = {'to_hf': to_hf, 'from_hf': from_hf}

if __name__ == '__main__':
    cli.run(COMMANDS)
