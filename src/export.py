#!/usr/bin/env python3
"""Writes a model for TensorFlow Serving, and for TensorFlow without this code: ./src/export.py MODEL_OR_RUN OUT."""
import cli
import paths


def export(model_name: str, out: str, models_dir: str = 'models', checkpoint: str | None = None):
    """Writes a SavedModel with the signatures `logits` and `generate`; README.md shows how they are called.

    Args:
        model_name: a directory of models_dir; of a training run with --models_dir checkpoint.
        out: the new folder. TensorFlow Serving wants its name to be a number, the version: served/gpt2/1.
        models_dir: where models are.
        checkpoint: one of the model's checkpoints, such as model-best or model-1000; None for the newest.
    """
    out = paths.expand(out)
    with paths.making(out) as folder:
        cli.load_tensorflow()
        import saved_model
        prefix = saved_model.write(folder, model_name, models_dir, checkpoint)
    print(f'Wrote {prefix} to {out}')


if __name__ == '__main__':
    cli.run(export)
