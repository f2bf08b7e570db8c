"""Checkpoints: finding, checking, loading and saving them, and the state that makes a resumed run exact.

A run directory holds, for an update number N,
  model-N.{data-00000-of-00001,index,meta}   the model's weights alone, in the format of the released models
  model-best-N.{data-00000-of-00001,index}   those of the lowest validation loss, and of the best before it
  model-best.json                            which of the two is the best, and its loss; written last, it commits them
  training-N.{data-00000-of-00001,index}     the optimizer's variables
  training-N.json                            step, data position, seed, flags: whatever the trainer wants back
  counter                                    N, for the code bases that look there
  checkpoint                                 names model-N; written last, it commits all of the above
  saving                                     during a save: the checkpoints that it writes and is to remove
  left-N/                                    checkpoints up to N that the run has gone back from: a run directory
The training state is kept for the newest checkpoint only; the weights of the last KEPT stay. Whatever is read from the
directory may be forged: no name from there leads out of it, or to a file that is not of a checkpoint.
"""
import contextlib
import errno
import filecmp
import glob
import itertools
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
from errors import InputError, require
from storage import paths

KEPT = 5
NEW_CHECKPOINT = 'model.ckpt'  # as the released ones are named
SHARD_BYTES = 1 << 26  # of small weights that are written together
LOADED_TOGETHER = 24  # variables: a run of the session takes its time, and all at once would be in memory twice
LARGEST = 10**15  # more than any run has updates or windows
BEST = 'model-best'
CHECKPOINT = re.compile('model-([0-9]{1,15})')  # the name of a run's checkpoint
PART = '\\.(index|meta|data-[0-9]{5}-of-[0-9]{5})'
PARTS = re.compile(f'(model|model-best|training)-[0-9]+{PART}|training-[0-9]+\\.json')
REMAINS = re.compile(  # of a process that was killed: what TensorFlow, paths.replacing and paths.making had begun
    f'(model|model-best|training)-[0-9]+{PART}\\.(tempstate[0-9]+|tmp[0-9a-f]{{32}})|'
    '(training-[0-9]+\\.json|model-best\\.json|checkpoint|counter|saving|hparams\\.json|encoder\\.json|vocab\\.bpe|'
    'special_tokens\\.json|dataset-[0-9a-f]+\\.npz)\\.[0-9]+\\.tmp|\\.left-[0-9]+(-[0-9]+)?\\.[a-z0-9_]{8}')


class NotSaved(InputError):
    """A checkpoint could not be written. Those that were there before are whole."""


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


