"""Checkpoints: finding, checking and loading them.

Whatever is read from a folder may be forged: no name from there leads out of it, or to a file that is not of a
checkpoint.
"""
import contextlib
import errno
import glob
import json
import os
import re
from collections.abc import Iterator

import tensorflow.compat.v1 as tf

import encoder
import model
from errors import InputError, require
from hparams import HParams, load_hparams
from storage import paths
from storage.run_state import BEST, unsealed

LOADED_TOGETHER = 24  # variables: a run of the session takes its time, and all at once would be in memory twice


def latest(directory: str) -> str | None:
    """The checkpoint (a path without suffix) that the directory's `checkpoint` file names, or None without that file.

    Of a name that is a path the last part is looked for beside the file, so that directories can be moved and copied;
    else it may be below the directory. Nothing outside is ever read. Raises InputError where the file is malformed or
    names what is not there.
    """
    index = os.path.join(directory, 'checkpoint')
    text = read_index(directory)
    if text is None:
        return None
    named = require(re.search(r'^model_checkpoint_path: "(.+)"\s*$', text, re.MULTILINE),
                    f'{index} does not name a checkpoint (model_checkpoint_path: "…"); write the name of one there, or '
                    'fetch the model again')
    parts = path_parts(named[1])
    beside, below = os.path.join(directory, parts[-1]), os.path.join(directory, named[1])
    outside = not parts[0] or parts[0].endswith(':') or '..' in parts
    for prefix in (beside,) if outside else (beside, below):
        if os.path.exists(f'{prefix}.index'):
            return prefix
    raise InputError(f'{index} names {named[1][:200]}, but there is no {prefix[:300]}.index, and no other folder is '
                     'looked into; fetch the model again, or write the name of a checkpoint that is there')


def read_index(directory):  # -> text, or None
    """What stands in a directory's file `checkpoint`, if there is one."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return paths.read_small(os.path.join(directory, 'checkpoint')).decode('utf-8-sig', 'replace')


def path_parts(path):
    """The names in a path of any system: what was trained on Windows is used on Linux, and the other way round."""
    return re.split(r'[/\\]', path)


def resolve_path(path: str) -> str:
    """The checkpoint at a path given by a user: a directory, a checkpoint's path, or one of its files."""
    path = paths.for_tensorflow(paths.expand(path))
    if os.path.isdir(path):
        return require(latest(path), f'{path} holds no file named checkpoint; give the path of one, like '
                                     f'{path}/model-1000')
    prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$|(?<=model-best)\.json$', '', path)
    require(os.path.exists(f'{resolved(prefix)}.index'), f'no checkpoint {path}: there is no {resolved(prefix)}.index')
    return prefix


def resolved(prefix):
    """The prefix of a checkpoint's files. Those of model-best are named in model-best.json; versions before this one
    wrote them under the name itself."""
    directory, name = os.path.split(prefix)
    best = read_best(directory) if name == BEST else None
    return os.path.join(directory, best['name']) if best else prefix


def read_best(directory):  # -> {'step', 'loss', 'name'}, or None
    """Which checkpoint of a run is model-best. Raises InputError where model-best.json is damaged."""
    path = os.path.join(directory, f'{BEST}.json')
    try:
        best = unsealed(json.loads(paths.read_small(path)))
        if not {'loss', 'name'} <= best.keys() or best['loss'] is None:
            raise ValueError('it lacks "loss" or "name"')
        return best
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is damaged ({error}); remove it, and use a model-best-… beside it by its '
                         'own name') from None


def resolve_checkpoint(directory: str, hparams: HParams, name: str | None = None) -> str:
    """The checkpoint of a model or run: its newest, or the one of a name there, such as model-best.

    A name with a / is the path of any checkpoint, as find takes it: so a run of another code base, which has neither
    sizes nor vocabulary beside it, is used with those of the model that it was trained from. Raises InputError unless
    it holds a model of these sizes; a graph of sizes that are not a model's could be of any size itself.
    """
    path = paths.child(directory, name, '--checkpoint') if name and not os.path.dirname(name) else name or directory
    prefix = resolve_path(path)
    weights_reader(prefix, hparams)
    return prefix


def resume_source(run_directory: str, model_directory: str, restore_from: str) -> tuple[str, bool]:
    """The checkpoint that a run begins with, and whether training has written it (the model's has no steps).

    restore_from: latest (the run's newest, else the model's), fresh (the model's), or what `find` takes.
    """
    if restore_from == 'latest':
        trained = latest(run_directory)
    else:
        trained = None if restore_from == 'fresh' else resolve_path(restore_from)
    return trained or resolve_path(model_directory), bool(trained)


def model_variables(scope='model'):
    """The weights' variables; those that an optimizer adds below the same scope are not trainable."""
    return tf.trainable_variables(f'{scope}/')


