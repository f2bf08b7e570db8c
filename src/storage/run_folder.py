"""The folder of a training run: saving, and going on from the last save. For an update N it holds
  model-N.*          the weights alone, in the format of the released models; the last KEPT stay
  training-N.*       the optimizer's variables, and the TrainState (.json), of the newest checkpoint alone
  checkpoint         names the model-N; written last, it commits a save
  model-best-N.*     the weights of the lowest validation loss, and of the best before it
  model-best.json    names one of the two; written last, it commits that
  counter            N, for the code bases that look there
  saving             during a save: the checkpoints that it writes and is to remove
  left-N/            a run directory: checkpoints up to N, before the run went back
The folder may be forged: no name in it leads out of it, or to a file that is not of a checkpoint.
"""
import contextlib
import filecmp
import glob
import itertools
import os
import re
import shutil

import tensorflow.compat.v1 as tf

from errors import InputError, require
from hparams import HParams, load_hparams
from storage import checkpoint, paths, vocabulary_files
from storage.run_state import BEST, Best, TrainState, from_json, to_json

KEPT = 5
CHECKPOINT = re.compile('model-([0-9]{1,15})')  # the name of a run's checkpoint
PART = r'\.(index|meta|data-[0-9]{5}-of-[0-9]{5})'
PARTS = re.compile(rf'(model|model-best|training)-[0-9]+{PART}|training-[0-9]+\.json')
REMAINS = re.compile(  # of a killed process: temporary files of TensorFlow, paths.replacing and paths.making
    rf'({PARTS.pattern})\.(tempstate[0-9]+|tmp[0-9a-f]{{32}}|[0-9]+\.tmp)|'
    r'(model-best\.json|checkpoint|counter|saving|hparams\.json|encoder\.json|vocab\.bpe|'
    r'special_tokens\.json|dataset-[0-9a-f]+\.npz)\.[0-9]+\.tmp|\.left-[0-9]+(-[0-9]+)?\.[a-z0-9_]{8}')
WITHOUT_GRAPH = {'write_state': False, 'write_meta_graph': False}
OTHER_MODEL = 'give the --model_name that it began with, or another --run_name'


class NotSaved(InputError):
    """A checkpoint could not be written; those before it are whole."""

    def __init__(self, prefix: str, error: OSError):
        super().__init__(f'{prefix} could not be saved ({error.strerror or error}); those before it are as '
                         f'they were, and the same command goes on from the last: {paths.remedy(error)}')


def check_start(run_directory: str, model_directory: str, restore_from: str, hparams: HParams):
    """Raises InputError unless the run begins with a checkpoint of these sizes; call this before a graph."""
    prefix, trained = checkpoint.resume_source(run_directory, model_directory, restore_from)
    sizes = os.path.join(os.path.dirname(prefix), 'hparams.json')
    if trained and os.path.exists(sizes):
        require(load_hparams(sizes) == hparams,
                f'{prefix} was trained from a model of other sizes than {model_directory}; {OTHER_MODEL}')
    checkpoint.weights_reader(prefix, hparams)


