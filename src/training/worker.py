"""One process of several that train together."""
import dataclasses
import sys

from errors import InputError


@dataclasses.dataclass
class Worker:
    """A process alone; a subclass joins several. All ranks call a method at the same point, with JSON values;
    only rank 0 writes and prints."""
    rank: int = 0
    size: int = 1
    gpu: int | None = None  # the only one to use
    threads: int = 0  # of an operation; 0: one a core

    def gather(self, value):  # -> all ranks' values
        return [value]

    def broadcast(self, session, variables):
        """Gives variables rank 0's values."""

    def reduce(self, grads):  # -> means over all ranks
        return grads

    def is_of_peer(self, error):  # of another process
        return False

    def run_on_all(self, function):  # -> its result; an InputError of one rank ends all
        result = error = None
        try:
            result = function()
        except InputError as raised:
            error = str(raised)
        for rank, message in enumerate(self.gather(error)):
            if message:
                self.abort(f'rank {rank}: {message}' if rank else message)
        return result

    def run_on_rank0(self, function):  # -> the result of rank 0, which alone calls it
        return self.gather(self.run_on_all(function if self.rank == 0 else lambda: None))[0]

    def check_same(self, values: dict):  # ends all ranks where they differ
        first, *others = self.gather(values)
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    self.abort(f'{name} is {value!r} on rank 0, but {other[name]!r} on rank {rank}')

    def abort(self, message: str):  # ends all ranks with status 2; rank 0 prints it
        if self.rank == 0:
            raise InputError(message)
        sys.exit(2)
