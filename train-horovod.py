#!/usr/bin/env python3
"""Fine-tunes a model in many processes, which Horovod joins: train.py's flags, and two more.

    mpirun -np 4 ./train-horovod.py --dataset novels.npz
    horovodrun -np 4 --gloo ./train-horovod.py --dataset novels.npz
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), 'src'))

from command_line import cli
from command_line.flags import HorovodFlags
from errors import require


@cli.flags_from(HorovodFlags)
def train(**given):
    flags = HorovodFlags(**given)
    cli.load_tensorflow()
    try:
        with cli.default_signal_handlers():
            from training import horovod_worker, trainer
    except ModuleNotFoundError as error:
        require((error.name or '').partition('.')[0] != 'horovod', 'Horovod is not installed for this '
                'Python: make horovod installs it into .venv; or use ./train.py, which trains in one process')
        raise
    with horovod_worker.started(flags.compression, flags.timeout) as worker:
        trainer.train(flags, worker)


if __name__ == '__main__':
    cli.run(train)