def checked_reader(prefix, tensors):
    """The checkpoint's reader. Raises InputError unless it holds all of tensors (a dict) in their shapes and types, and
    no layer besides."""
    with readable(prefix):
        reader = tf.train.load_checkpoint(resolved(prefix))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    for name, tensor in tensors.items():
        shape = tensor.shape.as_list()
        require(name in shapes, f'{prefix} has no variable {name}; its model is smaller than hparams.json says, '
                                'or it is not a GPT-2 checkpoint')
        require(shapes[name] == shape, f'{prefix}: {name} has shape {shapes[name]}, but hparams.json makes it {shape}; '
                                       'use the hparams.json that came with the checkpoint')
        require(dtypes[name] == tensor.dtype, f'{prefix}: {name} is {dtypes[name].name}, expected {tensor.dtype.name}')
    more = sorted(layers(shapes) - layers(tensors))
    require(not more, f'{prefix} has {"".join(more[:1])}, too; its model has more layers than hparams.json says: '
                      'use the hparams.json that came with the checkpoint')
    return reader


def layers(names):  # -> {'model/h0', …}
    return {match[0] for match in map(re.compile(r'model/h\d+(?=/)').match, names) if match}


def weights_reader(prefix, hparams):
    """The reader of a checkpoint that holds all weights of these sizes: get_tensor('model/' + a name of weight_shapes).

    Raises InputError where it does not. What get_tensor raises about damage, `readable` makes one line.
    """
    return checked_reader(prefix, {f'model/{name}': tf.TensorSpec(shape, tf.float32)
                                   for name, shape in model.weight_shapes(hparams).items()})


@contextlib.contextmanager
def readable(prefix: str) -> Iterator[None]:
    """What TensorFlow raises about a damaged checkpoint, as one line; for a pipe it would wait."""
    files = glob.glob(f'{glob.escape(resolved(prefix))}.[di]*')  # data and index
    require(all(map(os.path.isfile, files)), f'{prefix} is not made of regular files; use another checkpoint')
    try:
        yield
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().partition('\n')[0]
        raise InputError(f'{prefix} cannot be read, use another checkpoint ({reason})') from None


def restore(session, prefix, variables):
    """Loads the variables' values. Raises InputError as checked_reader does, before any is, or for damage."""
    load(session, prefix, {v.op.name: (v.initializer.inputs[1], [v.initializer]) for v in variables})


def load(session, prefix, sources):
    """Runs operations fed with what the checkpoint holds. sources: {name: (tensor to feed, operations)}."""
    # By a reader: Saver.restore writes lines of its own to the terminal where data is damaged.
    reader = checked_reader(prefix, {name: tensor for name, (tensor, _) in sources.items()})
    with readable(prefix):
        for first in range(0, len(sources), LOADED_TOGETHER):
            some = dict(list(sources.items())[first:first + LOADED_TOGETHER])
            session.run([operations for _, operations in some.values()],
                        {tensor: reader.get_tensor(name) for name, (tensor, _) in some.items()})


def load_sizes_and_vocabulary(model_name: str, models_dir: str = 'models') -> tuple[str, HParams, encoder.Encoder]:
    """The directory of a model or run, its sizes and its vocabulary. Raises InputError where they do not fit."""
    directory = paths.find_model(model_name, models_dir)
    hparams = load_hparams(os.path.join(directory, 'hparams.json'))
    enc = encoder.get_encoder(directory)
    require(enc.n_vocab <= hparams.n_vocab, f'{directory}: encoder.json has ids up to {enc.n_vocab - 1}, but '
                                            f'hparams.json says n_vocab is {hparams.n_vocab}')
    return directory, hparams, enc


@contextlib.contextmanager
def writing(path):
    """What TensorFlow raises where files at or below a path cannot be written, as OSError."""
    try:
        yield
    except tf.errors.OpError as error:
        # Which file it was, and why, stands somewhere in the many lines about the operation.
        found = re.search(f'{re.escape(os.path.dirname(path))}.*; (.+)', str(error))
        reason = found[1] if found else str(error).strip().partition('\n')[0]
        numbers = {os.strerror(number): number for number in paths.REMEDIES}
        raise OSError(numbers.get(reason, errno.EIO), reason, path) from error


def commit(directory, prefixes):
    """Writes the file `checkpoint`, which names checkpoints, the newest last."""
    names = [os.path.basename(prefix) for prefix in prefixes]
    with paths.replacing(os.path.join(directory, 'checkpoint')) as file:
        file.write(f'model_checkpoint_path: "{names[-1]}"\n')
        file.writelines(f'all_model_checkpoint_paths: "{name}"\n' for name in names)
    paths.synchronize(directory)
