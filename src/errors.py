"""The one exception for unusable input."""
import importlib.util


class InputError(ValueError):
    """A user's mistake, in one line; other exceptions are faults of this code."""


def require(condition, message):
    """The condition. Raises InputError(message) unless it holds."""
    if not condition:
        raise InputError(message)
    return condition


def require_package(name, user):  # which requirements.txt does not have; raises InputError
    spec = importlib.util.find_spec(name)  # without origin: the folder that wandb makes for its logs
    require(spec and spec.origin, f'{user} needs the package {name}: pip install {name}')
