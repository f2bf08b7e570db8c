"""The part of one process among several that train together."""
import dataclasses
import sys

from errors import InputError


@dataclasses.dataclass
class Worker:
    """A process alone; a subclass joins several. All ranks call a method at the same point, with values of
    JSON's types; only rank 0 writes and prints."""
    rank: int = 0
    size: int = 1
    gpu: int | None = None  # the only one to use
    threads: int = 0  # of an operation; 0: one a core

    def gather(self, value):  # -> list of all ranks' values
        return [value]

    def broadcast(self, session, variables):
        """Gives variables the values of rank 0."""

    def reduce(self, grads):  # -> their means over all ranks
        return grads

    def is_peer_failure(self, error):  # of another process
        return False

    def run_everywhere(self, function):
        """The result of function(). An InputError of one rank ends all."""
        result = error = None
        try:
            result = function()
        except InputError as raised:
            error = str(raised)
        for rank, message in enumerate(self.gather(error)):
            if message:
                self.abort(f'rank {rank}: {message}' if rank else message)
        return result

    def run_on_rank0(self, function):
        """The result of rank 0, which alone calls function()."""
        return self.gather(self.run_everywhere(function if self.rank == 0 else lambda: None))[0]

    def check_same(self, values: dict):
        """Ends all ranks where their values differ."""
        first, *others = self.gather(values)
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    self.abort(f'{name} is {value!r} on rank 0, but {other[name]!r} on rank {rank}')

    def abort(self, message: str):
        """Ends all ranks with status 2; rank 0 prints the message."""
        if self.rank == 0:
            raise InputError(message)
        sys.exit(2)
