#!/usr/bin/env python3
"""Writes a model for TensorFlow Serving, and for TensorFlow without this code: ./src/export.py MODEL_OR_RUN OUT."""
import cli
import paths


def export(model_or_run: str, out: str, models_dir: str = 'models', checkpoint_dir: str = 'checkpoint',
           checkpoint: str | None = None):
    """Writes a SavedModel with the signatures `logits` and `generate`; README.md shows how they are called.

    Args:
        model_or_run: the name of a directory of models_dir or checkpoint_dir, or the path of one.
        out: the new folder. TensorFlow Serving wants its name to be a number, the version: served/gpt2/1.
        models_dir: where models are.
        checkpoint_dir: where runs are.
        checkpoint: one of the model's or run's checkpoints, such as model-best or model-1000, or the path of any; None
            for the newest.
    """
    out = paths.expand(out)
    paths.check_new(out)
    directory = paths.model_or_run(model_or_run, models_dir, checkpoint_dir)
    cli.load_tensorflow()
    import saved_model
    with paths.making(out) as folder:
        prefix = saved_model.write(folder, directory, checkpoint)
    print(f'Wrote {prefix} to {out}')


if __name__ == '__main__':
    cli.run(export)
