"""Checkpoints: finding, checking, loading and saving them, and the state that makes a resumed run exact.

A run directory holds, for an update number N,
  model-N.{data-00000-of-00001,index,meta}   the model's weights alone, in the format of the released models
  model-best.{data-00000-of-00001,index}     those of the lowest validation loss
  training-N.{data-00000-of-00001,index}     the optimizer's variables
  training-N.json                            step, data position, seed, flags: whatever the trainer wants back
  counter                                    N, for the code bases that look there
  checkpoint                                 names model-N; written last, it commits all of the above
  saving                                     during a save: the checkpoints that it writes and is to remove
The training state is kept for the newest checkpoint only; the weights of the last KEPT stay.
"""
import contextlib
import errno
import filecmp
import glob
import json
import math
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow.compat.v1 as tf

import encoder
import model
import paths
from errors import InputError, require

KEPT = 5
DATA = '.data-00000-of-00001'
NEW_CHECKPOINT = 'model.ckpt'  # as the released ones are named
SHARD_BYTES = 1 << 26  # of small weights that are written together
LOADED_TOGETHER = 24  # variables: a run of the session takes its time, and all at once would be in memory twice


class NotSaved(InputError):
    """A checkpoint could not be written. Those that were there before are whole."""


def latest(directory: str) -> str | None:
    """The checkpoint (a path without suffix) that the directory's `checkpoint` file names, or None without that file.

    Of a name that is a path the last part is looked for beside the file, so that directories can be moved and copied;
    else it may be below the directory. Nothing outside is ever read. Raises InputError where the file is malformed or
    names what is not there.
    """
    index = os.path.join(directory, 'checkpoint')
    try:
        with open(index, encoding='utf-8', errors='replace') as file:
            named = re.search(r'^model_checkpoint_path: "(.+)"\s*$', file.read(), re.MULTILINE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    named = require(named, f'{index} does not name a checkpoint (model_checkpoint_path: "…"); write the name of one '
                           'there, or fetch the model again')
    beside, below = os.path.join(directory, os.path.basename(named[1])), os.path.join(directory, named[1])
    outside = os.path.isabs(named[1]) or '..' in named[1].split('/')
    for prefix in (beside,) if outside else (beside, below):
        if os.path.exists(f'{prefix}.index'):
            return prefix
    raise InputError(f'{index} names {named[1][:200]}, but there is no {prefix[:300]}.index, and no other folder is '
                     'looked into; fetch the model again, or write the name of a checkpoint that is there')


def find(path: str) -> str:
    """The checkpoint at a path given by a user: a directory, a checkpoint's path, or one of its files."""
    path = paths.expand(path)
    if os.path.isdir(path):
        return require(latest(path), f'{path} holds no file named checkpoint; give the path of one, like '
                                     f'{path}/model-1000')
    prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', path)
    finish(prefix)
    require(os.path.exists(f'{prefix}.index'), f'no checkpoint {path}: there is no {prefix}.index')
    return prefix


def finish(prefix):
    """Where save_best has been cut off between the renaming of a checkpoint's data and of its index, does the second.

    Of its two files the first without the second would be no checkpoint; so what looks for one does this too.
    """
    new = f'{prefix}-new'
    if os.path.exists(f'{new}.index') and not os.path.exists(f'{new}{DATA}'):
        with contextlib.suppress(FileNotFoundError):  # another process has just done it
            os.replace(f'{new}.index', f'{prefix}.index')


def choose(directory: str, hparams: model.HParams, name: str | None = None) -> str:
    """The checkpoint of a model or run: its newest, or the one of a name there, such as model-best.

    A name with a / is the path of any checkpoint, as find takes it: so a run of another code base, which has neither
    sizes nor vocabulary beside it, is used with those of the model that it was trained from. Raises InputError unless
    it holds a model of these sizes; a graph of sizes that are not a model's could be of any size itself.
    """
    path = paths.child(directory, name, '--checkpoint') if name and not os.path.dirname(name) else name or directory
    prefix = find(path)
    weights_reader(prefix, hparams)
    return prefix


def source(run_directory: str, model_directory: str, restore_from: str) -> tuple[str, bool]:
    """The checkpoint that a run begins with, and whether training has written it (the model's has no steps).

    restore_from: latest (the run's newest, else the model's), fresh (the model's), or what `find` takes.
    """
    if restore_from == 'latest':
        trained = latest(run_directory)
    else:
        trained = None if restore_from == 'fresh' else find(restore_from)
    return trained or find(model_directory), bool(trained)


def model_variables(scope='model'):
    """The weights' variables; those that an optimizer adds below the same scope are not trainable."""
    return tf.trainable_variables(f'{scope}/')


def checked_reader(prefix, tensors):
    """The checkpoint's reader. Raises InputError unless it holds all of tensors (a dict) in their shapes and types, and
    no layer besides."""
    with readable(prefix):
        reader = tf.train.load_checkpoint(prefix)
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
    """What TensorFlow raises about a damaged checkpoint, as one line."""
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


def describe(model_name: str, models_dir: str = 'models') -> tuple[str, model.HParams, encoder.Encoder]:
    """The directory of a model or run, its sizes and its vocabulary. Raises InputError where they do not fit."""
    directory = paths.model_dir(model_name, models_dir)
    hparams = model.load_hparams(os.path.join(directory, 'hparams.json'))
    enc = encoder.get_encoder(model_name, models_dir)
    require(enc.n_vocab <= hparams.n_vocab, f'{directory}: encoder.json has ids up to {enc.n_vocab - 1}, but '
                                            f'hparams.json says n_vocab is {hparams.n_vocab}')
    return directory, hparams, enc


def check_start(run_directory: str, model_directory: str, restore_from: str, hparams: model.HParams):
    """Raises InputError unless what a run begins with holds a model of these sizes. To be called before its graph is
    built, which could be of any size itself."""
    weights_reader(source(run_directory, model_directory, restore_from)[0], hparams)


class Lock:
    """Keeps the folder of a run to this process, and knows whether it is still the one at its path.

    Where folders cannot be opened (on Windows) or locked (on some network file systems), others are not
    kept out.
    """

    def __init__(self, directory: str):
        self.directory = directory
        self.descriptor: int | None = None  # of the folder
        self.new: list[str] = []  # the folders that were not there before, the innermost first

    def hold(self):
        """Makes the folder where there is none, and keeps it until `release` or the end of the process.

        Raises InputError where another process has it, or where nothing can be written there.
        """
        paths.check_writable(self.directory, '--checkpoint_dir')
        new = paths.missing(self.directory)
        os.makedirs(self.directory, exist_ok=True)
        if sys.platform != 'win32':
            import fcntl  # which is not known there
            self.descriptor = os.open(self.directory, os.O_RDONLY)
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.release()
                raise InputError(f'another process is training {self.directory}; give another --run_name, or '
                                 'wait for its end') from None
            except OSError:
                pass
        self.new = new

    def release(self):
        """Lets others have the folder; where it is new and still empty, it is removed."""
        if not self.gone():
            with contextlib.suppress(OSError):  # the first that is not empty
                for folder in self.new:
                    os.rmdir(folder)
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def check(self):
        """Raises InputError where the folder that is held is not the one at its path any more."""
        if line := self.gone():
            raise InputError(line)

    def gone(self) -> str | None:
        """A line for the user, where the folder is not the one at its path any more."""
        if self.descriptor is None or is_at(self.descriptor, self.directory):
            return None
        with contextlib.suppress(OSError):  # of all systems, Linux alone tells its path
            path = os.readlink(f'/proc/self/fd/{self.descriptor}')
            if is_at(self.descriptor, path):
                return (f'{self.directory} was moved to {path} while it was trained, so nothing more is '
                        'saved; its checkpoints are there: move it back, and the same command goes on')
        return (f'{self.directory} was removed or moved while it was trained, so nothing more is saved; put '
                'it back, and the same command goes on from its last checkpoint')


def is_at(descriptor, path):
    """Whether an open folder is the one at a path, as far as is known."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)  # of others, the next save tells


class Run:
    """Saves and resumes one training run. Make it after the graph's variables, so that it knows them all."""

    def __init__(self, directory: str, model_directory: str):
        self.directory = directory
        self.model_directory = model_directory
        self.model_variables = model_variables()
        names = {v.op.name for v in self.model_variables}
        self.state_variables = [v for v in tf.global_variables() if v.op.name not in names]
        self.model_saver = tf.train.Saver(self.model_variables, max_to_keep=0)
        self.state_saver = tf.train.Saver(self.state_variables, max_to_keep=0) if self.state_variables else None
        self.saving, self.best = os.path.join(directory, 'saving'), os.path.join(directory, 'model-best')
        self.kept = []
        self.saved_step: int | None = None

    def restore(self, session, restore_from: str, say: Callable[[str], None]) -> dict:
        """Loads what `restore_from` asks for: 'latest', 'fresh' or a checkpoint's path.

        say: called with a line for the user. Returns the state given to `save`, with at least 'step'; a checkpoint
        without a training state (released, or written by other code) gives its weights, and the step of its name.
        """
        self.clear_up()
        last = latest(self.directory)
        prefix, trained = source(self.directory, self.model_directory, restore_from)
        if last and os.path.realpath(prefix) == os.path.realpath(last):
            prefix = last  # by whatever path
        if trained:
            self.check_vocabulary(os.path.dirname(prefix))
        state = self.read_state(prefix) if trained else {'step': 0}
        restore(session, prefix, self.model_variables)
        say(f'Loaded {prefix}')
        if state.pop('complete', False):
            self.restore_optimizer(session, state_prefix(prefix), say)
        elif state['step']:
            say(f'{prefix} has no training state beside it: the optimizer and the data start anew')
        self.saved_step = state['step']
        if prefix == last:
            self.kept = [p for p in all_named(self.directory) if os.path.exists(f'{p}.index')]
        elif last:
            # From here on the run is another one: until this is committed, its saves could overwrite what is.
            self.save(session, state)
        return state

    def check_vocabulary(self, directory):
        """Raises InputError where a vocabulary stands beside the checkpoint to go on from, and is not the model's."""
        if all(os.path.exists(os.path.join(directory, name)) for name in encoder.VOCABULARY_FILES):
            require(encoder.load_vocabulary(directory) == encoder.load_vocabulary(self.model_directory),
                    f'{directory} was trained with another vocabulary than that of {self.model_directory}; give the '
                    '--model_name that it began with, or another --run_name')

    def read_state(self, prefix):
        try:
            with open(f'{state_prefix(prefix)}.json', encoding='utf-8') as file:
                return {**unsealed(json.load(file)), 'complete': True}
        except FileNotFoundError:
            number = re.search(r'-(\d+)$', prefix)
            return {'step': int(number[1]) if number else 0}
        except (ValueError, RecursionError) as error:
            raise InputError(f'{state_prefix(prefix)}.json is damaged ({error}); remove it to go on with the weights '
                             'alone') from None

    def restore_optimizer(self, session, prefix, say):
        if not self.state_variables:
            return
        require(os.path.exists(f'{prefix}.index'), f'{prefix}.json is there, but not {prefix}.index: '
                                                   'remove the first to go on with the weights alone')
        with readable(prefix):
            shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
        if {v.op.name: v.shape.as_list() for v in self.state_variables} != shapes:
            say(f'The optimizer is not the one of {prefix}: it starts anew')
        else:
            restore(session, prefix, self.state_variables)

    def save(self, session, state: dict):
        """Writes a checkpoint; state: what `restore` is to return, JSON's types, with 'step'.

        Raises NotSaved if it cannot be written; the last one is then still whole.
        """
        prefix = os.path.join(self.directory, f'model-{state["step"]}')
        try:
            with writing(prefix):
                self.write(session, prefix, state)
        except OSError as error:
            self.try_clear_up()  # what has been written may take all the space that there is
            raise not_saved(prefix, error) from error

    def write(self, session, prefix, state):
        os.makedirs(self.directory, exist_ok=True)
        self.clear_up()
        self.copy_model_files()
        kept = [*(p for p in self.kept if p != prefix), prefix]
        with paths.replacing(self.saving) as file:
            file.writelines(f'{os.path.basename(each)}\n' for each in [prefix, *kept[:-KEPT]])
        if self.state_saver:
            self.state_saver.save(session, state_prefix(prefix), write_meta_graph=False, write_state=False)
        with paths.replacing(f'{state_prefix(prefix)}.json') as file:
            json.dump(sealed(state), file)
        self.model_saver.save(session, prefix, write_state=False)
        for path in [*glob.glob(f'{glob.escape(prefix)}.*'), *glob.glob(f'{glob.escape(state_prefix(prefix))}.*')]:
            synchronize(path)
        with paths.replacing(os.path.join(self.directory, 'counter')) as file:
            file.write(f'{state["step"]}\n')
        self.commit(kept[-KEPT:])
        self.kept, self.saved_step = kept[-KEPT:], state['step']
        self.try_clear_up()

    def has_best(self) -> bool:
        """Whether there is a model-best."""
        return os.path.exists(f'{self.best}.index')

    def save_best(self, session):
        """Writes the weights as model-best, beside the checkpoints: whole under another name, and on the disk, before
        they take the place of the former. Raises as save does."""
        new = f'{self.best}-new'
        try:
            os.makedirs(self.directory, exist_ok=True)
            self.copy_model_files()
            with writing(new):
                self.model_saver.save(session, new, write_state=False, write_meta_graph=False)
            for path in glob.glob(f'{glob.escape(new)}.*'):
                synchronize(path)
            os.replace(f'{new}{DATA}', f'{self.best}{DATA}')
            finish(self.best)
            synchronize(self.directory)
        except OSError as error:
            self.try_clear_up()
            raise not_saved(self.best, error) from error

    def commit(self, prefixes):
        names = [os.path.basename(prefix) for prefix in prefixes]
        with paths.replacing(os.path.join(self.directory, 'checkpoint')) as file:
            file.write(f'model_checkpoint_path: "{names[-1]}"\n')
            file.writelines(f'all_model_checkpoint_paths: "{name}"\n' for name in names)
        synchronize(self.directory)

    def clear_up(self):
        """Ends the last save, whether it was committed or cut off. Removed are the checkpoints that it has begun or was
        to remove, unless they are kept; the training state of those that are but the newest; and temporary files."""
        finish(self.best)
        for path in glob.glob(f'{glob.escape(self.directory)}/*'):
            if re.search(r'\.tempstate\d+$|_temp$|\.\d+\.tmp$|/model-best-new\.[^/]*$', path):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        if os.path.exists(self.saving):
            with open(self.saving, encoding='utf-8') as file:
                begun = [os.path.join(self.directory, name) for name in file.read().splitlines()]
            kept = all_named(self.directory)
            old = [prefix for prefix in begun if prefix not in kept]
            for prefix in [*old, *map(state_prefix, [*old, *kept[:-1]])]:
                remove(prefix)
            with contextlib.suppress(OSError):
                os.unlink(self.saving)

    def try_clear_up(self):
        """Clears up, or else leaves it to the next save."""
        with contextlib.suppress(OSError):
            self.clear_up()

    def copy_model_files(self):
        """Sizes and vocabulary stand beside the run, which makes it a model directory."""
        for name in ('hparams.json', 'encoder.json', 'vocab.bpe'):
            source, target = os.path.join(self.model_directory, name), os.path.join(self.directory, name)
            if not (os.path.exists(target) and filecmp.cmp(source, target, shallow=False)):
                with open(source, 'rb') as original, paths.replacing(target, 'wb') as copy:
                    shutil.copyfileobj(original, copy)


def not_saved(prefix, error):  # str, OSError -> NotSaved
    return NotSaved(f'{prefix} could not be saved ({error.strerror or error}); those before it are as they were, and '
                    f'the same command goes on from the last: {paths.remedy(error)}')


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


def remove(prefix):
    """Removes a checkpoint's files, as far as that is possible."""
    for path in glob.glob(f'{glob.escape(prefix)}.*'):
        with contextlib.suppress(OSError):
            os.unlink(path)


def state_prefix(prefix):
    """The training state's path for a checkpoint's: …/model-7 → …/training-7."""
    directory, name = os.path.split(prefix)
    return os.path.join(directory, re.sub('^model', 'training', name))


def sealed(state):
    """The state with a checksum of itself, under the name crc32."""
    return {'crc32': zlib.crc32(json.dumps(state).encode()), **state}


def unsealed(values):
    """The state that sealed was given. Raises ValueError where it is another.

    Earlier versions saved it as it is, beginning with the step.
    """
    if not isinstance(values, dict) or type(values.get('step')) is not int or values['step'] < 0:
        raise ValueError('it is no object with a "step"')
    state = {name: value for name, value in values.items() if name != 'crc32'}
    if next(iter(values)) != 'step' and values != sealed(state):
        raise ValueError('its checksum is another')
    return state


def all_named(directory):
    """All checkpoints that the directory's `checkpoint` file names, oldest first; none where there is no such file."""
    names = []
    with (contextlib.suppress(FileNotFoundError),
          open(os.path.join(directory, 'checkpoint'), encoding='utf-8', errors='replace') as file):
        names = re.findall(r'^all_model_checkpoint_paths: "(.+)"\s*$', file.read(), re.MULTILINE)
    return [os.path.join(directory, os.path.basename(name)) for name in names]


def synchronize(path: str):
    """Has the operating system write a file or directory to the disk; a directory not on Windows, which opens none."""
    if sys.platform == 'win32' and os.path.isdir(path):
        return
    descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)  # Windows wants it to be writable
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create(directory: str, hparams: model.HParams, seed: int | None = None):
    """Writes hparams.json and a checkpoint of a new, randomly initialized model into a model directory."""
    prefix = os.path.join(directory, NEW_CHECKPOINT)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(seed)
        model.weights(hparams)
        session.run(tf.global_variables_initializer())
        with writing(prefix):
            tf.train.Saver(model_variables()).save(session, prefix, write_state=False)
    describe_new(directory, hparams)


