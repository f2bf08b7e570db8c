#!/usr/bin/env python3
"""Converts models and adapters to and from Hugging Face's formats, and merges an adapter into a model."""
from command_line import cli
from command_line.flags import FromPeftFlags

from storage import paths

to_hf = cli.writer('Writes a model or run into a folder that transformers reads.', 'formats.hugging_face')
to_peft = cli.writer("Writes a run's adapter into a folder that peft reads.", 'formats.peft')
merge = cli.writer('Makes a model of a run, with its adapter in the weights.', 'storage.new_model', 'merge',
                   for_tensorflow=True)


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
