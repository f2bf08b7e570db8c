"""A run's JSON files: dataclasses under a checksum, with checked types and ranges."""
import dataclasses
import json
import os
import re
import sys
import zlib

from errors import InputError
from storage import paths

BEST, ADAPTER = 'model-best', 'adapter.json'
OLD_NAMES = {'worse': 'validations_since_best', 'acted': 'actions_done'}  # of fields
REMEDY = 'remove it to go on with the weights alone'
ATTN, MLP = ('attn/c_attn', 'attn/c_proj'), ('mlp/c_fc', 'mlp/c_proj')
TARGETS = {  # adapted products of each layer; the last two as target_modules of peft
    'attn': ATTN, 'mlp': MLP, 'all': ATTN + MLP, 'c_attn': ATTN[:1], 'c_attn+c_proj': (*ATTN, MLP[1])}


@dataclasses.dataclass
class TrainState:
    """training-N.json: all that a run needs to go on, but tensors."""
    step: int  # updates applied
    position: int = 0  # windows drawn by all ranks
    seed: int | None = None
    tokens: int | None = None  # of training data
    loss: float | None = None  # of the last update
    average: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.0])  # of losses: sum, weight
    best: list | None = None  # the lowest validation loss, its step
    validations_since_best: int = 0
    actions_done: int = 3  # at this step: Trainer.act
    flags: dict = dataclasses.field(default_factory=dict)  # for people


@dataclasses.dataclass
class Best:
    """model-best.json: the checkpoint with the lowest validation loss."""
    step: int
    loss: float
    name: str


@dataclasses.dataclass
class Adapter:
    """adapter.json, beside checkpoints of an adapter alone (LoRA, Hu et al. 2021): a weight W [n_in, n_out]
    of the base becomes W + alpha / rank · A B."""
    rank: int
    alpha: float
    targets: str  # of TARGETS
    base: str  # the name of its folder
    fingerprint: str  # of its checkpoint

    def __str__(self):
        return (f'an adapter of {self.base} ({self.fingerprint}) with --lora_rank {self.rank} '
                f'--lora_alpha {self.alpha} --lora_targets {self.targets}')

    @property
    def scale(self):
        return self.alpha / self.rank

    def shapes(self, weights):
        """{name: shape} of all weights -> of lora_a, A [n_in, rank], and lora_b, B [rank, n_out]."""
        shapes = {}
        for name, shape in weights.items():
            scope = name.removesuffix('/w')
            if scope.endswith(TARGETS[self.targets]):
                *_, n_in, n_out = shape
                shapes |= {f'{scope}/lora_a': [n_in, self.rank], f'{scope}/lora_b': [self.rank, n_out]}
        return shapes


def is_valid(name, value):  # a field and its value, of JSON -> truth
    if name in ('loss', 'alpha'):
        is_finite = type(value) in (int, float) and abs(value) <= sys.float_info.max
        return is_finite and (name == 'loss' or value > 0)
    if name == 'average':
        return type(value) is list and len(value) == 2 and all(is_valid('loss', part) for part in value)
    if name == 'best':
        return is_valid('average', value) and is_valid('step', value[1])
    if name == 'name':
        return type(value) is str and re.fullmatch(f'{BEST}-[0-9]{{1,15}}', value)
    if name == 'flags':
        return type(value) is dict
    if name == 'targets':
        return value in TARGETS
    if name in ('base', 'fingerprint'):
        return type(value) is str and len(value) < 256 and value.isprintable()
    return type(value) is int and int(name == 'rank') <= value and (name == 'seed' or value < 10**15)


def with_crc(values):  # dict -> the same with checksum
    return {'crc32': zlib.crc32(json.dumps(values).encode()), **values}


def check_crc(values):  # the reverse; older files begin with the step and have none
    content = {name: value for name, value in values.items() if name != 'crc32'}
    if list(values)[:1] != ['step'] and values != with_crc(content):
        raise ValueError('its checksum is another')
    return content


def write(path, state):  # replaces the file
    paths.write_json(path, with_crc(dataclasses.asdict(state)))


def read(path, kind, remedy=REMEDY):
    """A TrainState, Best or Adapter, or None without the file. Raises InputError if it is damaged."""
    if not os.path.exists(path):
        return None
    values = paths.read_json(path, remedy)
    try:
        content = {OLD_NAMES.get(name, name): value for name, value in check_crc(values).items()}
        fields = {field.name: field.default for field in dataclasses.fields(kind)}
        known = {name: content[name] for name in fields if name in content}  # other versions have others
        for name, value in known.items():
            is_absent = value is None and fields[name] is None
            if not (is_absent or is_valid(name, value)):
                raise ValueError(f'"{name}" cannot be {value!r:.40}')
        return kind(**known)
    except (TypeError, ValueError) as error:
        raise InputError(f'{path} is damaged ({error}); {remedy}') from None
