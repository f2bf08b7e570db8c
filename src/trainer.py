"""The training loop: flags in, checkpoints out. It knows nothing of the launcher; a Worker tells it its part."""
import contextlib
import dataclasses
import os
import signal
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import checkpoint
import generator
import model
import optimizer
import paths
from errors import InputError, require
from load_dataset import Sampler, hold_out, load_dataset

FEWEST_TOKENS = 16  # of a dataset: less is a mistake, such as an empty file or a wrong path
HELD_OUT = 0.05  # the share of the dataset's tokens that validates where no --val_dataset is given


@dataclasses.dataclass(frozen=True)
class Worker:
    """The part of one process among `size` that train together; only rank 0 writes and prints."""
    rank: int = 0
    size: int = 1


class Stopped(Exception):
    """A signal has asked for the end of training."""


class Signals:
    """While entered, SIGINT, SIGTERM and SIGHUP are only noted; but a second Ctrl-C acts as it always did.

    What was ignored (SIGHUP under nohup) stays ignored.
    """

    def __init__(self):
        self.received = None

    def __enter__(self):
        self.previous = {}
        with contextlib.suppress(ValueError):  # handlers can be set in the main thread only
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self.previous[number] = signal.signal(number, self.note)
        return self

    def note(self, number, frame):
        self.received = self.received or number
        # Others may come twice without meaning more, from a launcher and from its shell, and must not cut a save off.
        if signal.SIGINT in self.previous:
            signal.signal(signal.SIGINT, self.previous[signal.SIGINT])

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def check(self):
        if self.received:
            raise Stopped(signal.Signals(self.received).name)


class Data:
    """Batches of training windows, and the fixed windows of validation."""

    def __init__(self, flags, enc, hparams, worker):
        self.flags, self.hparams, self.worker = flags, hparams, worker
        self.training = load_dataset(enc, paths.expand(flags.dataset), flags.combine, encoding=flags.encoding)
        self.validation = []
        if flags.val_every and flags.val_dataset:
            self.validation = load_dataset(enc, paths.expand(flags.val_dataset), flags.combine,
                                           encoding=flags.encoding)
        elif flags.val_every:
            self.training, self.validation = hold_out(self.training, HELD_OUT)
        self.size = sum(len(chunk) for chunk in self.training)
        require(self.size >= FEWEST_TOKENS, f'--dataset {flags.dataset} has {self.size} tokens to train on, but '
                f'at least {FEWEST_TOKENS} are needed (and {hparams.n_ctx} for one full window); give more text')

    def start(self, seed, position):
        """From here on next_batch follows the stream of this seed from this position."""
        self.seed = seed
        self.sampler = Sampler(self.training, seed, rank=self.worker.rank, size=self.worker.size)
        self.sampler.position = position
        # Refuses another vocabulary's tokens, as a rule, before anything is written.
        self.next_batch()
        self.sampler.position = position
        if self.validation:
            next(self.validation_batches())

    def batch(self, sampler, size):  # -> int32 [size, n_ctx], twice: the input, and the tokens to predict
        tokens = np.stack([sampler.sample(self.hparams.n_ctx) for _ in range(size)])
        require(tokens.max() < self.hparams.n_vocab, f'the dataset holds token {tokens.max()}, but the model\'s '
                f'n_vocab is {self.hparams.n_vocab}: encode the dataset with the model\'s own vocabulary')
        return np.maximum(tokens, 0), tokens

    def next_batch(self):
        """int32 [batch_size, n_ctx], twice: the input with noise, and the tokens to predict (PADDING where none)."""
        noise = np.random.default_rng([self.seed, self.sampler.position, self.worker.rank])
        inputs, tokens = self.batch(self.sampler, self.flags.batch_size)
        if self.flags.noise:
            noisy = noise.random(tokens.shape) < self.flags.noise
            inputs = np.where(noisy, noise.integers(self.hparams.n_vocab, size=tokens.shape, dtype=np.int32), inputs)
        return inputs, tokens

    def validation_batches(self):
        """The same windows at every call, as next_batch gives them."""
        sampler = Sampler(self.validation, seed=1)
        for _ in range(self.flags.val_batch_count):
            yield self.batch(sampler, self.flags.val_batch_size)


