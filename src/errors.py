"""The one exception that means "what the caller gave cannot be used"."""
import typing

T = typing.TypeVar('T')


class InputError(ValueError):
    """A mistake in what was given: a flag, a file, a token, a size.

    Its message is one line that names the thing, what was expected, what came, and the remedy; the scripts print it
    without a traceback and exit with status 2. Everything else that is raised is a fault of this code.
    """


def require(condition: T | None, message: str) -> T:
    """The condition, where it holds, as what is looked for and must be there. Raises InputError(message) if not."""
    if not condition:
        raise InputError(message)
    return condition
