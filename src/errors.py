"""The one exception for input that cannot be used."""


class InputError(ValueError):
    """A user's mistake in one line, with which a script ends; other exceptions are faults of this code."""


def require(condition, message: str):
    """The condition, if it holds; else raises InputError(message)."""
    if not condition:
        raise InputError(message)
    return condition
