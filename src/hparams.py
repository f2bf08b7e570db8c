"""The sizes of a model, checked when they are read."""
import dataclasses
import json
import os

from errors import InputError, require
from storage import paths

# A damaged or hostile file is refused before its graph is built. Ids and positions are int32; GPT-3 (Brown et
# al. 2020, table 2.1) has 96 layers and 1.75e11 parameters.
MAX_SIZE, MAX_LAYERS, MAX_PARAMETERS = (1 << 31) - 1, 1000, 10 ** 12


@dataclasses.dataclass
class HParams:
    """Sizes of a model; the defaults are those of 124M."""
    n_vocab: int = 50257
    n_ctx: int = 1024
    n_embd: int = 768
    n_head: int = 12
    n_layer: int = 12

    def values(self) -> dict[str, int]:
        """As in hparams.json."""
        return dataclasses.asdict(self)

    def override_from_dict(self, values: dict[str, int]) -> 'HParams':
        """Sets fields from a dict. Raises InputError for an unknown field, or sizes that make no model."""
        for name, value in values.items():
            known = ', '.join(self.values())
            require(name in self.values(), f'unknown hyperparameter {str(name)[:40]!r}; known are {known}')
            shown = repr(value)[:40] if isinstance(value, (int, float, str)) else type(value).__name__
            valid = type(value) is int and value > 0
            require(valid, f'hyperparameter {name} must be a whole number above 0, not {shown}')
            largest = MAX_LAYERS if name == 'n_layer' else MAX_SIZE
            require(value <= largest, f'hyperparameter {name} must be at most {largest:,}, not {shown}')
            setattr(self, name, value)
        require(self.n_embd % self.n_head == 0,
                f'hyperparameter n_embd ({self.n_embd}) must be divisible by n_head ({self.n_head})')
        sizes = ', '.join(f'{name} {value}' for name, value in self.values().items())
        require(self.n_parameters() <= MAX_PARAMETERS, f'these hyperparameters make a model of '
                f'{self.n_parameters():,} parameters, more than {MAX_PARAMETERS:,}: {sizes}')
        return self

    def n_parameters(self):
        """The sum of the sizes of model.weight_shapes."""
        E = self.n_embd
        return (self.n_vocab + self.n_ctx + 2) * E + self.n_layer * (12 * E * E + 13 * E)


def default_hparams() -> HParams:
    """Those of 124M."""
    return HParams()


def load_hparams(path: str) -> HParams:
    """HParams of an hparams.json. Raises InputError if it is missing, malformed or incomplete."""
    if not os.path.exists(path):
        raise InputError(f'no {path}; a model directory has one: fetch or create the model again. A run of '
                         f"other code is used by its model's name and --checkpoint {os.path.dirname(path)}/")
    data = paths.read_small(path)
    try:
        values = json.loads(data)  # also with a byte-order mark
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON ({error}); fetch or create the model again') from None
    require(isinstance(values, dict), f'{path} must hold an object of sizes, not {type(values).__name__}')
    missing = sorted(HParams().values().keys() - values.keys())
    require(not missing, f'{path} lacks {", ".join(missing)}')
    try:
        return HParams().override_from_dict(values)
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
