"""A training run's folder: saving, and going on from the last save. docs/formats.md lists its files.

The file `saving` names checkpoints that a save writes and removes; `checkpoint` commits it. The next save
completes or undoes a killed one.
"""
import contextlib
import filecmp
import os
import re
import shutil

import tensorflow.compat.v1 as tf

from errors import InputError, require
from hparams import load_hparams
from storage import checkpoint, metrics_file, paths, run_state, vocabulary_files
from storage.run_state import BEST, Best, TrainState

KEPT = 5  # checkpoints
PART = r'\.(index|meta|data-[0-9]{5}-of-[0-9]{5})'
REMAINS = (  # of a killed process, from TensorFlow, paths.replacing and paths.making
    rf'((model|{BEST}|training)-[0-9]+{PART}|(training-[0-9]+|{BEST}|hparams|encoder|special_tokens'
    r'|template|adapter)\.json|vocab\.bpe|checkpoint|counter|saving|metrics\.jsonl|dataset-[0-9a-f]+\.npz)'
    r'\.(tempstate[0-9]+|tmp[0-9a-f]{32}|[0-9]+\.tmp)'
    r'|\.left-[0-9]+(-[0-9]+)?\.[a-z0-9_]{8}')


class NotSaved(InputError):
    """A checkpoint could not be written; those before are whole."""


def find_source(run, model, restore_from):  # folders, flag -> prefix, whether training wrote it
    trained = checkpoint.latest(run) if restore_from == 'latest' else None
    if restore_from not in ('latest', 'fresh'):
        trained = checkpoint.resolve_path(restore_from)
    return trained or checkpoint.resolve_path(model), bool(trained)


def check_start(run, model, restore_from, hparams, models_dir='models', wanted=None):
    """The folder of the checkpoint that the run begins with. Raises InputError unless that is of this model,
    and the run trains as before: all weights, or the Adapter `wanted`."""
    prefix, trained = find_source(run, model, restore_from)
    best = checkpoint.read_best(run) and f'{run}/{BEST}'
    for old in filter(None, [checkpoint.latest(run), best, trained and prefix]):
        own = checkpoint.adapter_of(old)
        require(own == wanted, f'{old} has {own or "all weights"}, not {wanted or "all weights"}; give the '
                               'same flags and model, or another --run_name')
    folder, load = os.path.dirname(prefix) or '.', vocabulary_files.load_vocabulary
    if trained:
        sizes, *vocabulary = paths.descriptions(folder)
        same = not os.path.exists(sizes) or load_hparams(sizes) == hparams
        if same and all(map(os.path.exists, vocabulary)):
            same = load(folder) == load(model)
        require(same, f'{prefix} was trained from a model of other sizes or vocabulary than {model}; '
                      'give its --model_name, or another --run_name')
    checkpoint.check_sizes(prefix, hparams, models_dir)
    return folder


