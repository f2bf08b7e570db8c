"""The JSON files of a run: dataclasses that check types and ranges when they are made, under a checksum."""
import dataclasses
import json
import re
import sys
import zlib

MAX_COUNT = 10**15  # more than any run has updates or windows
BEST = 'model-best'
FORMER_NAMES = {'worse': 'validations_since_best', 'acted': 'actions_done'}  # of fields, in older files


def is_count(value):
    return type(value) is int and 0 <= value < MAX_COUNT


def is_seed(value):
    return type(value) is int and value >= 0


def is_number(value):  # neither infinite nor NaN
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_pair(value):
    return type(value) is list and len(value) == 2 and is_number(value[0]) and is_number(value[1])


def is_best(value):
    return is_pair(value) and is_count(value[1])


def is_name(value):
    return type(value) is str and re.fullmatch(f'{BEST}-[0-9]{{1,15}}', value)


def is_dict(value):
    return type(value) is dict


COUNT = (is_count, f'a whole number below {MAX_COUNT}')
CHECKS = {  # field -> function, what it expects
    'step': COUNT, 'position': COUNT, 'tokens': COUNT, 'validations_since_best': COUNT, 'actions_done': COUNT,
    'seed': (is_seed, 'a whole number, 0 or more'), 'loss': (is_number, 'a number'),
    'average': (is_pair, 'two numbers'), 'best': (is_best, 'a loss and its step'),
    'name': (is_name, f'{BEST}-<step>'), 'flags': (is_dict, 'an object')}


class Checked:
    def __post_init__(self):
        """Raises ValueError for a value of another type or range; None is allowed where it is the default."""
        for name, value in vars(self).items():
            is_valid, expected = CHECKS[name]
            is_optional = getattr(type(self), name, '') is None
            if not (is_valid(value) or (is_optional and value is None)):
                raise ValueError(f'"{name}" is {value!r:.40}, expected {expected}')


@dataclasses.dataclass
class TrainState(Checked):
    """training-N.json: all that a run needs, besides tensors, to go on as if it had never stopped."""
    step: int  # updates applied
    position: int = 0  # windows drawn by all ranks
    seed: int | None = None
    tokens: int | None = None  # of training data
    loss: float | None = None  # of the last update
    average: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0])  # of losses: sum, weight
    best: list | None = None  # the lowest validation loss, its step
    validations_since_best: int = 0
    actions_done: int = 3  # at this step, of validation, samples and checkpoint
    flags: dict = dataclasses.field(default_factory=dict)  # for people to read


@dataclasses.dataclass
class Best(Checked):
    """model-best.json: the checkpoint with the lowest validation loss."""
    step: int
    loss: float
    name: str


def with_crc(values):
    """The dict with a checksum of itself, under the name crc32."""
    return {'crc32': zlib.crc32(json.dumps(values).encode()), **values}


def check_crc(values):
    """The dict that with_crc was given. Raises ValueError for another one. Older files, which begin with the
    step, have no checksum."""
    if type(values) is not dict:
        raise ValueError('it is no object')
    content = {name: value for name, value in values.items() if name != 'crc32'}
    if list(values)[:1] != ['step'] and values != with_crc(content):
        raise ValueError('its checksum is another')
    return content


def to_json(state: TrainState | Best) -> str:
    """The text of the state's file."""
    return json.dumps(with_crc(dataclasses.asdict(state)))


def from_json(kind, text):  # TrainState or Best, bytes -> an instance of it
    """Raises ValueError or RecursionError for what to_json has not written. Unknown names are left out."""
    fields = {field.name for field in dataclasses.fields(kind)}
    content = {FORMER_NAMES.get(name, name): value for name, value in check_crc(json.loads(text)).items()}
    try:
        return kind(**{name: value for name, value in content.items() if name in fields})
    except TypeError as error:  # a field is missing
        raise ValueError(error) from None
