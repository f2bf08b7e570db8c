"""Adapters (LoRA, Hu et al. 2021): a weight W [n_in, n_out] of the base becomes W + alpha / rank · A B."""
import dataclasses
import types

from errors import require

NAME = 'adapter.json'
ATTN, MLP = ('attn/c_attn', 'attn/c_proj'), ('mlp/c_fc', 'mlp/c_proj')
TARGETS = {  # adapted products of each layer; the last two as target_modules of peft
    'attn': ATTN, 'mlp': MLP, 'all': ATTN + MLP, 'c_attn': ATTN[:1], 'c_attn+c_proj': (*ATTN, MLP[1])}


@dataclasses.dataclass
class Adapter:
    """adapter.json, beside checkpoints that hold an adapter's matrices alone."""
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


def merged_reader(adapter, prefix, own, base):
    """A reader of the base's weights with the adapter in them, and of its own. own, base: readers of their
    checkpoints; prefix: of the first. Raises InputError unless they fit."""
    expected, dtypes = adapter.shapes(base.get_variable_to_shape_map()), own.get_variable_to_dtype_map()
    # A higher rank than that of the matrices would claim memory which the base does not justify.
    require(own.get_variable_to_shape_map() == expected and {t.name for t in dtypes.values()} == {'float32'}
            and adapter.rank <= min(n_in for n_in, _ in expected.values()),
            f'{prefix} does not have the shapes of {NAME} beside it and of its base; use the right one')
    arrays = {name: own.get_tensor(name) for name in expected}

    def get_tensor(name):
        if name in arrays:
            return arrays[name]
        value, scope = base.get_tensor(name), name.removesuffix('/w')
        if f'{scope}/lora_a' in arrays:
            value += (adapter.scale * arrays[f'{scope}/lora_a']) @ arrays[f'{scope}/lora_b']
        return value
    return types.SimpleNamespace(
        get_tensor=get_tensor, get_variable_to_shape_map=base.get_variable_to_shape_map,
        get_variable_to_dtype_map=base.get_variable_to_dtype_map)
