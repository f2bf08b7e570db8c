"""Checkpoints: finding the one that is meant, checking it, loading it.

A folder may be forged: no name in it leads out of it, or to a file that is not of a checkpoint.
"""
import contextlib
import errno
import glob
import os
import re

import tensorflow.compat.v1 as tf

import encoder
import model
from errors import InputError, require
from hparams import HParams, load_hparams
from storage import paths
from storage.run_state import BEST, Best, from_json

LOADED_TOGETHER = 24  # variables: one at a time is slow, and all at once would be in memory twice


def latest(directory: str) -> str | None:
    """The checkpoint (a path without suffix) that a folder's file `checkpoint` names; None without that file.

    Of a path, the last part is looked for in the folder, which may have been moved; then the path below it.
    """
    index, text = os.path.join(directory, 'checkpoint'), read_index(directory)
    if text is None:
        return None
    match = require(re.search(r'^model_checkpoint_path: "(.+)"\s*$', text, re.MULTILINE),
                    f'{index} does not name a checkpoint (model_checkpoint_path: "…"); write a name there')
    parts = path_parts(match[1])
    prefixes = [os.path.join(directory, parts[-1])]
    if parts[0] and not parts[0].endswith(':') and '..' not in parts:  # neither absolute nor outside
        prefixes.append(os.path.join(directory, match[1]))
    for prefix in prefixes:
        if os.path.exists(f'{prefix}.index'):
            return prefix
    raise InputError(f'{index} names {match[1][:200]}, but there is no {prefixes[-1][:300]}.index, and no '
                     'other folder is looked into; write the name of a checkpoint that is there')


def read_index(directory):  # -> the text of its file `checkpoint`, or None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return paths.read_small(os.path.join(directory, 'checkpoint')).decode('utf-8-sig', 'replace')


def path_parts(path):  # of any system: a run made on Windows is used on Linux
    return re.split(r'[/\\]', path)


def resolve_path(path: str) -> str:
    """The checkpoint at a user's path of a directory, of a checkpoint, or of one of its files."""
    path = paths.for_tensorflow(paths.expand(path))
    if os.path.isdir(path):
        return require(latest(path), f'{path} holds no file named checkpoint; give a {path}/model-…')
    prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$|(?<=model-best)\.json$', '', path)
    index = f'{resolved(prefix)}.index'
    require(os.path.exists(index), f'no checkpoint {path}: there is no {index}')
    return prefix


def resolved(prefix):
    """The prefix of a checkpoint's files, which model-best.json tells of model-best, if it is there."""
    directory, name = os.path.split(prefix)
    best = read_best(directory) if name == BEST else None
    return os.path.join(directory, best.name) if best else prefix


