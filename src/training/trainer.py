"""The training loop: flags in, checkpoints out."""
import signal
import sys
import time

from command_line.interrupts import Signals, Stopped, default_signal_handlers

import numpy as np
import tensorflow.compat.v1 as tf

from errors import InputError, require
from fast.session import device, session_config
from generation import generator
from storage import checkpoint, paths, run_folder, run_lock, run_state
from training import log, optimizer
from training.data import Data
from training.graph import Graph
from training.worker import Worker

PROGRESS_EVERY = 60  # seconds


class Trainer:
    """One run, with its lock, graph, variables and TrainState."""

    def __init__(self, flags, worker, session):
        self.flags, self.worker, self.session, self.signals = flags, worker, session, Signals()
        self.sample_every = flags.sample_every if flags.sample_num else 0
        self.samples_dir = paths.child(flags.samples_dir, flags.run_name, '--run_name')
        self.can_save = True  # not while variables change; sums do not count
        self.best_errors = []  # of the last model-best
        self.lock = run_lock.Lock(paths.run_dir(flags.run_name, flags.checkpoint_dir))
        worker.run_on_rank0(self.lock.lock)

    def prepare(self):
        flags, worker, folder = self.flags, self.worker, self.lock.folder
        path, hparams, enc, adapter = worker.run_on_all(self.load_model)
        with default_signal_handlers(self.lock.unlock):
            source = worker.run_on_rank0(lambda: run_folder.check_start(
                folder, path, flags.restore_from, hparams, flags.models_dir, adapter))
        worker.check_same({**vars(flags), 'hparams.json': hparams.values(), 'vocabulary': enc.fingerprint,
                           'the base': adapter and adapter.fingerprint})
        self.data = Data(flags, enc, hparams, worker, source, path)
        with default_signal_handlers(self.lock.unlock):
            end = enc.eot if flags.isolate_documents else None
            self.graph = Graph(flags, hparams, worker.reduce, end, adapter)
            self.run = run_folder.Run(folder, path, flags.models_dir, adapter, self.data.template)
            # Not the weights: random numbers would keep memory.
            self.session.run(tf.variables_initializer(self.run.state_variables))
            if adapter:  # each rank reads its base: Horovod would send it
                base = checkpoint.find_base(adapter, f'{folder}/model', flags.models_dir)
                worker.run_on_all(lambda: checkpoint.restore(self.session, base, self.graph.base))
            if self.sample_every:
                self.generator = generator.Generator(self.session, hparams, enc, self.graph.weights)
            self.resume()
        self.log = log.Log(flags, worker, folder, self.state, hparams.n_ctx)

    def load_model(self):
        flags = self.flags
        path, hparams, enc = checkpoint.load_sizes_and_vocabulary(
            flags.find_model(flags.model_name, quiet=True))
        require(hparams.n_ctx > 1, f'{path} has n_ctx 1, too few to predict a token')
        require(enc.eot is not None or not flags.isolate_documents,
                '--isolate_documents needs a vocabulary with a token that ends a text')
        if self.sample_every:
            require(enc.eot is not None, 'samples need a token that ends a text: use --sample_every 0')
            if self.worker.rank == 0:
                paths.check_writable(self.samples_dir, '--samples_dir')
        adapter = None
        if flags.lora_rank:
            adapter = checkpoint.new_adapter(path, hparams, flags.lora_rank, flags.lora_alpha,
                                             flags.lora_targets, self.lock.folder, flags.models_dir)
        return path, hparams, enc, adapter

    def resume(self):
        self.state = run_state.TrainState(**self.worker.run_on_rank0(self.restore))
        self.worker.broadcast(self.session, self.run.weights + self.run.state_variables)
        position = -(-self.state.position // self.worker.size)  # rounded up
        self.worker.run_on_all(lambda: self.data.start(self.state.seed, position))

    def restore(self):
        state = self.run.restore(self.session, self.flags.restore_from, log.say)
        seed = state.seed if self.flags.seed is None else self.flags.seed
        if state.seed is not None and (seed, self.data.size) != (state.seed, state.tokens):
            log.say('Another seed or dataset: the order of the data starts anew')
            if state.tokens == self.data.whole_size != self.data.size:
                log.say('The text --val_every now holds out was trained on: use --val_dataset')
            state.position = 0
        state.seed = generator.new_seed() if seed is None else seed
        state.tokens, state.flags = self.data.size, vars(self.flags)
        return vars(state)

    def train(self):  # until an end; saves the last whole update
        try:
            self.act()  # what was left undone
            while not self.is_finished():
                self.check()
                self.update()
                self.act()
        except Stopped as stopped:
            self.save()
            number = signal.Signals(*stopped.args)
            self.log.say(f'Stopped by {number.name} at step {self.state.step}; the same command goes on')
            sys.exit(128 + number)
        except Exception as error:
            if self.can_save and not (self.lock.gone() or self.worker.is_of_peer(error)):
                with log.warning_of(Exception, 'Could not save'):
                    self.save()
            if isinstance(error, tf.errors.ResourceExhaustedError):
                raise InputError('no memory is left for the update; lower --batch_size, or see --precision, '
                                 '--memory_saving_gradients and --optimizer adafactor') from error
            raise
        else:
            self.worker.run_on_rank0(self.save_last)
            self.log.say(f'{self.state.step} steps done, {self.losses()}: {self.run.folder}')
        finally:
            self.log.close()

    def act(self):  # does what is due and not yet done at this step
        actions = [(self.flags.val_every, self.validate), (self.sample_every, self.sample),
                   (self.flags.save_every, self.try_save)]
        for every, action in actions[self.state.actions_done:]:
            if every and self.state.step % every == 0:
                action()
            self.state.actions_done += 1

    def is_finished(self):
        flags, state = self.flags, self.state
        if flags.patience and state.best and state.validations_since_best >= flags.patience:
            loss, step = state.best
            self.log.say(f'No validation loss was below {loss:.4f} of step {step}, kept as model-best')
            return True
        return flags.steps is not None and state.step >= flags.steps

    def check(self):  # ends all ranks at a signal to one, or without the run's folder
        numbers, lines = zip(*self.worker.gather([self.signals.received, self.lock.gone()]), strict=True)
        if lines[0]:  # rank 0 has the lock
            self.worker.abort(lines[0])
        if any(numbers):
            raise Stopped(max(numbers))

    def update(self):
        state, graph = self.state, self.graph
        rate, sums = optimizer.learning_rate(state.step + 1, self.flags), np.zeros(2)
        self.session.run(graph.reset)
        for _ in range(self.flags.accumulate_gradients):
            feed = {graph.batch: self.data.next_batch(), graph.rate: rate}
            self.can_save = graph.apply is not None
            losses, norm = self.session.run([graph.update_losses, graph.update], feed)
            sums += losses
        self.can_save = False
        if graph.apply is not None:
            norm = self.session.run(graph.apply, {graph.rate: rate})
        loss = self.mean_of_all(sums, norm)
        self.can_save = True
        state.step += 1
        state.loss, state.actions_done = loss, 0
        state.position = self.data.position * self.worker.size
        state.average = [0.99 * state.average[0] + loss, 0.99 * state.average[1] + 1]
        self.log.update(state.step, self.losses(), loss=loss, learning_rate=rate, gradient_norm=norm)

    def mean_of_all(self, sums, norm=0.0):  # sum of losses, their number -> mean of all ranks
        total, count = np.sum(self.worker.gather(sums.tolist()), 0)
        self.check_finite(np.isfinite([total / count, norm]).all())
        return float(total / count)

    def check_finite(self, is_finite):
        if not is_finite:
            self.can_save = False
            self.worker.abort(f'a loss or weight is not finite after step {self.state.step}; the last save '
                              'is kept: go on with a lower --learning_rate')

    def losses(self):
        state = self.state
        if state.loss is None or not state.average[1]:
            return 'nothing trained'
        return f'loss={state.loss:.4f} avg={state.average[0] / state.average[1]:.4f}'

    def validate(self):
        state, loss = self.state, self.val_loss()
        seconds = self.log.bar.format_dict['elapsed']
        self.log.say(f'[{state.step} | {seconds:.2f}] validation loss = {loss:.4f}')
        self.log.scalars(state.step, val_loss=loss)
        if state.best and loss >= state.best[0]:
            state.validations_since_best += 1
        elif self.worker.run_on_rank0(lambda: self.save_best(loss)):
            state.best, state.validations_since_best = [loss, state.step], 0

    def val_loss(self):
        sums, shown = np.zeros(2), time.perf_counter()
        for number, batch in enumerate(self.data.val_batches()):
            self.check()
            if time.perf_counter() - shown > PROGRESS_EVERY:
                shown, done = time.perf_counter(), number * self.worker.size
                self.log.say(f'Validation: {done} of {self.flags.val_batch_count} batches done', sys.stderr)
            if batch:
                sums += self.session.run(self.graph.losses, {self.graph.batch: batch})
        return self.mean_of_all(sums)

    def sample(self):
        texts = []
        for first in range(0, self.flags.sample_num, self.flags.batch_size):
            self.check()
            if self.worker.rank == 0:
                texts += self.draw(first)
        if texts:
            self.generator.free_cache()
            self.log.samples(self.state.step, texts, self.samples_dir)

    def draw(self, first):  # -> texts of a batch of samples, from this number on
        flags, seed = self.flags, (self.data.sampler.seed + self.state.step) % 2**63
        seeds = [[seed, number] for number in range(flags.sample_num)[first:first + flags.batch_size]]
        rows = self.generator.complete(
            [[self.generator.enc.eot]] * len(seeds), seeds, top_k=flags.top_k, top_p=flags.top_p,
            length=flags.sample_length or self.generator.hparams.n_ctx - 1)
        return [f'======== SAMPLE {i} ========\n{row.text}\n' for i, row in enumerate(rows, first + 1)]

    def save(self):
        if self.worker.rank == 0 and self.run.saved_step != self.state.step:
            self.check_finite(self.session.run(self.graph.finite))
            self.lock.check()
            self.log.sync()
            log.say(f'Saving {self.run.path(f"model-{self.state.step}")}')
            self.run.save(self.session, self.state)

    def save_last(self):
        self.save()
        if self.best_errors:
            raise self.best_errors[0]

    def try_save(self):
        if not self.lock.gone():  # else all ranks end before an update
            with log.warning_of(run_folder.NotSaved, 'Training goes on'):
                self.save()

    def save_best(self, loss):  # -> whether it was saved
        self.lock.check()
        with log.warning_of(run_folder.NotSaved, 'Training goes on') as self.best_errors:
            self.run.save_best(self.session, self.state.step, loss)
        return not self.best_errors


def train(flags, worker: Worker | None = None) -> int:
    """Trains as TrainFlags say, and returns the run's updates. Raises InputError, SystemExit at signals."""
    worker = worker or Worker()
    with tf.Graph().as_default(), tf.Session(config=session_config(worker.gpu, worker.threads)) as session:
        trainer = Trainer(flags, worker, session)
        try:
            trainer.prepare()
            if worker.rank == 0 or worker.gpu is not None:
                rank = f' of rank {worker.rank}' if worker.rank else ''
                log.warn(f'Device{rank}: {device(worker.gpu or 0)}')
            with trainer.signals.noted():
                trainer.train()
        finally:
            trainer.lock.unlock()
        return trainer.state.step
