"""Finds, checks and loads checkpoints by prefix: their path without suffix.

Their folder may be forged: no name in it leads out.
"""
import contextlib
import errno
import glob
import hashlib
import os
import re
import types

import tensorflow.compat.v1 as tf

import encoder
import model
from errors import InputError, require
from hparams import load_hparams
from storage import paths, run_state

ADAPTER_REMEDY = 'copy it from where the run came from'


def listed(folder):  # names in its file `checkpoint`, the newest last
    path = f'{folder}/checkpoint'
    if not os.path.exists(path):
        return []
    text = paths.read_small(path).decode('utf-8-sig', 'replace')
    names = re.findall(r'^(?:all_)?model_checkpoint_paths?: "(.+)"\s*$', text, re.MULTILINE)
    require(names, f'{path} does not name a checkpoint')
    newest, *others = (re.split(r'[/\\]|^\w:', name)[-1] for name in names)  # folders are moved
    return [*(name for name in others if name != newest), newest]


def latest(folder) -> str | None:
    """The newest prefix in a folder's file `checkpoint`; None without it."""
    if not (names := listed(folder)):
        return None
    prefix = os.path.join(folder, names[-1])
    require(os.path.exists(f'{prefix}.index'),
            f'{folder}/checkpoint names {names[-1][:99]}: there is no {prefix[:300]}.index')
    return prefix


def resolve_path(path) -> str:
    """The prefix at the path of a folder, a checkpoint, or one of its files."""
    path = paths.for_tensorflow(paths.expand(path))
    if os.path.isdir(path):
        return require(latest(path), f'{path} holds no file named checkpoint; give a {path}/model-…')
    prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$|(?<=model-best)\.json$', '', path)
    index = f'{files_prefix(prefix)}.index'
    require(os.path.exists(index), f'no checkpoint {path}: there is no {index}')
    return prefix


def files_prefix(prefix):  # model-best -> model-best-N; others stay
    folder, name = os.path.split(prefix)
    best = read_best(folder) if name == run_state.BEST else None
    return os.path.join(folder, best.name) if best else prefix


def read_best(folder):  # -> run_state.Best, or None without its checkpoint
    best = run_state.read(os.path.join(folder, f'{run_state.BEST}.json'), run_state.Best)
    return best if best and os.path.exists(os.path.join(folder, f'{best.name}.index')) else None


def load_sizes_and_vocabulary(model_name, models_dir='models'):
    """Folder, HParams and Encoder of a model or run. Raises InputError unless they fit."""
    folder = paths.find_model(model_name, models_dir)
    hparams, enc = load_hparams(f'{folder}/hparams.json'), encoder.get_encoder(folder)
    require(enc.n_vocab <= hparams.n_vocab,
            f'{folder}: encoder.json has {enc.n_vocab} ids, but n_vocab of hparams.json is {hparams.n_vocab}')
    return folder, hparams, enc


def find(model_name, models_dir='models', checkpoint_name=None):
    """Those of load_sizes_and_vocabulary, and the newest prefix, or that of a name in the folder or a path
    with a /. Raises InputError unless they fit; call it before a graph is built."""
    folder, hparams, enc = load_sizes_and_vocabulary(model_name, models_dir)
    if checkpoint_name and not os.path.dirname(checkpoint_name):
        checkpoint_name = os.path.join(folder, checkpoint_name)
    prefix = resolve_path(checkpoint_name or folder)
    check_sizes(prefix, hparams, models_dir)
    return folder, hparams, enc, prefix


def model_variables():  # an optimizer's in this scope are not trainable
    return tf.trainable_variables('model/')


def check_sizes(prefix, hparams, models_dir='models'):  # raises InputError
    with readable(prefix, models_dir) as reader:
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    for name, shape in model.weight_shapes(hparams).items():
        name = f'model/{name}'
        saved = f'{dtypes[name].name} {shapes[name]}' if name in shapes else 'missing'
        require(saved == f'float32 {shape}',
                f'{prefix}: {name} is {saved}, but hparams.json makes it float32 {shape}; use the right one')
    require(f'model/h{hparams.n_layer}/ln_1/g' not in shapes,
            f'{prefix} has more layers than hparams.json; use the right one')


@contextlib.contextmanager
def opened(prefix):
    """Gives TensorFlow's reader; InputError for damage, and for a pipe, where TensorFlow would wait."""
    files = glob.glob(f'{glob.escape(prefix)}.[di]*')  # data and index
    require(all(map(os.path.isfile, files)), f'{prefix} has files that are not regular')
    try:
        yield tf.train.load_checkpoint(prefix)
    except InputError:
        raise
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise InputError(f'{prefix} cannot be read, use another checkpoint ({reason})') from None


@contextlib.contextmanager
def readable(prefix, models_dir='models'):
    """Gives a reader of all weights, as opened. An adapter's are those of its base, which is in models_dir or
    beside its run, with the adapter in them."""
    prefix = files_prefix(prefix)
    own = adapter_of(prefix)
    with opened(find_base(own, prefix, models_dir) if own else prefix) as reader:
        if own:
            with opened(prefix) as own_reader:
                reader = merged_reader(own, prefix, own_reader, reader)
        yield reader


