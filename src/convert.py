#!/usr/bin/env python3
"""Converts models to and from the format of Hugging Face's transformers. ./src/convert.py --help

    ./src/convert.py to_hf novels novels-hf/
    ./src/convert.py from_hf novels-hf/ novels2
"""
from command_line import cli
from command_line.flags import ExportFlags
from storage import paths


@cli.flags_from(ExportFlags)
def to_hf(*args, **flags):
    """Writes a model, or a training run's, into a folder that transformers and readers of its format take."""
    def write(folder, directory, checkpoint):
        from formats import hugging_face
        return hugging_face.write(folder, directory, checkpoint)
    cli.write_model(ExportFlags(*args, **flags), write)


def from_hf(directory: str, name: str, models_dir: str = 'models'):
    """Makes a model of models_dir from a folder in the format of transformers, with weights in safetensors.

    Args:
        directory: the folder, which holds config.json, the vocabulary and the weights.
        name: the new directory below models_dir, which must not exist yet.
        models_dir: where models are.
    """
    target = paths.for_tensorflow(paths.child(models_dir, name, 'NAME'))
    paths.check_new(target)
    cli.load_tensorflow(computes=False)
    from formats import hugging_face
    with paths.making(target) as folder:
        hparams = hugging_face.read(directory, folder)
    print(f'Made {target}: {hparams.n_parameters():,} parameters')


COMMANDS: dict[str, cli.Function] = {'to_hf': to_hf, 'from_hf': from_hf}

if __name__ == '__main__':
    cli.run(COMMANDS)
