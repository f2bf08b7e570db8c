"""The one exception for input that cannot be used."""
import typing

T = typing.TypeVar('T')


class InputError(ValueError):
    """A mistake in a flag, a file, a token or a size that the user gave.

    Its message is one line that names the thing, what was expected, what came, and the remedy. A script
    prints it and exits with status 2. Every other exception is a fault of this code.
    """


def require(condition: T | None, message: str) -> T:
    """The condition, if it holds; else raises InputError(message), which is made in either case."""
    if not condition:
        raise InputError(message)
    return condition
