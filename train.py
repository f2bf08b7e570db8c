#!/usr/bin/env python3
"""Fine-tunes a model on text in one process: ./train.py --dataset FILE|DIRECTORY|GLOB [flags], see --help.

    ./train.py --dataset novels/ --model_name 124M --run_name novels
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), 'src'))

from command_line import cli
from command_line.flags import TrainFlags


@cli.flags_from(TrainFlags)
def train(**given):
    flags = TrainFlags(**given)
    cli.load_tensorflow()
    with cli.default_signal_handlers():
        from training import trainer
    trainer.train(flags)


if __name__ == '__main__':
    cli.run(train)
