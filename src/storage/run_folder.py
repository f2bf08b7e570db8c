"""The folder of a training run: its lock, saving, and going on from what was saved.

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
import os
import re
import shutil
import sys
from collections.abc import Callable

import tensorflow.compat.v1 as tf

from errors import InputError, require
from hparams import HParams, load_hparams
from storage import checkpoint, paths, vocabulary_files
from storage.run_state import BEST, sealed, unsealed

KEPT = 5
CHECKPOINT = re.compile('model-([0-9]{1,15})')  # the name of a run's checkpoint
PART = '\\.(index|meta|data-[0-9]{5}-of-[0-9]{5})'
PARTS = re.compile(f'(model|model-best|training)-[0-9]+{PART}|training-[0-9]+\\.json')
REMAINS = re.compile(  # of a process that was killed: what TensorFlow, paths.replacing and paths.making had begun
    f'(model|model-best|training)-[0-9]+{PART}\\.(tempstate[0-9]+|tmp[0-9a-f]{{32}})|'
    '(training-[0-9]+\\.json|model-best\\.json|checkpoint|counter|saving|hparams\\.json|encoder\\.json|vocab\\.bpe|'
    'special_tokens\\.json|dataset-[0-9a-f]+\\.npz)\\.[0-9]+\\.tmp|\\.left-[0-9]+(-[0-9]+)?\\.[a-z0-9_]{8}')


class NotSaved(InputError):
    """A checkpoint could not be written. Those that were there before are whole."""


def check_start(run_directory: str, model_directory: str, restore_from: str, hparams: HParams):
    """Raises InputError unless what a run begins with holds a model of these sizes. To be called before its graph is
    built, which could be of any size itself."""
    prefix, trained = checkpoint.resume_source(run_directory, model_directory, restore_from)
    sizes = os.path.join(os.path.dirname(prefix), 'hparams.json')
    require(not (trained and os.path.exists(sizes)) or load_hparams(sizes) == hparams,
            f'{prefix} was trained from a model of other sizes than {model_directory}; give the --model_name that it '
            'began with, or another --run_name')
    checkpoint.weights_reader(prefix, hparams)


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
        self.model_variables = checkpoint.model_variables()
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
        last = checkpoint.latest(self.directory)
        self.clear_up()
        prefix, trained = checkpoint.resume_source(self.directory, self.model_directory, restore_from)
        if last and os.path.realpath(prefix) == os.path.realpath(last):
            prefix = last  # by whatever path
        if trained:
            self.check_vocabulary(os.path.dirname(prefix))
        state = read_state(prefix) if trained else {'step': 0}
        if prefix != last or 'complete' not in state:  # the best is this run's, wherever the weights are from
            state = {**state, 'worse': 0, 'best': self.best_so_far(last)}
        checkpoint.restore(session, prefix, self.model_variables)
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
        best = checkpoint.read_best(self.directory)
        return [best['loss'], best['step']] if best else read_state(last).get('best')

    def check_vocabulary(self, directory):
        """Raises InputError where a vocabulary stands beside the checkpoint to go on from, and is not the model's."""
        if all(os.path.exists(os.path.join(directory, name)) for name in vocabulary_files.VOCABULARY_FILES):
            require(vocabulary_files.load_vocabulary(directory)
                    == vocabulary_files.load_vocabulary(self.model_directory),
                    f'{directory} was trained with another vocabulary than that of {self.model_directory}; give the '
                    '--model_name that it began with, or another --run_name')

    def restore_optimizer(self, session, prefix):
        if not self.state_variables:
            return
        require(os.path.exists(f'{prefix}.index'), f'{prefix}.json is there, but not {prefix}.index: '
                                                   'remove the first to go on with the weights alone')
        with checkpoint.readable(prefix):
            shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
        if {v.op.name: v.shape.as_list() for v in self.state_variables} != shapes:
            self.say(f'The optimizer is not the one of {prefix}: it starts anew')
        else:
            checkpoint.restore(session, prefix, self.state_variables)

    def save(self, session, state: dict, left: str | None = None):
        """Writes a checkpoint; state: what `restore` is to return, JSON's types, with 'step'.

        Checkpoints of this step and later ones, and `left`, go into a folder of their own. Raises NotSaved if it cannot
        be written; the last one is then still whole.
        """
        prefix = os.path.join(self.directory, f'model-{state["step"]}')
        try:
            with checkpoint.writing(prefix):
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
            paths.synchronize(path)
        with paths.replacing(os.path.join(self.directory, 'counter')) as file:
            file.write(f'{state["step"]}\n')
        checkpoint.commit(self.directory, kept[-KEPT:])
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
            checkpoint.commit(new, prefixes)
        paths.synchronize(self.directory)
        names = ', '.join(map(os.path.basename, prefixes))
        self.say(f'Left behind in {folder}, from where --restore_from goes on: {names}')

    def has_best(self) -> bool:
        """Whether there is a model-best."""
        return os.path.exists(f'{checkpoint.resolved(self.best)}.index')

    def save_best(self, session, step: int, loss: float):
        """Writes the weights as model-best, unless it has a loss as low, of before the run was killed or went back.

        model-best.json commits them. The best before it stays for those who are reading it. Raises as save does.
        """
        former = checkpoint.read_best(self.directory) if self.has_best() else None
        if former and former['loss'] <= loss:
            return
        name = f'{BEST}-{step}'
        if former and former['name'] == name:
            name = f'{BEST}-0{step}'  # of the same step before the run went back
        prefix = os.path.join(self.directory, name)
        try:
            self.copy_model_files()
            self.remove_former_best()
            with checkpoint.writing(prefix):
                self.model_saver.save(session, prefix, write_state=False, write_meta_graph=False)
            for path in files(prefix):
                paths.synchronize(path)
            with paths.replacing(f'{self.best}.json') as file:
                json.dump(sealed({'step': step, 'loss': loss, 'name': name}), file)
            paths.synchronize(self.directory)
        except OSError as error:
            if checkpoint.resolved(self.best) != prefix:
                remove(prefix)
            self.try_clear_up()
            raise not_saved(self.best, error) from error

    def remove_former_best(self):
        """Removes what was written as the best and is not, or not any more."""
        best = os.path.basename(checkpoint.resolved(self.best))
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


def read_state(prefix):
    """The training state of a checkpoint, and 'complete'; where it has none, the step of its name.

    Raises InputError where it is damaged, or what is used of it has another type or range.
    """
    path = f'{state_prefix(prefix)}.json'
    try:
        return {**unsealed(json.loads(paths.read_small(path))), 'complete': True}
    except FileNotFoundError:
        return {'step': number(checkpoint.resolved(prefix))}
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is damaged ({error}); remove it to go on with the weights alone') from None


def all_named(directory):
    """The checkpoints of a run that its `checkpoint` file names, oldest first; none where there is no such file."""
    index = checkpoint.read_index(directory) or ''
    names = re.findall(r'^(?:all_)?model_checkpoint_paths?: "(.+)"\s*$', index, re.MULTILINE)
    names = [checkpoint.path_parts(name)[-1] for name in names]
    # The newest stands first, and once more as the last of all.
    return checkpoints(directory, [*(name for name in names if name != names[0]), *names[:1]])
