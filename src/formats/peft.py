"""Adapters in the format of Hugging Face's peft."""
import model
from errors import require
from formats.hugging_face import REMEDY, ROOT, open_tensors, read_tensor, tensor_name, write_safetensors
from storage import checkpoint, new_model, paths, run_state
from storage.run_state import TARGETS

WEIGHTS, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
VALUES = {'peft_type': ('LORA',), 'bias': ('none',), 'init_lora_weights': (True, False, 'gaussian')}
OTHERS = {  # fields that change nothing; any that is not known must be empty
    'auto_mapping', 'base_model_name_or_path', 'exclude_modules', 'fan_in_fan_out', 'inference_mode',
    'lora_alpha', 'lora_dropout', 'megatron_core', 'peft_version', 'qalora_group_size', 'r', 'revision',
    'target_modules', 'task_type'}


def their_name(name):  # h0/attn/c_attn/lora_a -> …h.0.attn.c_attn.lora_A.weight
    name = tensor_name(name).replace('lora_a', 'lora_A').replace('lora_b', 'lora_B')
    return f'base_model.model.{ROOT}{name}'


def write(folder, source, hp, enc, prefix, models_dir='models'):
    """Writes the adapter of a run, as checkpoint.find gives it, into an empty folder. Raises InputError."""
    own = require(checkpoint.adapter_of(prefix), f'{prefix} has all weights and no adapter; use to_hf')
    modules = [product.replace('/', '.') for product in TARGETS[own.targets]]
    paths.write_json(f'{folder}/{CONFIG}', {
        **{field: values[0] for field, values in VALUES.items()}, 'task_type': 'CAUSAL_LM', 'r': own.rank,
        'lora_alpha': own.alpha, 'target_modules': modules, 'base_model_name_or_path': own.base,
        'fan_in_fan_out': True})
    shapes = own.shapes(model.weight_shapes(hp))
    named = {their_name(name): shape[::-1] for name, shape in shapes.items()}
    with checkpoint.readable(prefix, models_dir) as reader:
        values = (reader.get_tensor(f'model/{name}').T for name in shapes)
        write_safetensors(f'{folder}/{WEIGHTS}', named, values)


def read(source, base, folder, run, models_dir='models'):
    """Makes a run of the folder `source` in an empty one, which becomes `run`; returns its Adapter. base: the
    folder of the model that it adapts. Raises InputError."""
    source = paths.expand(source)
    rank, alpha = read_config(f'{source}/{CONFIG}')
    tensors, (_, hp, _) = open_tensors(source, WEIGHTS), checkpoint.load_sizes_and_vocabulary(base)
    products = tuple(name for name in TARGETS['all'] if their_name(f'h0/{name}/lora_a') in tensors)
    targets = next((name for name in TARGETS if TARGETS[name] == products), None)
    require(targets, f'{source} adapts {products or "nothing"}; it can be one of {TARGETS}')
    own = checkpoint.new_adapter(base, hp, rank, alpha, targets, run, models_dir)
    shapes = own.shapes(model.weight_shapes(hp))
    expected = {their_name(name): f'F32 {shape[::-1]}' for name, shape in shapes.items()}
    actual = {name: f'{x.get_dtype()} {x.get_shape()}' for name, x in tensors.items()}
    for name in sorted({**actual, **expected}):
        saved, wanted = actual.get(name, 'missing'), expected.get(name, 'missing')
        require(saved.removeprefix('B').replace('F16', 'F32') == wanted,
                f'{source}: {name[:80]} is {saved[:80]}, but must be {wanted}, or in F16 or BF16')
    new_model.write(folder, hp, ((name, read_tensor(tensors[their_name(name)], True)) for name in shapes))
    paths.copy_descriptions(base, folder)
    run_state.write(f'{folder}/{run_state.ADAPTER}', own)
    return own


def read_config(path):  # -> rank, alpha
    config = paths.read_json(path, REMEDY)
    config.setdefault('peft_type')  # None is refused
    for field, value in config.items():
        allowed = VALUES.get(field, (None, False, [], {}))
        require(field in OTHERS or value in allowed,
                f'{path}: {field[:40]} must be one of {allowed}, not {str(value)[:80]}')
    rank, alpha = config.get('r'), config.get('lora_alpha')
    require(run_state.is_valid('rank', rank) and run_state.is_valid('alpha', alpha),
            f'{path}: r and lora_alpha must be numbers above 0, not {str(rank)[:40]} and {str(alpha)[:40]}')
    return rank, alpha