def find(path: str) -> str:
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
    prefix, trained = source(run_directory, model_directory, restore_from)
    sizes = os.path.join(os.path.dirname(prefix), 'hparams.json')
    require(not (trained and os.path.exists(sizes)) or model.load_hparams(sizes) == hparams,
            f'{prefix} was trained from a model of other sizes than {model_directory}; give the --model_name that it '
            'began with, or another --run_name')
    weights_reader(prefix, hparams)


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
    """Saves and resumes one training run. Make it after the graph's variables, so that it knows them all.

    Its folder is there, made by Lock: a save that made it anew would hide that it has been moved.
    """

    def __init__(self, directory: str, model_directory: str):
        self.directory = directory
        self.model_directory = model_directory
        self.model_variables = model_variables()
        names = {v.op.name for v in self.model_variables}
        self.state_variables = [v for v in tf.global_variables() if v.op.name not in names]
        self.model_saver = tf.train.Saver(self.model_variables, max_to_keep=0)
        self.state_saver = tf.train.Saver(self.state_variables, max_to_keep=0) if self.state_variables else None
        self.saving, self.best = os.path.join(directory, 'saving'), os.path.join(directory, BEST)
        self.say: Callable[[str], None] = print
        self.kept = []
        self.saved_step: int | None = None

    def restore(self, session, restore_from: str, say: Callable[[str], None]) -> dict:
        """Loads what `restore_from` asks for: 'latest', 'fresh' or a checkpoint's path.

        say: called with a line for the user. Returns the state given to `save`, with at least 'step'; a checkpoint
        without a training state (released, or written by other code) gives its weights, and the step of its name.
        """
        self.say = say
        last = latest(self.directory)
        self.clear_up()
        prefix, trained = source(self.directory, self.model_directory, restore_from)
        if last and os.path.realpath(prefix) == os.path.realpath(last):
            prefix = last  # by whatever path
        if trained:
            self.check_vocabulary(os.path.dirname(prefix))
        state = read_state(prefix) if trained else {'step': 0}
        if prefix != last or 'complete' not in state:  # the best is this run's, wherever the weights are from
            state = {**state, 'worse': 0, 'best': self.best_so_far(last)}
        restore(session, prefix, self.model_variables)
        say(f'Loaded {prefix}')
        if state.pop('complete', False):
            self.restore_optimizer(session, state_prefix(prefix))
        elif state['step']:
            say(f'{prefix} has no training state beside it: the optimizer and the data start anew at step '
                f'{state["step"]}')
        self.saved_step = state['step']
        self.kept = [p for p in all_named(self.directory) if os.path.exists(f'{p}.index')]
        if last and prefix != last:
            # From here on the run is another one: until this is committed, its saves could overwrite what is.
            self.save(session, state, left=last)
        return state

    def best_so_far(self, last):  # -> [loss, step], or None
        """Loss and step of the run's model-best. Versions before this one kept them in the last training state."""
        if not (last and self.has_best()):
            return None
        best = read_best(self.directory)
        return [best['loss'], best['step']] if best else read_state(last).get('best')

    def check_vocabulary(self, directory):
        """Raises InputError where a vocabulary stands beside the checkpoint to go on from, and is not the model's."""
        if all(os.path.exists(os.path.join(directory, name)) for name in encoder.VOCABULARY_FILES):
            require(encoder.load_vocabulary(directory) == encoder.load_vocabulary(self.model_directory),
                    f'{directory} was trained with another vocabulary than that of {self.model_directory}; give the '
                    '--model_name that it began with, or another --run_name')

    def restore_optimizer(self, session, prefix):
        if not self.state_variables:
            return
        require(os.path.exists(f'{prefix}.index'), f'{prefix}.json is there, but not {prefix}.index: '
                                                   'remove the first to go on with the weights alone')
        with readable(prefix):
            shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
        if {v.op.name: v.shape.as_list() for v in self.state_variables} != shapes:
            self.say(f'The optimizer is not the one of {prefix}: it starts anew')
        else:
            restore(session, prefix, self.state_variables)

    def save(self, session, state: dict, left: str | None = None):
        """Writes a checkpoint; state: what `restore` is to return, JSON's types, with 'step'.

        Checkpoints of this step and later ones, and `left`, go into a folder of their own. Raises NotSaved if it cannot
        be written; the last one is then still whole.
        """
        prefix = os.path.join(self.directory, f'model-{state["step"]}')
        try:
            with writing(prefix):
                self.write(session, prefix, state, left)
        except OSError as error:
            self.try_clear_up()  # what has been written may take all the space that there is
            raise not_saved(prefix, error) from error

    def write(self, session, prefix, state, left):
        self.clear_up()
        behind = [p for p in on_disk(self.directory) if number(p) >= state['step'] or p == left]
        if behind:
            self.leave(behind)
        self.copy_model_files()
        kept = [*(p for p in self.kept if p not in behind), prefix]
        with paths.replacing(self.saving) as file:
            file.writelines(f'{os.path.basename(each)}\n' for each in [prefix, *behind, *kept[:-KEPT]])
        if self.state_saver:
            self.state_saver.save(session, state_prefix(prefix), write_meta_graph=False, write_state=False)
        with paths.replacing(f'{state_prefix(prefix)}.json') as file:
            json.dump(sealed(state), file)
        self.model_saver.save(session, prefix, write_state=False)
        for path in [*files(prefix), *files(state_prefix(prefix))]:
            synchronize(path)
        with paths.replacing(os.path.join(self.directory, 'counter')) as file:
            file.write(f'{state["step"]}\n')
        commit(self.directory, kept[-KEPT:])
        self.kept, self.saved_step = kept[-KEPT:], state['step']
        self.try_clear_up()

    def leave(self, prefixes):
        """Gives checkpoints (newest last) and their training states a folder of their own, which is a run directory.

        Here they stay until the save that takes their place is committed: the run is whole, whenever it is killed.
        """
        newest = os.path.join(self.directory, f'left-{number(prefixes[-1])}')
        folder = next(path for path in itertools.chain([newest], map(f'{newest}-{{}}'.format, itertools.count(2)))
                      if not os.path.lexists(path))
        with paths.making(folder) as new:
            for path in [*paths.descriptions(self.directory),
                         *(path for prefix in prefixes for path in [*files(prefix), *files(state_prefix(prefix))])]:
                if os.path.isfile(path):
                    link(path, os.path.join(new, os.path.basename(path)))
            commit(new, prefixes)
        synchronize(self.directory)
        names = ', '.join(map(os.path.basename, prefixes))
        self.say(f'Left behind in {folder}, from where --restore_from goes on: {names}')

    def has_best(self) -> bool:
        """Whether there is a model-best."""
        return os.path.exists(f'{resolved(self.best)}.index')

    def save_best(self, session, step: int, loss: float):
        """Writes the weights as model-best, unless it has a loss as low, of before the run was killed or went back.

        model-best.json commits them. The best before it stays for those who are reading it. Raises as save does.
        """
        former = read_best(self.directory) if self.has_best() else None
        if former and former['loss'] <= loss:
            return
        name = f'{BEST}-{step}'
        if former and former['name'] == name:
            name = f'{BEST}-0{step}'  # of the same step before the run went back
        prefix = os.path.join(self.directory, name)
        try:
            self.copy_model_files()
            self.remove_former_best()
            with writing(prefix):
                self.model_saver.save(session, prefix, write_state=False, write_meta_graph=False)
            for path in files(prefix):
                synchronize(path)
            with paths.replacing(f'{self.best}.json') as file:
                json.dump(sealed({'step': step, 'loss': loss, 'name': name}), file)
            synchronize(self.directory)
        except OSError as error:
            if resolved(self.best) != prefix:
                remove(prefix)
            self.try_clear_up()
            raise not_saved(self.best, error) from error

    def remove_former_best(self):
        """Removes what was written as the best and is not, or not any more."""
        best = os.path.basename(resolved(self.best))
        for name in os.listdir(self.directory):
            match = re.fullmatch(f'({BEST}(?:-[0-9]+|-new)?){PART}', name)
            if match and match[1] != best:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.directory, name))

    def clear_up(self):
        """Ends the last save, whether it was committed or cut off. Removed are the checkpoints that it has begun or was
        to remove, unless they are kept; the training state of those that are but the newest; and temporary files."""
        for name in os.listdir(self.directory) if os.path.isdir(self.directory) else []:
            if REMAINS.fullmatch(name):
                path = os.path.join(self.directory, name)
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if name.startswith('.left-') else os.unlink(path)
        if os.path.exists(self.saving):
            begun = paths.read_small(self.saving).decode(errors='replace').splitlines()
            kept = all_named(self.directory)
            old = [prefix for prefix in checkpoints(self.directory, begun) if prefix not in kept]
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
        described = paths.descriptions(self.model_directory)
        for source in described:
            target = os.path.join(self.directory, os.path.basename(source))
            if not (os.path.exists(target) and filecmp.cmp(source, target, shallow=False)):
                copy(source, target)
        for path in paths.descriptions(self.directory)[len(described):]:  # of another model
            os.unlink(path)


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