class Run:
    """Saves and resumes one run. Make it after the graph's variables, in a folder that Lock has made."""

    def __init__(self, directory: str, model_directory: str):
        self.directory, self.model_directory, self.say = directory, model_directory, print
        self.model_variables = checkpoint.model_variables()
        names = {v.op.name for v in self.model_variables}
        self.state_variables = [v for v in tf.global_variables() if v.op.name not in names]
        self.model_saver = tf.train.Saver(self.model_variables, max_to_keep=0)
        self.state_saver = self.state_variables and tf.train.Saver(self.state_variables, max_to_keep=0)
        self.pending, self.best = self.path('saving'), self.path(BEST)
        self.saved_step: int | None = None

    def path(self, name):
        return os.path.join(self.directory, name)

    def restore(self, session, restore_from: str, say) -> TrainState:
        """Loads what `restore_from` asks for (see checkpoint.resume_source). A checkpoint of other code,
        without a state, has the step of its name. say: takes a line for the user."""
        self.say = say
        last = checkpoint.latest(self.directory)
        self.clear_up()
        prefix, trained = checkpoint.resume_source(self.directory, self.model_directory, restore_from)
        if last and os.path.realpath(prefix) == os.path.realpath(last):
            prefix = last  # by whatever path
        if trained:
            self.check_vocabulary(os.path.dirname(prefix))
        saved = read_state(prefix) if trained else None
        state = saved or TrainState(number(checkpoint.resolved(prefix)) if trained else 0)
        if not (saved and prefix == last and self.has_best()):  # the best is always this run's
            state.best, state.validations_since_best = self.best_so_far(last), 0
        checkpoint.restore(session, prefix, self.model_variables)
        say(f'Loaded {prefix}')
        if saved:
            self.restore_optimizer(session, state_prefix(prefix))
        elif state.step:
            say(f'{prefix} has no training state beside it: the optimizer and the data start anew at step '
                f'{state.step}')
        self.saved_step = state.step
        if last and prefix != last:
            self.save(session, state, left=last)  # else later saves could overwrite committed checkpoints
        return state

    def best_so_far(self, last):  # -> [loss, step], or None
        if not (last and self.has_best()):
            return None
        if best := checkpoint.read_best(self.directory):
            return [best.loss, best.step]
        state = read_state(last)  # of an older version
        return state and state.best

    def check_vocabulary(self, directory):
        """Raises InputError where a vocabulary stands in the directory that is not the model's."""
        if all(os.path.exists(os.path.join(directory, name)) for name in vocabulary_files.VOCABULARY_FILES):
            require(vocabulary_files.load_vocabulary(directory)
                    == vocabulary_files.load_vocabulary(self.model_directory),
                    f'{directory} was trained with another vocabulary than that of {self.model_directory}; '
                    f'{OTHER_MODEL}')

    def restore_optimizer(self, session, prefix):
        if not self.state_variables:
            return
        require(os.path.exists(f'{prefix}.index'),
                f'{prefix}.json is there without {prefix}.index: remove it to go on with the weights alone')
        with checkpoint.readable(prefix):
            shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
        if {v.op.name: v.shape.as_list() for v in self.state_variables} == shapes:
            checkpoint.restore(session, prefix, self.state_variables)
        else:
            self.say(f'The optimizer is not the one of {prefix}: it starts anew')

    @contextlib.contextmanager
    def saving(self, prefix):
        """Raises NotSaved where the block cannot write, and clears up, as the disk may be full."""
        try:
            with checkpoint.writing(prefix):
                yield
        except OSError as error:
            with contextlib.suppress(OSError, InputError):
                self.clear_up()
                self.remove_former_best()
            raise NotSaved(prefix, error) from error

    def save(self, session, state: TrainState, left: str | None = None):
        """Writes a checkpoint; moves `left`, and those of this step and later, into a folder of their own."""
        prefix = self.path(f'model-{state.step}')
        with self.saving(prefix):
            self.clear_up()
            behind = [path for path in on_disk(self.directory) if number(path) >= state.step or path == left]
            if behind:
                self.leave(behind)
            self.copy_model_files()
            named = [path for path in all_named(self.directory) if os.path.exists(f'{path}.index')]
            kept = [*(path for path in named if path not in behind), prefix]
            with paths.replacing(self.pending) as file:
                file.writelines(f'{os.path.basename(path)}\n' for path in [prefix, *behind, *kept[:-KEPT]])
            if self.state_saver:
                self.state_saver.save(session, state_prefix(prefix), **WITHOUT_GRAPH)
            with paths.replacing(f'{state_prefix(prefix)}.json') as file:
                file.write(to_json(state))
            self.model_saver.save(session, prefix, write_state=False)
            synchronize([*files(prefix), *files(state_prefix(prefix))])
            with paths.replacing(self.path('counter')) as file:
                file.write(f'{state.step}\n')
            checkpoint.commit(self.directory, kept[-KEPT:])
        self.saved_step = state.step
        with contextlib.suppress(OSError):  # the next save tries again
            self.clear_up()

    def leave(self, prefixes):
        """Links checkpoints (newest last) and their states into a new run directory. Here the save removes
        them once it is committed: so the run is whole, whenever it is killed."""
        newest = self.path(f'left-{number(prefixes[-1])}')
        folder, numbers = newest, itertools.count(2)
        while os.path.lexists(folder):
            folder = f'{newest}-{next(numbers)}'
        with paths.making(folder) as new:
            sources = paths.descriptions(self.directory)
            for prefix in prefixes:
                sources += [*files(prefix), *files(state_prefix(prefix))]
            for path in filter(os.path.isfile, sources):
                link(path, os.path.join(new, os.path.basename(path)))
            checkpoint.commit(new, prefixes)
        paths.synchronize(self.directory)
        names = ', '.join(map(os.path.basename, prefixes))
        self.say(f'Left behind in {folder}, from where --restore_from goes on: {names}')

    def has_best(self) -> bool:
        """Whether there is a model-best."""
        return os.path.exists(f'{checkpoint.resolved(self.best)}.index')

    def save_best(self, session, step: int, loss: float):
        """Writes the weights as model-best, unless that has a loss as low, of before the run went back. The
        best before it stays for those who are reading it."""
        former = checkpoint.read_best(self.directory) if self.has_best() else None
        if former and former.loss <= loss:
            return
        name = f'{BEST}-{step}'
        if former and former.name == name:
            name = f'{BEST}-0{step}'  # the same step, before the run went back
        prefix = self.path(name)
        with self.saving(self.best):
            self.copy_model_files()
            self.remove_former_best()
            self.model_saver.save(session, prefix, **WITHOUT_GRAPH)
            synchronize(files(prefix))
            with paths.replacing(f'{self.best}.json') as file:
                file.write(to_json(Best(step, loss, name)))
            paths.synchronize(self.directory)

    def remove_former_best(self):  # and one that could not be saved
        best = os.path.basename(checkpoint.resolved(self.best))
        for name in os.listdir(self.directory):
            match = re.fullmatch(f'({BEST}(?:-[0-9]+|-new)?){PART}', name)
            if match and match[1] != best:
                remove([self.path(name)])

    def clear_up(self):
        """Completes the last save, or undoes it if it was not committed: removes temporary files, checkpoints
        that it has begun or was to remove, and all training states but the newest."""
        remove(map(self.path, filter(REMAINS.fullmatch, os.listdir(self.directory))))
        if os.path.exists(self.pending):
            begun = paths.read_small(self.pending).decode(errors='replace').splitlines()
            kept = all_named(self.directory)
            old = [prefix for prefix in checkpoints(self.directory, begun) if prefix not in kept]
            for prefix in [*old, *map(state_prefix, [*old, *kept[:-1]])]:
                remove(files(prefix))
            remove([self.pending])

    def copy_model_files(self):
        """Has sizes and vocabulary stand beside the run, which makes it a model directory."""
        described = paths.descriptions(self.model_directory)
        for source in described:
            target = self.path(os.path.basename(source))
            if not (os.path.exists(target) and filecmp.cmp(source, target, shallow=False)):
                copy(source, target)
        for path in paths.descriptions(self.directory)[len(described):]:  # of another model
            os.unlink(path)