class Trainer:
    """One run: its graph, its session's variables, its place in the data. See `train`."""

    def __init__(self, flags, worker, session, signals):
        self.flags, self.worker, self.session, self.signals = flags, worker, session, signals
        self.model_dir, self.hparams, self.enc = checkpoint.describe(flags.model_name, flags.models_dir)
        self.data = Data(flags, self.enc, self.hparams, worker)
        self.build()
        self.run = checkpoint.Run(paths.run_dir(flags.run_name, flags.checkpoint_dir), self.model_dir)
        session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        self.resume()
        self.log = Log(flags, worker, self.run.directory, self.step)

    # The graph

    def build(self):
        self.inputs = tf.placeholder(tf.int32, [None, self.hparams.n_ctx], 'inputs')
        self.tokens = tf.placeholder(tf.int32, [None, self.hparams.n_ctx], 'tokens')
        w = model.weights(self.hparams)
        h, _ = model.transformer(self.hparams, w, self.inputs)
        self.total, self.count = model.loss(model.output(w, h), self.tokens)
        # Every token counts the same, in whichever batch: a mean over each batch's own tokens would favour those of
        # a batch with much padding, and would not add up over accumulated batches.
        loss = self.total / tf.cast(tf.size(self.tokens[:, 1:]), tf.float32)
        variables = checkpoint.model_variables()
        if self.flags.only_train_transformer_layers:
            variables = [v for v in variables if v.op.name.startswith('model/h')]
        self.update = optimizer.Update(loss, variables, optimizer=self.flags.optimizer,
                                       learning_rate=self.flags.learning_rate,
                                       batches=self.flags.accumulate_gradients,
                                       memory_saving=self.flags.memory_saving_gradients)
        if self.flags.sample_every and self.flags.sample_num:
            require(self.enc.eot is not None, 'samples start with <|endoftext|>, which encoder.json has not: '
                                              'add it, or use --sample_every 0')
            self.generate = generator.Generator(
                self.session, self.hparams, length=self.flags.sample_length or self.hparams.n_ctx - 1,
                start_token=self.enc.eot, top_k=self.flags.top_k, top_p=self.flags.top_p)

    # The state

    def resume(self):
        state = self.run.restore(self.session, self.flags.restore_from, self.say)
        self.step, self.position = state['step'], state.get('position', 0)
        kept_seed = state.get('seed', generator.new_seed())
        self.seed = kept_seed if self.flags.seed is None else self.flags.seed
        if 'seed' in state and (self.seed, self.data.size) != (state['seed'], state['tokens']):
            self.say('The seed or the dataset is not that of the checkpoint: the order of the data starts anew')
            self.position = 0
        self.loss, self.average = state.get('loss'), state.get('average', [0.0, 0.0])
        self.data.start(self.seed, self.position)

    def state(self):
        return {'step': self.step, 'position': self.position, 'seed': self.seed, 'tokens': self.data.size,
                'loss': self.loss, 'average': self.average, 'flags': dataclasses.asdict(self.flags)}

    def save(self):
        if self.worker.rank == 0 and self.run.saved_step != self.step:
            self.say(f'Saving {os.path.join(self.run.directory, f"model-{self.step}")}')
            self.run.save(self.session, self.state())

    # The loop

    def train(self):
        """Updates until --steps, a signal or an error; whichever it is, the last whole update is saved."""
        flags = self.flags
        try:
            while flags.steps is None or self.step < flags.steps:
                self.signals.check()
                self.advance()
                for every, action in ((flags.val_every, self.validate), (flags.save_every, self.save),
                                      (flags.sample_every, self.write_samples)):
                    if every and self.step % every == 0:
                        action()
        except FloatingPointError:
            raise  # the weights are spoilt: the last save is the one to keep
        except BaseException as error:
            self.save_after(error)
            raise
        self.save()

    def advance(self):
        """One update."""
        update, total, count = self.update, 0.0, 0.0
        self.session.run(update.before)
        for _ in range(self.flags.accumulate_gradients):
            inputs, tokens = self.data.next_batch()
            *_, batch_total, batch_count = self.session.run(
                [update.batch, self.total, self.count], {self.inputs: inputs, self.tokens: tokens})
            total, count = total + batch_total, count + batch_count
        self.session.run(update.after)
        loss = float(total / count)
        if not np.isfinite(loss):
            raise FloatingPointError(loss)
        self.step, self.position, self.loss = self.step + 1, self.data.sampler.position, loss
        self.average = [0.99 * self.average[0] + loss, 0.99 * self.average[1] + 1]
        self.log.loss(self.step, loss, self.losses())

    def losses(self):
        """The loss of the last update and the running mean, as text."""
        return '' if self.loss is None else f'loss={self.loss:.4f} avg={self.average[0] / self.average[1]:.4f}'

    def save_after(self, error):
        """Saves without hiding the error that ends training."""
        try:
            self.save()
        except Exception as second:
            if isinstance(error, Stopped):
                raise
            self.say(f'Could not save: {second}')

    def validate(self):
        total = count = 0.0
        for inputs, tokens in self.data.validation_batches():
            self.signals.check()
            batch = self.session.run([self.total, self.count], {self.inputs: inputs, self.tokens: tokens})
            total, count = total + batch[0], count + batch[1]
        self.log.validation(self.step, float(total / count))

    def write_samples(self):
        """Samples to samples_dir/<run_name>/samples-<step>, the last also to the terminal."""
        if self.worker.rank:
            return
        try:
            self.try_samples()
        except (OSError, InputError) as error:
            self.say(f'The samples could not be written: {error}')

    def try_samples(self):
        texts = []
        for first in range(0, self.flags.sample_num, self.flags.batch_size):
            self.signals.check()
            numbers = range(first, min(first + self.flags.batch_size, self.flags.sample_num))
            for number, tokens in zip(numbers, self.generate(numbers, self.seed + self.step), strict=True):
                texts.append(f'======== SAMPLE {number + 1} ========\n{self.enc.decode(tokens)}\n')
        self.say(texts[-1])
        directory = paths.child(self.flags.samples_dir, self.flags.run_name, '--run_name')
        os.makedirs(directory, exist_ok=True)
        with paths.replacing(os.path.join(directory, f'samples-{self.step}'), encoding='utf-8') as file:
            file.write('\n'.join(texts))

    def say(self, line):
        if self.worker.rank == 0:
            say(line)


