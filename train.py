#!/usr/bin/env python3
"""Fine-tunes a model on text: ./train.py --dataset novels/ --model_name 124M."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), 'src'))

from command_line import cli
from command_line.flags import TrainFlags


@cli.takes(TrainFlags)
def train(flags):
    with cli.load_tensorflow():
        from training import trainer
    trainer.train(flags)


if __name__ == '__main__':
    cli.run(train)