class Run:
    """Saves and resumes a run in the folder that Lock made. Make it after the graph's variables."""

    def __init__(self, folder, model, models_dir='models', adapter=None, template=None):  # of prompts, if any
        self.folder, self.model, self.say = folder, model, print
        self.models_dir, self.adapter, self.template = models_dir, adapter, template
        self.weights = checkpoint.model_variables()
        names = {v.op.name for v in self.weights}
        self.state_variables = [v for v in tf.global_variables() if v.op.name not in names]
        self.model_saver = tf.train.Saver(self.weights, max_to_keep=0)
        self.state_saver = self.state_variables and tf.train.Saver(self.state_variables, max_to_keep=0)
        self.pending, self.best = self.path('saving'), self.path(BEST)
        self.saved_step: int | None = None

    def matching(self, pattern):  # -> paths
        return [self.path(name) for name in os.listdir(self.folder) if re.fullmatch(pattern, name)]

    def remove(self, pattern):  # files, and folders of paths.making, where possible
        for path in self.matching(pattern):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if os.path.basename(path).startswith('.left-') else os.unlink(path)

    def path(self, name):
        return f'{self.folder}/{name}'

    def restore(self, session, restore_from, say) -> TrainState:
        """Loads the checkpoint of --restore_from and its state. say: takes lines for the user."""
        self.say, last = say, checkpoint.latest(self.folder)
        self.clear_up()
        prefix, trained = find_source(self.folder, self.model, restore_from)
        if last and os.path.realpath(prefix) == os.path.realpath(last):
            prefix = last
        training = state_prefix(prefix)
        saved = run_state.read(f'{training}.json', TrainState) if trained else None
        state = saved or TrainState(step_of(checkpoint.files_prefix(prefix)) if trained else 0)
        if not saved or prefix != last:  # the best stays this run's
            state.best, state.validations_since_best = self.best_so_far(last), 0
        if self.adapter and not trained:
            session.run([v.initializer for v in self.weights])
        else:
            checkpoint.restore(session, prefix, self.weights, self.models_dir)
        say(f'Loaded {prefix}')
        if saved and self.state_variables:
            with checkpoint.readable(training) as reader:
                shapes = reader.get_variable_to_shape_map()
            if shapes == {v.op.name: v.shape.as_list() for v in self.state_variables}:
                checkpoint.restore(session, training, self.state_variables)
            else:
                say(f'The optimizer is not the one of {training}: it starts anew')
        elif state.step and not saved:
            say(f'{prefix} has no training state beside it: the optimizer and the data start anew')
        self.saved_step = state.step
        if last and prefix != last:  # later saves overwrite no committed checkpoint
            self.save(session, state, left=step_of(last), source=os.path.dirname(prefix))
        return state

    def best_so_far(self, last):  # -> [loss, step] or None
        if last and (best := checkpoint.read_best(self.folder)):
            return [best.loss, best.step]
        # Before version 0.3, only the last training state had it.
        has_best = last and os.path.exists(f'{self.best}.index')
        state = run_state.read(f'{state_prefix(last)}.json', TrainState) if has_best else None
        return state and state.best

    @contextlib.contextmanager
    def saving(self, prefix):
        """If a write fails, clears up, as the disk may be full, and raises NotSaved."""
        try:
            with checkpoint.writing(prefix):
                yield
        except OSError as error:
            with contextlib.suppress(OSError, InputError):
                self.clear_up()
                self.remove_old_best()
            raise NotSaved(f'{prefix} could not be saved ({error.strerror or error}); the same command goes '
                           f'on from the last: {paths.remedy(error)}') from error

    def save(self, session, state, left=None, source=None):
        """Writes a checkpoint; moves those from this step on, and `left`, into a folder left-N. source: the
        folder that it goes on from."""
        step = state.step
        with self.saving(self.path(f'model-{step}')):
            self.clear_up()
            present = sorted(steps(os.listdir(self.folder), r'\.index'))
            if behind := [other for other in present if other >= step or other == left]:
                self.leave(behind)
            self.copy_model_files()
            kept = [other for other in named_steps(self.folder) if other in present and other not in behind]
            kept.append(step)
            with paths.replacing(self.pending) as file:
                file.writelines(f'model-{other}\n' for other in [step, *behind, *kept[:-KEPT]])
            if self.state_saver:
                self.write(self.state_saver, session, f'training-{step}')
            run_state.write(self.path(f'training-{step}.json'), state)
            self.write(self.model_saver, session, f'model-{step}', meta=not self.adapter)
            with paths.replacing(self.path('counter')) as file:
                file.write(f'{step}\n')
            if source and os.path.realpath(source) != os.path.realpath(self.folder):
                metrics_file.copy(source, self.folder)
            checkpoint.commit(self.folder, [f'model-{other}' for other in kept[-KEPT:]])
        self.saved_step = step
        with contextlib.suppress(OSError):  # the next save tries again
            self.clear_up()

    def write(self, saver, session, name, meta=False):
        saver.save(session, self.path(name), write_state=False, write_meta_graph=meta)
        for path in self.matching(name + PART):
            paths.synchronize(path)

    def leave(self, behind):
        """Links checkpoints and states into a new folder; the save's commit removes them here."""
        newest = self.path(f'left-{behind[-1]}')
        folders = [newest, *(f'{newest}-{count}' for count in range(2, 1000))]
        folder = next(path for path in folders if not os.path.lexists(path))
        names = [f'model-{step}' for step in behind]
        with paths.making(folder) as new:
            for source in [*filter(os.path.isfile, paths.descriptions(self.folder)),
                           *self.matching('|'.join([*map(files_of, behind), r'(adapter|template)\.json']))]:
                target = f'{new}/{os.path.basename(source)}'
                try:
                    os.link(os.path.realpath(source), target)  # it may be replaced, not changed
                except OSError:
                    paths.copy_file(source, target)
            metrics_file.copy(self.folder, new)  # no link, since lines are added to it
            checkpoint.commit(new, names)
        paths.synchronize(self.folder)
        self.say(f'Left behind in {folder}, from where --restore_from goes on: {", ".join(names)}')

    def save_best(self, session, step, loss):
        """Writes model-best, unless it has a loss as low from before the run went back."""
        old = checkpoint.read_best(self.folder)
        if old and old.loss <= loss:
            return
        name = f'{BEST}-{step}'
        if old and old.name == name:
            name = f'{BEST}-0{step}'  # the same step, before the run went back
        with self.saving(self.best):
            self.copy_model_files()
            self.remove_old_best()
            self.write(self.model_saver, session, name)
            run_state.write(f'{self.best}.json', Best(step, loss, name))
            paths.synchronize(self.folder)

    def remove_old_best(self):  # all but that of model-best.json
        best = os.path.basename(checkpoint.files_prefix(self.best))
        self.remove(rf'(?!{best}\.){BEST}(-[0-9]+|-new)?{PART}')

    def clear_up(self):  # completes or undoes the last save, removes temporary files
        self.remove(REMAINS)
        if os.path.exists(self.pending):
            kept = named_steps(self.folder)
            for step in steps(paths.read_small(self.pending).decode(errors='replace').splitlines()):
                if step not in kept:
                    self.remove(files_of(step))
            for step in kept[:-1]:
                self.remove(rf'training-{step}({PART}|\.json)')
            self.remove('saving')

    def copy_model_files(self):  # sizes and vocabulary make the run's folder a model's
        sources = paths.descriptions(self.model)
        for source in sources:
            target = self.path(os.path.basename(source))
            if not (os.path.exists(target) and filecmp.cmp(source, target, shallow=False)):
                paths.copy_file(source, target)
        for path in paths.descriptions(self.folder)[len(sources):]:  # another model's
            os.unlink(path)
        for name, values in ((paths.TEMPLATE, self.template and {'template': self.template}),
                             (run_state.ADAPTER, self.adapter and run_state.with_crc(vars(self.adapter)))):
            if values:
                paths.write_json(self.path(name), values)
            else:  # of a start with one
                self.remove(re.escape(name))


def files_of(step):  # a pattern, of weights and training state
    return rf'(model|training)-{step}{PART}|training-{step}\.json'


def steps(names, suffix=''):  # of checkpoints among names
    matches = (re.fullmatch(f'model-(0|[1-9][0-9]{{,14}}){suffix}', name) for name in names)
    return [int(match[1]) for match in matches if match]


def named_steps(folder):  # the newest last
    return steps(checkpoint.listed(folder))


def step_of(prefix):  # -> the step in a checkpoint's name; 0 without
    match = re.search('-([0-9]{1,15})$', prefix)
    return int(match[1]) if match else 0


def state_prefix(prefix):  # of its training-N
    folder, name = os.path.split(prefix)
    return os.path.join(folder, name.replace('model', 'training', 1))