def say(line):
    """A line on stdout, past the progress bar; where nobody reads any more (`| head`), training goes on unseen."""
    with contextlib.suppress(OSError):
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


class Log:
    """What is seen of training: a progress bar on stderr, lines on stdout, TensorBoard events in the run directory."""

    def __init__(self, flags, worker, directory, step):
        self.flags, self.silent, self.started = flags, worker.rank != 0, time.time()
        self.bar = tqdm(initial=step, total=flags.steps, unit='step', disable=self.silent, dynamic_ncols=True,
                        mininterval=0.1 if sys.stderr.isatty() else 10)
        self.events = None
        with self.unharmed():
            if not self.silent:
                self.events = tf.summary.FileWriter(directory)
                # What an interrupted session logged after its last save is not shown twice.
                self.events.add_session_log(tf.SessionLog(status=tf.SessionLog.START), step)

    @contextlib.contextmanager
    def unharmed(self):
        """Events that cannot be written are told, once, and training goes on."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            self.events = None
            self.bar.write(f'TensorBoard events could not be written: {error}', file=sys.stderr)

    def scalars(self, step, **values):
        if self.events:
            with self.unharmed():
                self.events.add_summary(tf.Summary(
                    value=[tf.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]), step)

    def loss(self, step, loss, text):
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()
        self.scalars(step, loss=loss, learning_rate=self.flags.learning_rate)

    def validation(self, step, loss):
        if not self.silent:
            say(f'[{step} | {time.time() - self.started:.2f}] validation loss = {loss:.4f}')
        self.scalars(step, val_loss=loss)

    def close(self):
        self.bar.close()
        if self.events:
            with self.unharmed():
                self.events.close()


def train(flags, worker=None):
    """Trains as the TrainFlags say.

    Returns the number of updates applied to the run's weights so far. Raises InputError for flags or files that
    cannot be used. Ctrl-C, SIGTERM and SIGHUP save and then end the process, with status 128 + the signal's number.
    """
    worker = worker or Worker()
    with Signals() as signals, tf.Graph().as_default(), tf.Session(config=generator.session_config()) as session:
        trainer = Trainer(flags, worker, session, signals)
        try:
            trainer.train()
        except Stopped as signal_name:
            trainer.say(f'Stopped by {signal_name} at step {trainer.step}; the same command continues from there')
            sys.exit(128 + signals.received)
        except FloatingPointError as loss:
            raise InputError(f'the loss is {loss} after step {trainer.step}; the last save is kept as it is: '
                             'start again with a lower --learning_rate') from None
        finally:
            trainer.log.close()
        trainer.say(f'{trainer.step} steps done, {trainer.losses() or "nothing trained"}: {trainer.run.directory}')
        return trainer.step
