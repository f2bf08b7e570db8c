"""The one exception for unusable input."""


class InputError(ValueError):
    """A user's mistake, in one line; other exceptions are faults of this code."""


def require(condition, message):
    """The condition. Raises InputError(message) unless it holds."""
    if not condition:
        raise InputError(message)
    return condition