def read_best(directory):  # -> Best, or None
    """Raises InputError where model-best.json is damaged."""
    path = os.path.join(directory, f'{BEST}.json')
    try:
        return from_json(Best, paths.read_small(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is damaged ({error}); remove it, and use a model-best-…') from None


def resolve_checkpoint(directory: str, hparams: HParams, name: str | None = None) -> str:
    """The newest checkpoint of a model or run, or the one of a name there, such as model-best; a name with a
    / is a path. Raises InputError unless it has these sizes; call this before a graph of them is built."""
    path = directory
    if name:
        path = name if os.path.dirname(name) else paths.child(directory, name, '--checkpoint')
    prefix = resolve_path(path)
    weights_reader(prefix, hparams)
    return prefix


def resume_source(run_directory: str, model_directory: str, restore_from: str) -> tuple[str, bool]:
    """The checkpoint that a run begins with, and whether training made it, so that its name has the step.

    restore_from: latest (of the run, else the model's), fresh (the model's), or a path.
    """
    if restore_from == 'latest':
        trained = latest(run_directory)
    elif restore_from == 'fresh':
        trained = None
    else:
        trained = resolve_path(restore_from)
    return trained or resolve_path(model_directory), bool(trained)


def load_sizes_and_vocabulary(model_name: str, models_dir='models') -> tuple[str, HParams, encoder.Encoder]:
    """The directory of a model or run, its sizes, its vocabulary. Raises InputError where they do not fit."""
    directory = paths.find_model(model_name, models_dir)
    hparams = load_hparams(os.path.join(directory, 'hparams.json'))
    enc = encoder.get_encoder(directory)
    require(enc.n_vocab <= hparams.n_vocab, f'{directory}: encoder.json has ids up to {enc.n_vocab - 1}, but '
                                            f'hparams.json says n_vocab is {hparams.n_vocab}')
    return directory, hparams, enc


def model_variables(scope='model'):
    """The variables of the weights; those that an optimizer adds in the same scope are not trainable."""
    return tf.trainable_variables(f'{scope}/')


def checked_reader(prefix, tensors):
    """The checkpoint's reader. Raises InputError unless it has all of {name: tensor}, and no other layers."""
    with readable(prefix):
        reader = tf.train.load_checkpoint(resolved(prefix))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    remedy = 'use the hparams.json of the checkpoint'
    for name, tensor in tensors.items():
        shape = tensor.shape.as_list()
        require(name in shapes, f'{prefix} has no variable {name}; hparams.json says that it is larger')
        require(shapes[name] == shape,
                f'{prefix}: {name} has shape {shapes[name]}, but hparams.json makes it {shape}; {remedy}')
        require(dtypes[name] == tensor.dtype, f'{prefix}: {name} is {dtypes[name]}, not {tensor.dtype}')
    for layer in sorted(layers(shapes) - layers(tensors))[:1]:
        raise InputError(f'{prefix} has {layer}, too; its model has more layers than hparams.json says: '
                         f'{remedy}')
    return reader


def layers(names):  # -> {'model/h0', …}
    return {'/'.join(name.split('/')[:2]) for name in names if re.match(r'model/h\d+/', name)}


def weights_reader(prefix, hparams):
    """The reader of a checkpoint; call its get_tensor('model/' + a name of weight_shapes) within `readable`.
    Raises InputError for other sizes."""
    return checked_reader(prefix, {f'model/{name}': tf.TensorSpec(shape, tf.float32)
                                   for name, shape in model.weight_shapes(hparams).items()})


@contextlib.contextmanager
def readable(prefix):
    """Raises InputError where TensorFlow finds the checkpoint damaged, and for a pipe, on which it waits."""
    files = glob.glob(f'{glob.escape(resolved(prefix))}.[di]*')  # data and index
    require(all(map(os.path.isfile, files)), f'{prefix} is not made of regular files; use another checkpoint')
    try:
        yield
    except InputError:
        raise
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise InputError(f'{prefix} cannot be read, use another checkpoint ({reason})') from None


def restore(session, prefix, variables):
    """Loads the variables' values. Raises InputError for other shapes, before any is loaded, or damage."""
    load(session, prefix, {v.op.name: (v.initializer.inputs[1], [v.initializer]) for v in variables})


def load(session, prefix, sources):
    """Runs operations, fed with the checkpoint's tensors. sources: {name: (tensor to feed, operations)}."""
    # Not by Saver.restore, which writes lines of its own to the terminal where data is damaged.
    reader = checked_reader(prefix, {name: tensor for name, (tensor, _) in sources.items()})
    names = list(sources)
    with readable(prefix):
        for first in range(0, len(names), LOADED_TOGETHER):
            part = names[first:first + LOADED_TOGETHER]
            feed = {sources[name][0]: reader.get_tensor(name) for name in part}
            session.run([sources[name][1] for name in part], feed)


@contextlib.contextmanager
def writing(path):
    """Raises OSError, with its number, where TensorFlow cannot write files at or below a path."""
    try:
        yield
    except tf.errors.OpError as error:  # file and reason stand somewhere in many lines about the operation
        match = re.search(f'{re.escape(os.path.dirname(path))}.*; (.+)', str(error))
        reason = match[1] if match else str(error).strip().partition('\n')[0]
        numbers = {os.strerror(number): number for number in paths.REMEDIES}
        raise OSError(numbers.get(reason, errno.EIO), reason, path) from error


def commit(directory, prefixes):
    """Writes the file `checkpoint`, which names checkpoints, the newest last."""
    names = [os.path.basename(prefix) for prefix in prefixes]
    with paths.replacing(os.path.join(directory, 'checkpoint')) as file:
        file.write(f'model_checkpoint_path: "{names[-1]}"\n')
        file.writelines(f'all_model_checkpoint_paths: "{name}"\n' for name in names)
    paths.synchronize(directory)