def files(prefix):  # -> paths of a checkpoint or of a training state, not of others whose names begin alike
    return [path for path in glob.glob(f'{glob.escape(prefix)}.*') if PARTS.fullmatch(os.path.basename(path))]


def remove(files):  # or folders that paths.making has left; as far as that is possible
    for path in files:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if os.path.basename(path).startswith('.left-') else os.unlink(path)


def synchronize(files):
    for path in files:
        paths.synchronize(path)


def link(source, target):  # of a file that is replaced and never changed
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        copy(source, target)


def copy(source, target):
    with open(source, 'rb') as original, paths.replacing(target, 'wb') as file:
        shutil.copyfileobj(original, file)


def checkpoints(directory, names):  # -> prefixes of the checkpoints of a run among names, which may be any
    return [os.path.join(directory, name) for name in names if CHECKPOINT.fullmatch(name)]


def number(prefix):  # -> the updates of a run's checkpoint, by its name; 0 without
    match = re.search('-([0-9]{1,15})$', prefix)
    return int(match[1]) if match else 0


def on_disk(directory):  # -> all checkpoints of a run, named in `checkpoint` or not, oldest first
    names = [name.removesuffix('.index') for name in os.listdir(directory) if name.endswith('.index')]
    return sorted(checkpoints(directory, names), key=number)


def all_named(directory):  # -> the checkpoints that its file `checkpoint` names, oldest first
    index = checkpoint.read_index(directory) or ''
    names = re.findall(r'^(?:all_)?model_checkpoint_paths?: "(.+)"\s*$', index, re.MULTILINE)
    names = [checkpoint.path_parts(name)[-1] for name in names]
    # The newest stands first, and once more as the last of all.
    return checkpoints(directory, [*(name for name in names if name != names[0]), *names[:1]])


def state_prefix(prefix):  # '…/model-7' -> '…/training-7'
    directory, name = os.path.split(prefix)
    return os.path.join(directory, re.sub('^model', 'training', name))


def read_state(prefix):  # -> the TrainState of a checkpoint, or None
    """Raises InputError where it is damaged."""
    path = f'{state_prefix(prefix)}.json'
    try:
        return from_json(TrainState, paths.read_small(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is damaged ({error}); remove it to go on with the weights alone') from None
