"""The part of one process among several that train together."""
import dataclasses
from collections.abc import Callable

from errors import InputError


@dataclasses.dataclass
class Worker:
    """A process alone; a subclass joins several. All ranks call a method at the same point; only rank 0
    writes and prints. Values that ranks exchange are of JSON's types."""
    rank: int = 0
    size: int = 1
    gpu: int | None = None  # the number of the only one to use
    threads: int = 0  # for an operation; 0 for one a core

    def gather(self, value) -> list:
        """The values of all ranks."""
        return [value]

    def run_everywhere(self, function: Callable):
        """The result of function() on this rank. An InputError of one rank is raised on all."""
        return function()

    def run_on_rank0(self, function: Callable):
        """The result of function() on rank 0, which alone calls it. Its InputError is raised on all."""
        return function()

    def check_same(self, function: Callable[[], dict]):
        """Aborts where the dicts that function() returns differ between ranks."""

    def abort(self, message: str):
        """Raises InputError, which all ranks do at the same point, and one of them prints."""
        raise InputError(message)

    def broadcast(self, session, variables):
        """Gives the variables the values of rank 0."""

    def reduce(self, gradients):  # list of tensors -> list of their means over all ranks
        return gradients

    def is_peer_failure(self, error: BaseException) -> bool:
        """Whether the error comes of another process's end, so that an update may be incomplete."""
        return False
