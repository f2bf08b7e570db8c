#!/usr/bin/env python3
"""Writes a model for TensorFlow (Serving) without this code."""
from command_line import cli

HELP = """Writes a SavedModel with the signatures `logits` and `generate`; docs/formats.md shows calls.

TensorFlow Serving wants OUT's name to be a number, the version: served/gpt2/1."""

export = cli.writer(HELP, 'formats.saved_model', for_tensorflow=True)

if __name__ == '__main__':
    cli.run(export)
