#!/usr/bin/env python3
"""Writes a model for TensorFlow (Serving) without this code."""
from command_line import cli
from command_line.flags import ExportFlags

from storage import paths


@cli.takes(ExportFlags)
def export(flags):
    """Writes a SavedModel with the signatures `logits` and `generate`; docs/formats.md shows calls.

    TensorFlow Serving wants OUT's name to be a number, the version: served/gpt2/1.
    """
    paths.for_tensorflow(paths.expand(flags.out))
    cli.write_model(flags, 'formats.saved_model')


if __name__ == '__main__':
    cli.run(export)
