"""What is kept of a run in JSON: its types and ranges, and a checksum of it."""
import json
import re
import sys
import zlib

LARGEST = 10**15  # more than any run has updates or windows
BEST = 'model-best'


def is_count(value):
    return type(value) is int and 0 <= value < LARGEST


def is_number(value):  # nor infinite, nor not a number
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_list(value, *checks):
    return type(value) is list and len(value) == len(checks) and all(
        check(entry) for check, entry in zip(checks, value, strict=True))


COUNT = (is_count, f'a whole number below {LARGEST}')
STATE = {  # what may be read of training-N.json and model-best.json: name -> (check, what it wants)
    'step': COUNT, 'position': COUNT, 'tokens': COUNT, 'worse': COUNT, 'acted': COUNT,
    'seed': (lambda value: type(value) is int and value >= 0, 'a whole number, 0 or more'),
    'loss': (lambda value: value is None or is_number(value), 'a number or null'),
    'average': (lambda value: is_list(value, is_number, is_number), 'two numbers'),
    'best': (lambda value: value is None or is_list(value, is_number, is_count), 'a loss and its step, or null'),
    'name': (lambda value: type(value) is str and re.fullmatch(f'{BEST}-[0-9]{{1,15}}', value), f'{BEST}-<step>'),
}


def sealed(state):
    """The state with a checksum of itself, under the name crc32."""
    return {'crc32': zlib.crc32(json.dumps(state).encode()), **state}


def unsealed(values):
    """The state that sealed was given. Raises ValueError where it is another, or has a value that STATE does not want.

    Earlier versions saved it as it is, beginning with the step.
    """
    if not isinstance(values, dict) or 'step' not in values:
        raise ValueError('it is no object with a "step"')
    state = {name: value for name, value in values.items() if name != 'crc32'}
    if next(iter(values)) != 'step' and values != sealed(state):
        raise ValueError('its checksum is another')
    for name, (check, wanted) in STATE.items():
        if name in state and not check(state[name]):
            raise ValueError(f'"{name}" is {state[name]!r:.40}, expected {wanted}')
    return state