def write(directory: str, hparams: model.HParams, weights: Iterable[tuple[str, np.ndarray]]):
    """Writes hparams.json and a checkpoint of given weights into a model directory.

    weights: an iterable of (name of weight_shapes, float32 array, best of `aligned`). It is written as it comes, in
    several files of data, so that no more than the largest weight, or SHARD_BYTES of smaller ones, is in memory.
    """
    prefix, shards = os.path.join(directory, NEW_CHECKPOINT), []
    config = tf.ConfigProto(device_count={'GPU': 0})
    with tf.Graph().as_default(), tf.Session(config=config) as session, writing(prefix):
        model.weights(hparams)
        tf.train.Saver(model_variables()).export_meta_graph(f'{prefix}.meta')
        for shard in in_shards(weights):
            shards.append(write_shard(session, f'{prefix}-{len(shards)}', shard))
            del shard  # while the next is read
        session.run(tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=shards, destination_prefix=prefix,
                                                  delete_old_dirs=False))
    describe_new(directory, hparams)


def in_shards(weights):  # -> dicts of {name: array}, of SHARD_BYTES or a single array
    shard, size = {}, 0
    for name, value in weights:
        if shard and size + value.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name], size = value, size + value.nbytes
    yield shard


def aligned(shape: Sequence[int]) -> np.ndarray:  # float32, uninitialized
    """An array at an address where TensorFlow takes it as it is; of others it makes a copy."""
    count = math.prod(shape)
    memory = np.empty(count + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first:first + count].reshape(shape)


def write_shard(session, prefix, values):  # -> prefix
    """Writes a checkpoint of {name: float32 array}."""
    inputs = [tf.placeholder(tf.float32, value.shape) for value in values.values()]
    saved = tf.raw_ops.SaveV2(prefix=prefix, tensor_names=[f'model/{name}' for name in values],
                              shape_and_slices=[''] * len(values), tensors=inputs)
    session.run(saved, dict(zip(inputs, values.values(), strict=True)))
    return prefix


def describe_new(directory, hparams):
    """Writes hparams.json, and the file `checkpoint` that names NEW_CHECKPOINT."""
    with paths.replacing(os.path.join(directory, 'hparams.json')) as file:
        json.dump(hparams.values(), file)
    with paths.replacing(os.path.join(directory, 'checkpoint')) as file:
        file.write(f'model_checkpoint_path: "{NEW_CHECKPOINT}"\nall_model_checkpoint_paths: "{NEW_CHECKPOINT}"\n')
