"""The training loop: flags in, checkpoints out. A Worker, of any launcher, tells it its part."""
import contextlib
import dataclasses
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf

from command_line import interrupts
from errors import InputError, require
from fast import session as sessions
from generation import generator
from load_dataset import fingerprint
from storage import checkpoint, paths, run_folder
from storage.run_lock import Lock
from storage.run_state import TrainState
from training import log, optimizer
from training.data import Data
from training.graph import Graph, session_config
from training.log import Log
from training.sample_files import SampleFiles
from training.signals import Signals, Stopped
from training.worker import Worker

PROGRESS_EVERY = 60  # seconds between lines about a long validation


class Trainer:
    """One run: its graph, its session's variables, its TrainState. See `train`."""

    def __init__(self, flags, worker, session, signals):
        self.flags, self.worker, self.session, self.signals = flags, worker, session, signals
        self.weights_consistent = True  # False while an update is applied to one variable after another
        self.best_save_error = None
        worker.check_same(lambda: {f'--{name}': value for name, value in dataclasses.asdict(flags).items()})
        self.lock = Lock(paths.run_dir(flags.run_name, flags.checkpoint_dir))
        self.samples_directory = paths.child(flags.samples_dir, flags.run_name, '--run_name')
        worker.run_on_rank0(self.take_folders)
        try:
            self.prepare()
        except BaseException:
            self.lock.unlock()
            raise

    def take_folders(self):
        if self.flags.sample_every and self.flags.sample_num:
            paths.check_writable(self.samples_directory, '--samples_dir')
        self.lock.lock()

    def prepare(self):
        """Everything up to the first update: model, data, graph, the variables' values, log."""
        flags, worker, directory = self.flags, self.worker, self.lock.directory
        model_dir, self.hparams, enc = worker.run_everywhere(
            lambda: checkpoint.load_sizes_and_vocabulary(
                paths.find_model(flags.model_name, flags.models_dir, flags.checkpoint_dir, quiet=True)))
        with interrupts.default_signal_handlers(self.lock.unlock):
            worker.run_on_rank0(
                lambda: run_folder.check_start(directory, model_dir, flags.restore_from, self.hparams))
        worker.check_same(lambda: {'hparams.json': self.hparams.values(),
                                   'the vocabulary (its fingerprint)': fingerprint(enc)})
        require(self.hparams.n_ctx > 1, f'{model_dir} has n_ctx 1: in a window of one token there is nothing '
                                        'to predict; create a model with a larger one')
        self.data = Data(flags, enc, self.hparams, worker)
        with interrupts.default_signal_handlers(self.lock.unlock):
            self.graph = Graph(flags, self.hparams, worker.reduce)
            if flags.sample_every and flags.sample_num:
                self.samples = SampleFiles(flags, self.samples_directory, self.session, self.hparams, enc,
                                           self.graph.weights)
            self.run = run_folder.Run(directory, model_dir)
            # Not the weights, which are loaded soon: random numbers would leave memory allocated.
            self.session.run([tf.variables_initializer(self.run.state_variables),
                              tf.local_variables_initializer()])
            self.resume()
            tokens = flags.batch_size * flags.accumulate_gradients * self.hparams.n_ctx * worker.size
            self.log = Log(flags, worker, directory, self.state.step, tokens)

    def resume(self):
        fields = self.worker.run_on_rank0(self.restore)
        self.worker.broadcast(self.session, [*self.run.model_variables, *self.run.state_variables])
        self.state = TrainState(**fields)
        # Other ranks may have drawn another number of windows at a time: it is rounded up.
        position = -(-self.state.position // self.worker.size)
        self.worker.run_everywhere(lambda: self.data.start(self.state.seed, position))

    def restore(self):  # -> the fields of the TrainState
        flags, size = self.flags, self.data.size
        state = self.run.restore(self.session, flags.restore_from, self.say)
        seed = state.seed if flags.seed is None else flags.seed
        if state.seed is not None and (seed, size) != (state.seed, state.tokens):
            reason = 'The seed or the dataset is not that of the checkpoint'
            if state.tokens == self.data.size_with_held_out != size:
                reason = ('The text that --val_every now holds out was trained on before, so its loss is too '
                          'low (give other text with --val_dataset)')
            self.say(f'{reason}: the order of the data starts anew')
            state.position = 0
        state.seed, state.tokens = generator.new_seed() if seed is None else seed, size
        state.flags = dataclasses.asdict(flags)
        return dataclasses.asdict(state)

    def train(self):
        """Updates until --steps, --patience, a signal or an error, and then saves the last whole update."""
        try:
            self.act()  # an interruption may have left something undone
            while not self.is_finished():
                self.signals.check(self.worker, self.lock.gone())
                self.update()
                self.act()
        except BaseException as error:
            if self.weights_consistent and not self.worker.is_peer_failure(error):
                self.save_after(error)
            raise
        self.save()
        if self.best_save_error:
            raise self.best_save_error

    def act(self):
        """Validates, samples and saves, where that is due at this step and has not been done."""
        flags, state = self.flags, self.state
        if state.actions_done == 0:
            if due(flags.val_every, state.step):
                self.validate()
            state.actions_done = 1
        if state.actions_done == 1:
            if due(flags.sample_every, state.step) and not self.sample():
                return
            state.actions_done = 2
        if state.actions_done == 2:  # the last, as it commits the others
            if due(flags.save_every, state.step):
                self.try_save()
            state.actions_done = 3

    def is_finished(self):
        flags, state = self.flags, self.state
        if flags.patience and state.best and state.validations_since_best >= flags.patience:
            self.say(f'The last {state.validations_since_best} validation losses were not below that of '
                     f'{state.best[1]} updates, {state.best[0]:.4f}, which is kept as model-best')
            return True
        return flags.steps is not None and state.step >= flags.steps

    def update(self):
        flags, state, graph, total, count = self.flags, self.state, self.graph, 0.0, 0.0
        ops = graph.update
        rate = optimizer.learning_rate(state.step + 1, peak=flags.learning_rate, schedule=flags.schedule,
                                       warmup_steps=flags.warmup_steps, steps=flags.steps)
        self.session.run(ops.before)
        fetches = [ops.batch, graph.batch_total, graph.batch_count, *([] if ops.after else [ops.norm])]
        for _ in range(flags.accumulate_gradients):
            inputs, tokens = self.data.next_batch()
            self.weights_consistent = bool(ops.after)
            _, batch_total, batch_count, *norm = self.session.run(
                fetches, {graph.inputs: inputs, graph.tokens: tokens, graph.rate: rate})
            total, count = total + batch_total, count + batch_count
        if ops.after:
            self.weights_consistent = False
            *_, norm = self.session.run([*ops.after, [ops.norm]], {graph.rate: rate})
        loss = self.mean_of_all(total, count)
        self.check_finite(np.isfinite([loss, *norm]).all())
        self.weights_consistent = True
        state.step, state.loss, state.actions_done = state.step + 1, loss, 0
        state.position = self.data.position * self.worker.size
        state.average = [0.99 * state.average[0] + loss, 0.99 * state.average[1] + 1]
        self.log.update(state.step, self.losses(), loss=loss, learning_rate=rate, gradient_norm=norm[0])

    def check_finite(self, is_finite):
        """Raises FloatingPointError, after which nothing is saved, unless losses and weights are finite."""
        if not is_finite:
            self.weights_consistent = False
            raise FloatingPointError

    def losses(self):  # -> text
        state = self.state
        if state.loss is None or not state.average[1]:
            return ''
        return f'loss={state.loss:.4f} avg={state.average[0] / state.average[1]:.4f}'

    def mean_of_all(self, total, count):  # -> the mean loss of all ranks' tokens
        totals, counts = zip(*self.worker.gather([total, count]), strict=True)
        return float(sum(totals) / sum(counts))

    def validate(self):
        state, loss = self.state, self.validation_loss()
        self.check_finite(np.isfinite(loss))
        self.log.validation(state.step, loss)
        if state.best is not None and not loss < state.best[0]:
            state.validations_since_best += 1
        elif self.worker.run_on_rank0(lambda: self.save_best(loss)):
            state.best, state.validations_since_best = [loss, state.step], 0

    def validation_loss(self):
        graph, total, count, shown = self.graph, 0.0, 0.0, time.perf_counter()
        for number, batch in enumerate(self.data.validation_batches()):
            self.signals.check(self.worker, self.lock.gone())
            if self.worker.rank == 0 and time.perf_counter() - shown > PROGRESS_EVERY:
                shown = time.perf_counter()
                done = number * self.worker.size
                log.warn(f'Validation: {done} of {self.flags.val_batch_count} batches done')
            if batch:
                inputs, tokens = batch
                feed = {graph.inputs: inputs, graph.tokens: tokens}
                batch_total, batch_count = self.session.run([graph.total, graph.count], feed)
                total, count = total + batch_total, count + batch_count
        return self.mean_of_all(total, count)

    def save_best(self, loss):  # -> whether the weights could be saved as model-best
        self.best_save_error = None
        self.lock.check()
        try:
            self.run.save_best(self.session, self.state.step, loss)
        except run_folder.NotSaved as error:
            self.best_save_error = error
            log.warn(f'{error}. Training goes on')
        return not self.best_save_error

    def save(self):
        """Saves, unless that has been done at this step. Raises NotSaved."""
        if self.worker.rank == 0 and self.run.saved_step != self.state.step:
            self.check_finite(self.session.run(self.graph.finite))
            self.lock.check()
            self.say(f'Saving {self.run.path(f"model-{self.state.step}")}')
            self.run.save(self.session, self.state)

    def try_save(self):
        """Saves, or goes on: the disk may be full for a while."""
        if self.lock.gone():
            return  # all ranks are told before the next update
        try:
            self.save()
        except run_folder.NotSaved as error:
            log.warn(f'{error}. Training goes on, and tries again at the next save')

    def save_after(self, error):
        """Saves without hiding the error that ends training."""
        try:
            self.save()
        except Exception as second:
            if isinstance(error, Stopped):
                raise
            if str(second) != str(error):
                log.warn(f'Could not save: {second}')

    def sample(self):  # -> False where a signal has come before they are written
        if self.worker.rank or not self.flags.sample_num:
            return True
        try:
            texts = self.samples.draw(self.data.seed + self.state.step, self.signals)
            if texts is None:
                return False
            self.say(texts[-1])
            self.log.text(self.state.step, 'samples', '\n'.join(texts))
            self.samples.write(self.state.step, texts)
        except (OSError, InputError) as error:
            log.warn(f'The samples could not be written: {error}')
        return True

    def say(self, line):
        if self.worker.rank == 0:
            log.say(line)


def due(every, step):  # every: 0 for never
    return every and step % every == 0


def train(flags, worker: Worker | None = None) -> int:
    """Trains as the TrainFlags say. Returns the number of updates applied to the run's weights so far.

    Raises InputError for flags or files that cannot be used. Ctrl-C, SIGTERM and SIGHUP save and then end the
    process, with status 128 + the signal's number; before the first update they end it as before the call.
    """
    worker, signals = worker or Worker(), Signals()
    with (tf.Graph().as_default(), tf.Session(config=session_config(worker)) as session,
          contextlib.ExitStack() as stack):
        trainer = Trainer(flags, worker, session, signals)
        if worker.rank == 0 or worker.gpu is not None:
            rank = f' of rank {worker.rank}' if worker.rank else ''
            log.warn(f'Device{rank}: {sessions.device(worker.gpu or 0)}')
        stack.enter_context(signals.noted())
        try:
            trainer.train()
        except Stopped as name:
            trainer.say(f'Stopped by {name} at step {trainer.state.step}; the same command continues there')
            sys.exit(128 + signals.received)
        except FloatingPointError:
            worker.abort('the loss, its gradient or the weights are not finite after step '
                         f'{trainer.state.step}; the last save is kept: start again with a lower '
                         '--learning_rate, or from one before it with --restore_from')
        except tf.errors.ResourceExhaustedError as error:
            raise InputError('no memory is left for the update; lower --batch_size, or see '
                             '--memory_saving_gradients, --precision and --optimizer adafactor') from error
        finally:
            trainer.log.close()
            trainer.lock.unlock()
        losses = trainer.losses() or 'nothing trained'
        trainer.say(f'{trainer.state.step} steps done, {losses}: {trainer.run.directory}')
        return trainer.state.step