def commit(directory, prefixes):
    """Writes the file `checkpoint`, which names checkpoints, the newest last."""
    names = [os.path.basename(prefix) for prefix in prefixes]
    with paths.replacing(os.path.join(directory, 'checkpoint')) as file:
        file.write(f'model_checkpoint_path: "{names[-1]}"\n')
        file.writelines(f'all_model_checkpoint_paths: "{name}"\n' for name in names)
    synchronize(directory)


def files(prefix):  # -> paths
    """The files of a checkpoint or of a training state, and no others whose names begin alike."""
    return [path for path in glob.glob(f'{glob.escape(prefix)}.*') if PARTS.fullmatch(os.path.basename(path))]


def remove(prefix):
    """Removes a checkpoint's files, as far as that is possible."""
    for path in files(prefix):
        with contextlib.suppress(OSError):
            os.unlink(path)


def link(source, target):
    """Gives a file, which is replaced and never changed, a second name; where that is not possible, copies it."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        copy(source, target)


def copy(source, target):
    with open(source, 'rb') as original, paths.replacing(target, 'wb') as file:
        shutil.copyfileobj(original, file)


def checkpoints(directory, names):  # -> prefixes
    """The checkpoints of a run that are among names, which may be any."""
    return [os.path.join(directory, name) for name in names if CHECKPOINT.fullmatch(name)]


def number(prefix):
    """The updates of a checkpoint of a run, by its name; 0 of a name without."""
    match = re.search('-([0-9]{1,15})$', prefix)
    return int(match[1]) if match else 0


def on_disk(directory):
    """All checkpoints of a run, named in `checkpoint` or not, oldest first."""
    names = [name.removesuffix('.index') for name in os.listdir(directory) if name.endswith('.index')]
    return sorted(checkpoints(directory, names), key=number)


def state_prefix(prefix):
    """The training state's path for a checkpoint's: …/model-7 → …/training-7."""
    directory, name = os.path.split(prefix)
    return os.path.join(directory, re.sub('^model', 'training', name))


def is_count(value):
    return type(value) is int and 0 <= value < LARGEST


def is_number(value):  # nor infinite, nor not a number
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_list(value, *checks):
    return type(value) is list and len(value) == len(checks) and all(
        check(entry) for check, entry in zip(checks, value, strict=True))


COUNT = (is_count, f'a whole number below {LARGEST}')
STATE = {  # what may be read of training-N.json and model-best.json: name -> (check, what it wants)
    'step': COUNT, 'position': COUNT, 'tokens': COUNT, 'worse': COUNT, 'acted': COUNT,
    'seed': (lambda value: type(value) is int and value >= 0, 'a whole number, 0 or more'),
    'loss': (lambda value: value is None or is_number(value), 'a number or null'),
    'average': (lambda value: is_list(value, is_number, is_number), 'two numbers'),
    'best': (lambda value: value is None or is_list(value, is_number, is_count), 'a loss and its step, or null'),
    'name': (lambda value: type(value) is str and re.fullmatch(f'{BEST}-[0-9]{{1,15}}', value), f'{BEST}-<step>'),
}


def read_state(prefix):
    """The training state of a checkpoint, and 'complete'; where it has none, the step of its name.

    Raises InputError where it is damaged, or what is used of it has another type or range.
    """
    path = f'{state_prefix(prefix)}.json'
    try:
        return {**unsealed(json.loads(paths.read_small(path))), 'complete': True}
    except FileNotFoundError:
        return {'step': number(resolved(prefix))}
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is damaged ({error}); remove it to go on with the weights alone') from None


def sealed(state):
    """The state with a checksum of itself, under the name crc32."""
    return {'crc32': zlib.crc32(json.dumps(state).encode()), **state}


def unsealed(values):
    """The state that sealed was given. Raises ValueError where it is another, or has a value that STATE does not want.

    Earlier versions saved it as it is, beginning with the step.
    """
    if not isinstance(values, dict) or 'step' not in values:
        raise ValueError('it is no object with a "step"')
    state = {name: value for name, value in values.items() if name != 'crc32'}
    if next(iter(values)) != 'step' and values != sealed(state):
        raise ValueError('its checksum is another')
    for name, (check, wanted) in STATE.items():
        if name in state and not check(state[name]):
            raise ValueError(f'"{name}" is {state[name]!r:.40}, expected {wanted}')
    return state


def all_named(directory):
    """The checkpoints of a run that its `checkpoint` file names, oldest first; none where there is no such file."""
    names = re.findall(r'^(?:all_)?model_checkpoint_paths?: "(.+)"\s*$', read_index(directory) or '', re.MULTILINE)
    names = [path_parts(name)[-1] for name in names]
    # The newest stands first, and once more as the last of all.
    return checkpoints(directory, [*(name for name in names if name != names[0]), *names[:1]])


def synchronize(path: str):
    """Has the operating system write a file or directory to the disk; a directory not on Windows, which opens none."""
    if sys.platform == 'win32' and os.path.isdir(path):
        return
    descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)  # Windows wants it to be writable
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def without_gpu():
    """For a session that only reads and writes files: a GPU's memory may be another process's."""
    return tf.ConfigProto(device_count={'GPU': 0})


def create(directory: str, hparams: model.HParams, seed: int | None = None):
    """Writes hparams.json and a checkpoint of a new, randomly initialized model into a model directory."""
    prefix = os.path.join(directory, NEW_CHECKPOINT)
    with tf.Graph().as_default(), tf.Session(config=without_gpu()) as session:
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
    with tf.Graph().as_default(), tf.Session(config=without_gpu()) as session, writing(prefix):
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
    commit(directory, [NEW_CHECKPOINT])
