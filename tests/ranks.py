"""What tests of several processes start in each of them: ranks.py NAME ARGUMENT, a function below and what
it takes."""

import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, 'src'), os.path.join(ROOT, 'tests')]


def runs(path):
    """Trains once for each of the flags in a JSON file, all with the same processes."""
    from command_line.flags import HorovodFlags

    from training import horovod_worker, trainer
    with open(path) as file:
        several = json.load(file)
    for flags in several:
        flags = HorovodFlags(**flags)
        with horovod_worker.started(flags.compression, flags.timeout) as worker:
            trainer.train(flags, worker)


def raises(path):
    """As runs, but rank 1 raises in its fifth update."""
    from training import trainer
    draw = trainer.Data.next_batch

    def fails(self):
        if self.worker.rank == 1 and self.position >= 8:
            raise ZeroDivisionError('from within')
        return draw(self)
    trainer.Data.next_batch = fails
    runs(path)


def disagrees(path):
    """As runs, but with another learning rate on rank 1."""
    from command_line import flags
    made = flags.HorovodFlags.__post_init__

    def other(self):
        made(self)
        if os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('HOROVOD_RANK')) == '1':
            object.__setattr__(self, 'learning_rate', 0.5)
    flags.HorovodFlags.__post_init__ = other
    runs(path)


def disagrees_in_data(path):
    """As runs, but rank 1 reads another token in one place."""
    from training import trainer
    read = trainer.Data.chunks

    def other(self, path):
        chunks = read(self, path)
        if self.worker.rank == 1:
            chunks[0] = chunks[0][::-1]
        return chunks
    trainer.Data.chunks = other
    runs(path)


def works_alone(path):
    """As runs, but rank 0 encodes, validates, samples and saves for longer than --timeout, and rank 2 sends
    no UDP."""
    import time

    from training import data, horovod_worker, trainer
    with open(path) as file:
        seconds = 1.25 * json.load(file)[0]['timeout']

    def slow(function):
        def works(*given):
            end = time.monotonic() + seconds * (horovod_worker.hvd.rank() == 0)
            while time.monotonic() < end:  # with Python's lock, which other threads get now and then
                sum(range(100))
            return function(*given)
        return works
    data.encode_to_npz = slow(data.encode_to_npz)
    for name in ('val_loss', 'sample', 'save'):
        setattr(trainer.Trainer, name, slow(getattr(trainer.Trainer, name)))
    prepare = horovod_worker.Watch.__init__

    def mute(self, worker, *arguments):
        prepare(self, worker, *arguments)
        if worker.rank == 2:
            self.places = []
    horovod_worker.Watch.__init__ = mute
    runs(path)


if __name__ == '__main__':
    from command_line import cli
    functions = {function.__name__: function
                 for function in (runs, raises, disagrees, disagrees_in_data, works_alone)}

    def main(name: str, path: str):
        cli.load_tensorflow()
        functions[name](path)
    cli.run(main)
