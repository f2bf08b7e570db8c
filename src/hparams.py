"""The sizes of a model, checked when read."""
import dataclasses
import os
import reprlib

from errors import require
from storage import paths

MAX_PARAMETERS = 10**12  # GPT-3 has 1.75e11


@dataclasses.dataclass
class HParams:
    """The defaults are those of 124M."""
    n_vocab: int = 50257
    n_ctx: int = 1024
    n_embd: int = 768
    n_head: int = 12
    n_layer: int = 12

    def values(self) -> dict[str, int]:  # as in hparams.json
        return dataclasses.asdict(self)

    def override_from_dict(self, values, place='') -> 'HParams':
        """Sets fields. Raises InputError for an unknown one, or sizes that make no model. place: of the
        values, with which its message begins."""
        for name, value in values.items():
            require(name in vars(self), f'{place}unknown hyperparameter {name[:40]!r}; take it out')
            limit = 1000 if name == 'n_layer' else 2**31 - 1  # ids and positions are int32
            require(type(value) is int and 0 < value <= limit,
                    f'{place}{name} must be a whole number from 1 to {limit:,}, not {reprlib.repr(value)}')
            setattr(self, name, value)
        require(self.n_embd % self.n_head == 0,
                f'{place}n_embd ({self.n_embd}) must be divisible by n_head ({self.n_head})')
        require(self.n_parameters() <= MAX_PARAMETERS,
                f'{place}{self} has {self.n_parameters():,} parameters, more than {MAX_PARAMETERS:,}')
        return self

    def n_parameters(self):  # of model.weight_shapes, in sum
        E = self.n_embd
        return (self.n_vocab + self.n_ctx + 2) * E + self.n_layer * (12 * E * E + 13 * E)


default_hparams = HParams  # its name in the original


def load_hparams(path) -> HParams:  # or raises InputError
    values = paths.read_json(path, 'fetch or create the model again; for a run of other code, '
                             f'give its model and --checkpoint {os.path.dirname(path)}/')
    missing = [name for name in vars(HParams()) if name not in values]
    require(not missing, f'{path} lacks {", ".join(missing)}')
    return HParams().override_from_dict(values, f'{path}: ')
