#!/usr/bin/env python3
"""train.py in many processes, joined by Horovod: mpirun -np 4 ./train-horovod.py --dataset novels.npz."""
import importlib.util
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), 'src'))

from command_line import cli
from command_line.flags import HorovodFlags

from errors import require


@cli.takes(HorovodFlags)
def train(flags):
    require(importlib.util.find_spec('horovod'), 'Horovod is not installed: make horovod, or use ./train.py')
    with cli.load_tensorflow():
        from training import horovod_worker, trainer
    with horovod_worker.started(flags.compression, flags.timeout) as worker:
        trainer.train(flags, worker)


if __name__ == '__main__':
    cli.run(train)