def merged_reader(adapter, prefix, own, base):
    """A reader of the base's weights with the adapter in them, and of its own. own, base: readers of their
    checkpoints; prefix: of the first. Raises InputError unless they fit."""
    expected, dtypes = adapter.shapes(base.get_variable_to_shape_map()), own.get_variable_to_dtype_map()
    # A higher rank than that of the matrices would claim memory which the base does not justify.
    require(own.get_variable_to_shape_map() == expected and {t.name for t in dtypes.values()} == {'float32'}
            and adapter.rank <= min(n_in for n_in, _ in expected.values()),
            f'{prefix} does not have the shapes of {run_state.ADAPTER} beside it and of its base; use the '
            'right one')
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


def adapter_of(prefix) -> run_state.Adapter | None:
    """Of a checkpoint that holds an adapter alone; None if it holds all weights. Raises InputError."""
    with opened(files_prefix(prefix)) as reader:
        if not any(name.endswith('/lora_a') for name in reader.get_variable_to_shape_map()):
            return None
    path = os.path.join(os.path.dirname(prefix), run_state.ADAPTER)
    own = run_state.read(path, run_state.Adapter, ADAPTER_REMEDY)
    return require(own, f'{prefix} is an adapter without {path}; {ADAPTER_REMEDY}')


def new_adapter(model, hparams, rank, alpha, targets, run, models_dir) -> run_state.Adapter:
    """Of the model in a folder, for a run's folder. Raises InputError if it would not be found from there."""
    base, n_embd = resolve_path(model), hparams.n_embd
    require(rank <= n_embd, f'the rank of an adapter must be at most n_embd, {n_embd}, not {rank}')
    require(not adapter_of(base), f'{base} is an adapter; make a model of it with src/convert.py merge')
    own = run_state.Adapter(rank, alpha, targets, os.path.basename(model), fingerprint(base))
    require(run_state.is_valid('base', own.base), f'{own.base!r} cannot name a base; rename the folder')
    find_base(own, f'{run}/model', models_dir)
    return own


def fingerprint(prefix):  # the same in each folder; the index has checksums of all tensors
    return hashlib.blake2b(paths.read_small(f'{prefix}.index'), digest_size=8).hexdigest()


def find_base(own, prefix, models_dir) -> str:
    """The prefix of the base of an Adapter with a prefix."""
    run = os.path.dirname(os.path.abspath(prefix))
    parents = models_dir, os.path.dirname(run), os.path.dirname(os.path.dirname(run))  # the last of left-N
    for parent in parents:
        folder = paths.for_tensorflow(paths.child(parent, own.base, f'{prefix}: its base'))
        with contextlib.suppress(InputError):  # if it is damaged, the next may be the right one
            base = latest(folder)
            if base and fingerprint(base) == own.fingerprint:
                return base
    raise InputError(f'{prefix} adapts {own.base}, and none in {" or ".join(parents)} has the fingerprint '
                     f'{own.fingerprint}; give the folder that has it as --models_dir')


def restore(session, prefix, variables, models_dir='models'):  # whose sizes fit
    with session.graph.as_default():
        values = [tf.placeholder(v.dtype, v.shape) for v in variables]
        load(session, prefix, {v.op.name: (value, [assign_copy(v, value)])
                               for v, value in zip(variables, values, strict=True)}, models_dir)


def assign_copy(v, value):  # -> operation
    # An update cannot change a fed array in place: it would copy it, and free it only at its end.
    return v.assign(tf.raw_ops.DeepCopy(x=value), read_value=False)


def load(session, prefix, sources, models_dir='models'):
    """Runs operations on saved tensors. sources: {name: (tensor to feed, operations)}."""
    names = list(sources)
    with readable(prefix, models_dir) as reader:  # Saver.restore prints lines about damage
        while names:  # one by one is slow, all take memory twice
            part, names = names[:8], names[8:]
            feed = {sources[name][0]: reader.get_tensor(name) for name in part}
            session.run([sources[name][1] for name in part], feed)


@contextlib.contextmanager
def writing(path):
    """Raises OSError if TensorFlow cannot write at or below a path."""
    try:
        yield
    except tf.errors.OpError as error:  # its reason is somewhere in many lines
        numbers = {os.strerror(number): number for number in paths.REMEDIES}
        reason = next((text for text in numbers if f'; {text}' in str(error)), str(error).partition('\n')[0])
        raise OSError(numbers.get(reason, errno.EIO), reason, path) from error


def commit(folder, names):  # writes the file `checkpoint`; the newest last
    with paths.replacing(f'{folder}/checkpoint') as file:
        file.write(f'model_checkpoint_path: "{names[-1]}"\n')
        file.writelines(f'all_model_checkpoint_paths: "{name}"\n' for name in names)
    paths.synchronize(folder)
