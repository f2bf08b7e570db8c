"""The training loop: flags in, checkpoints out. It knows nothing of the launcher; a Worker tells it its part."""
import concurrent.futures
import contextlib
import dataclasses
import glob
import math
import os
import signal
import sys
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf2
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tqdm import tqdm

import memory_saving_gradients
import model
from command_line import interrupts
from errors import InputError, require
from fast import session as sessions
from fast.precision import set_precision
from fast.quantized import with_precision
from generation import generator
from load_dataset import encode_to_npz, fingerprint, load_dataset
from storage import checkpoint, paths, run_folder
from storage.npz import release
from training import optimizer
from training.windows import Sampler, hold_out

FEWEST_TOKENS = 16  # of a dataset: less is a mistake, such as an empty file or a wrong path
RELEASE_EVERY = 256  # batches between giving back the memory of the data that were read
ACTIONS = (('val_every', 'validate'), ('sample_every', 'write_samples'), ('save_every', 'try_save'))  # flag, method
PROGRESS_EVERY = 60  # seconds between lines about a long validation
HELD_OUT = 0.05  # the share of the dataset's tokens that validates where no --val_dataset is given


@dataclasses.dataclass
class Worker:
    """The part of one process among `size` that train together; only rank 0 writes and prints.

    What is here is for a process alone; a subclass joins several. All of them must call a method at the same point.
    """
    rank: int = 0
    size: int = 1
    gpu: int | None = None  # the number of the one to use; None for those that there are
    threads: int = 0  # for an operation; 0 for one a core

    def gather(self, value) -> list:
        """The values of all ranks, in a list. value: of JSON's types."""
        return [value]

    def agree(self, function: Callable):
        """What function() returns, which is called on all ranks; an InputError of one of them is raised on all."""
        return function()

    def once(self, function: Callable):
        """What function() returns (of JSON's types) on rank 0, which alone calls it; an InputError is raised on all."""
        return function()

    def check_same(self, function: Callable[[], dict]):
        """Refuses where what function() returns, a dict by name, is not the same on all ranks."""

    def refuse(self, message: str):
        """Raises InputError, which all ranks do, and one of them tells."""
        raise InputError(message)

    def broadcast(self, session, variables):
        """Gives the variables the values that they have on rank 0."""

    def reduce(self, gradients):
        """The means over all ranks of gradients, which are tensors; a list."""
        return gradients

    def lost(self, error: BaseException) -> bool:
        """Whether the error came of the end of another process: then an update may have been applied in part."""
        return False


class Stopped(Exception):
    """A signal has asked for the end of training."""


class Interrupted(Exception):
    """A signal has come in what rank 0 does alone. Its loop asks all ranks before the next update."""


class Signals:
    """Signals that have come, which are only noted; but a second Ctrl-C ends the process at once."""

    def __init__(self):
        self.received, self.previous, self.answered = 0, {}, False

    @contextlib.contextmanager
    def noted(self):
        with (interrupts.handling(dict.fromkeys(interrupts.SIGNALS, self.note)) as self.previous,
              interrupts.watching(self.answer)):
            yield self

    def note(self, number, frame):
        self.received = self.received or number

    def answer(self, number):
        """Says at once what Ctrl-C will do; in a thread of its own, as an update may take long."""
        if number != signal.SIGINT:
            return  # a launcher and its shell may send others twice, which must not cut a save off
        if self.answered:
            os._exit(128 + number)
        self.answered = True
        with contextlib.suppress(OSError):
            os.write(2, b'\nCtrl-C: training ends after this update or batch, and saves; Ctrl-C again ends '
                        b'it at once, without saving\n')

    def check(self, worker, trouble=None):
        """Raises, on all ranks, Stopped where a signal has come to one, InputError with a trouble of one."""
        numbers, troubles = zip(*worker.gather([self.received, trouble]), strict=True)
        for line in filter(None, troubles):
            worker.refuse(line)
        for number in filter(None, numbers):  # else what has come meanwhile is for the next time
            self.received = number
            raise Stopped(signal.Signals(number).name)


class Data:
    """Batches of training windows, and the fixed windows of validation."""

    def __init__(self, flags, enc, hparams, worker):
        self.flags, self.enc, self.hparams, self.worker = flags, enc, hparams, worker
        sources = [flags.dataset] + [flags.val_dataset] * bool(flags.val_every and flags.val_dataset)
        if worker.size > 1:  # text is encoded once, and what comes of it is in memory once on each machine
            directory = paths.run_dir(flags.run_name, flags.checkpoint_dir)
            sources = worker.once(lambda: encode_to_npz(enc, sources, directory, flags.combine, flags.encoding,
                                                  flags.special_tokens))
        worker.agree(lambda: self.load(*sources))
        worker.check_same(lambda: {'the dataset (its fingerprint)': fingerprint(
            enc, *filter(None, (self.training, self.validation)), length=hparams.n_ctx)})

    def load(self, path, val_path=None):
        self.training, self.whole_size = self.chunks('dataset', path)  # with what is held out of it
        self.validation, _ = self.chunks('val_dataset', val_path) if val_path else ([], 0)
        if self.flags.val_every and not val_path:
            self.training, self.validation = hold_out(self.training, HELD_OUT)
        self.size = sum(len(chunk) for chunk in self.training)

    def chunks(self, flag, path):  # -> list of arrays, the number of their tokens
        chunks = load_dataset(self.enc, paths.expand(path), self.flags.combine, self.flags.encoding,
                              self.flags.special_tokens, progress=self.worker.rank == 0)
        size = sum(len(chunk) for chunk in chunks)
        require(size >= FEWEST_TOKENS, f'--{flag} {getattr(self.flags, flag)} has {size} tokens, but at '
                f'least {FEWEST_TOKENS} are needed ({self.hparams.n_ctx} for a full window); give more text')
        return chunks, size

    def start(self, seed, position):
        """From here on next_batch follows the stream of this seed from this position."""
        self.seed, self.position = seed, position
        self.sampler = Sampler(self.training, seed, rank=self.worker.rank, size=self.worker.size)
        self.reader = concurrent.futures.ThreadPoolExecutor(1)
        self.upcoming = self.reader.submit(self.read_batch, position)
        # Refuses another vocabulary's tokens, as a rule, before anything is written.
        self.upcoming.result()
        if self.validation:
            next(self.validation_batches())

    def next_batch(self):
        """int32 [batch_size, n_ctx], twice: the input with noise, and the tokens to predict (PADDING where none).

        The one after it is read in the background meanwhile; `position` is that of the stream after this one.
        """
        inputs, tokens, self.position = self.upcoming.result()
        self.upcoming = self.reader.submit(self.read_batch, self.position)
        return inputs, tokens

    def read_batch(self, position):
        self.sampler.position = position
        inputs, tokens = self.batch(self.sampler, self.flags.batch_size)
        if self.flags.noise:
            noise = np.random.default_rng([self.seed, position, self.worker.rank])
            noisy = noise.random(tokens.shape) < self.flags.noise
            inputs = np.where(noisy, noise.integers(self.hparams.n_vocab, size=tokens.shape, dtype=np.int32), inputs)
        if position // self.flags.batch_size % RELEASE_EVERY == 0:
            release(self.training)
        return inputs, tokens, self.sampler.position

    def batch(self, sampler, size):  # -> int32 [size, n_ctx], twice: the input, and the tokens to predict
        tokens = np.stack([sampler.sample(self.hparams.n_ctx) for _ in range(size)])
        require(tokens.max() < self.hparams.n_vocab, f'the dataset holds token {tokens.max()}, but the model\'s '
                f'n_vocab is {self.hparams.n_vocab}: encode the dataset with the model\'s own vocabulary')
        return np.maximum(tokens, 0), tokens

    def validation_batches(self):
        """The same windows at every call, as next_batch gives them; each rank has its share of the batches.

        Where they do not come out even, the last is None for some ranks.
        """
        sampler = Sampler(self.validation, seed=1)
        for first in range(0, self.flags.val_batch_count, self.worker.size):
            number = first + self.worker.rank
            sampler.position = number * self.flags.val_batch_size
            yield self.batch(sampler, self.flags.val_batch_size) if number < self.flags.val_batch_count else None


class Trainer:
    """One run: its graph, its session's variables, its place in the data. See `train`."""

    def __init__(self, flags, worker, session, signals):
        self.flags, self.worker, self.session, self.signals = flags, worker, session, signals
        worker.check_same(lambda: {f'--{name}': value for name, value in dataclasses.asdict(flags).items()})
        self.model_dir, self.hparams, self.enc = worker.agree(
            lambda: checkpoint.load_sizes_and_vocabulary(flags.model_name, flags.models_dir))
        directory = paths.run_dir(flags.run_name, flags.checkpoint_dir)
        self.lock = run_folder.Lock(directory)
        with interrupts.ending(self.lock.release):
            worker.once(lambda: run_folder.check_start(
                directory, self.model_dir, flags.restore_from, self.hparams))
        worker.check_same(lambda: {'hparams.json': self.hparams.values(),
                                   'the vocabulary (its fingerprint)': fingerprint(self.enc)})
        require(self.hparams.n_ctx > 1, f'{self.model_dir} has n_ctx 1: in a window of one token there is nothing to '
                                        'predict; create a model with a larger one')
        self.whole = True  # False while an update is applied: some variables may have it then, and others not
        self.best_lost = None  # the error where the best weights could not be saved
        worker.once(self.take_folders)  # before all that takes long
        try:
            self.prepare()
        except BaseException:
            self.lock.release()
            raise

    def take_folders(self):
        if self.flags.sample_every and self.flags.sample_num:
            paths.check_writable(self.samples_directory(), '--samples_dir')
        self.lock.hold()

    def prepare(self):
        """Everything up to the first update: data, graph, the variables' values, log."""
        flags, worker = self.flags, self.worker
        self.data = Data(flags, self.enc, self.hparams, worker)
        with interrupts.ending(self.lock.release):
            self.build()
            self.run = run_folder.Run(self.lock.directory, self.model_dir)
            # Not the weights, which are about to be loaded: what random numbers need would stay allocated.
            self.session.run([tf.variables_initializer(self.run.state_variables),
                              tf.local_variables_initializer()])
            self.resume()
            self.log = Log(flags, worker, self.run.directory, self.step, tokens=flags.batch_size *
                           flags.accumulate_gradients * self.hparams.n_ctx * worker.size)

    # The graph

    def build(self):
        self.inputs = tf.placeholder(tf.int32, [None, self.hparams.n_ctx], 'inputs')
        self.tokens = tf.placeholder(tf.int32, [None, self.hparams.n_ctx], 'tokens')
        self.rate = tf.placeholder(tf.float32, [], 'learning_rate')
        self.weights, self.dtype = model.weights(self.hparams), set_precision(self.flags.precision)
        variables = checkpoint.model_variables()
        if self.flags.only_train_transformer_layers:
            variables = [v for v in variables if v.op.name.startswith('model/h')]
        self.trained = [v.op.name.removeprefix('model/') for v in variables]
        arguments = [self.inputs, self.tokens, *self.weights.values()]
        self.batch_total, self.batch_count, *gradients = self.compiled(self.losses_and_gradients)(*arguments)
        # Of one kernel no part can be run alone; of separate operations only those that a result needs are.
        self.total, self.count = (self.compiled(self.losses_of)(*arguments) if self.flags.xla else
                                  (self.batch_total, self.batch_count))
        self.update = optimizer.Update(gradients, variables, optimizer=self.flags.optimizer, learning_rate=self.rate,
                                       batches=self.flags.accumulate_gradients, clip_norm=self.flags.clip_norm,
                                       weight_decay=self.flags.weight_decay, reduce=self.worker.reduce)
        # Of all weights: what an update has spoilt shows in the loss only after the next one.
        self.finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in self.weights.values()])
        if self.flags.sample_every and self.flags.sample_num:
            require(self.enc.eot is not None, 'samples start with the token that ends a text, such as '
                    '<|endoftext|>, which the vocabulary has not: add it, or use --sample_every 0')
            self.generator = generator.Generator(self.session, self.hparams, self.enc, self.weights)

    def compiled(self, function):
        """With --xla the function as one kernel, all of it."""
        return tf2.function(function, jit_compile=True, autograph=False) if self.flags.xla else function

    def losses_of(self, inputs, tokens, *values):  # -> scalar, scalar: the sum of the losses, their number
        w = with_precision(dict(zip(self.weights, values, strict=True)), self.dtype)
        h, _ = model.transformer(self.hparams, w, inputs)
        return model.loss(model.output(w, h), tokens)

    def losses_and_gradients(self, inputs, tokens, *values):  # as losses_of, and then gradients of what is trained
        total, count = self.losses_of(inputs, tokens, *values)
        # Every token counts the same, in whichever batch: a mean over each batch's own tokens would favour those of
        # a batch with much padding, and would not add up over accumulated batches.
        loss = total / tf.cast(tf.size(tokens[:, 1:]), tf.float32)
        trained = [value for name, value in zip(self.weights, values, strict=True) if name in self.trained]
        return [total, count, *memory_saving_gradients.gradients(loss, trained,
                                                                 recompute=self.flags.memory_saving_gradients)]

    # The state

    def resume(self):
        state = self.worker.once(lambda: {**self.run.restore(self.session, self.flags.restore_from, self.say),
                                          'new_seed': generator.new_seed(), 'has_best': self.run.has_best()})
        self.worker.broadcast(self.session, [*self.run.model_variables, *self.run.state_variables])
        self.step = state['step']
        # Kept is how many windows were drawn in all. If these processes draw another number at a time, those up to
        # its next multiple are left out.
        self.position = -(-state.get('position', 0) // self.worker.size)
        kept_seed = state.get('seed', state['new_seed'])
        self.seed = kept_seed if self.flags.seed is None else self.flags.seed
        if 'seed' in state and (self.seed, self.data.size) != (state['seed'], state.get('tokens')):
            reason = 'The seed or the dataset is not that of the checkpoint'
            if state.get('tokens') == self.data.whole_size != self.data.size:
                reason = ('The text that --val_every now holds out was trained on before, so its loss is too '
                          'low (give other text with --val_dataset)')
            self.say(f'{reason}: the order of the data starts anew')
            self.position = 0
        self.loss, self.average = state.get('loss'), state.get('average', [0.0, 0.0])
        self.best, self.worse = (state.get('best'), state.get('worse', 0)) if state['has_best'] else (None, 0)
        self.acted = state.get('acted', len(ACTIONS))
        self.worker.agree(lambda: self.data.start(self.seed, self.position))

    def state(self):
        return {'step': self.step, 'position': self.position * self.worker.size, 'seed': self.seed,
                'tokens': self.data.size, 'loss': self.loss, 'average': self.average, 'best': self.best,
                'worse': self.worse, 'acted': self.acted, 'flags': dataclasses.asdict(self.flags)}

    def save(self):
        """Saves, unless it has been done at this step. Raises NotSaved."""
        if self.worker.rank == 0 and self.run.saved_step != self.step:
            self.check_finite(1.0 if self.session.run(self.finite) else np.nan)
            self.lock.check()
            self.say(f'Saving {os.path.join(self.run.directory, f"model-{self.step}")}')
            self.run.save(self.session, self.state())

    def try_save(self):
        """Saves; where that fails (the disk may be full for a while), training goes on to the next time."""
        if self.lock.gone():
            return  # as all ranks are told before the next update
        try:
            self.save()
        except run_folder.NotSaved as error:
            warn(f'{error}. Training goes on, and tries again at the next save')

    # The loop

    def train(self):
        """Updates until --steps, --patience, a signal or an error; whichever, the last whole update is saved."""
        try:
            self.act()  # what an interruption has left undone
            while not self.finished():
                self.signals.check(self.worker, self.lock.gone())
                self.advance()
                self.act()
        except BaseException as error:
            if self.whole and not self.worker.lost(error):
                self.save_after(error)
            raise
        self.save()
        if self.best_lost:
            raise self.best_lost

    def act(self):
        """What is due at this step and has not been done. The save comes last, as it commits what was before it."""
        with contextlib.suppress(Interrupted):
            for flag, action in ACTIONS[self.acted:]:
                every = getattr(self.flags, flag)
                if every and self.step % every == 0:
                    getattr(self, action)()
                self.acted += 1

    def finished(self):
        if self.flags.patience and self.best and self.worse >= self.flags.patience:
            self.say(f'The last {self.worse} validation losses were not below that of {self.best[1]} updates, '
                     f'{self.best[0]:.4f}, which is kept as model-best')
            return True
        return self.flags.steps is not None and self.step >= self.flags.steps

    def advance(self):
        """One update."""
        update, total, count = self.update, 0.0, 0.0
        rate = {self.rate: optimizer.learning_rate(
            self.step + 1, peak=self.flags.learning_rate, schedule=self.flags.schedule,
            warmup_steps=self.flags.warmup_steps, steps=self.flags.steps)}
        self.session.run(update.before)
        last = [] if update.after else [update.norm]
        for _ in range(self.flags.accumulate_gradients):
            inputs, tokens = self.data.next_batch()
            self.whole = bool(update.after)
            _, batch_total, batch_count, *norm = self.session.run(
                [update.batch, self.batch_total, self.batch_count, *last],
                {self.inputs: inputs, self.tokens: tokens, **rate})
            total, count = total + batch_total, count + batch_count
        if update.after:
            self.whole = False
            *_, norm = self.session.run([*update.after, [update.norm]], rate)
        loss = self.mean_of_all(total, count)
        self.check_finite(loss, *norm)
        self.whole = True
        self.step, self.position, self.loss, self.acted = self.step + 1, self.data.position, loss, 0
        self.average = [0.99 * self.average[0] + loss, 0.99 * self.average[1] + 1]
        self.log.update(self.step, self.losses(), loss=loss, learning_rate=rate[self.rate], gradient_norm=norm[0])

    def check_finite(self, *values):
        """Raises FloatingPointError where one is not: the weights are spoilt, and the last save is the one to keep."""
        if not np.isfinite(values).all():
            self.whole = False
            raise FloatingPointError

    def losses(self):
        """The loss of the last update and the running mean, as text."""
        if self.loss is None or not self.average[1]:
            return ''
        return f'loss={self.loss:.4f} avg={self.average[0] / self.average[1]:.4f}'

    def save_after(self, error):
        """Saves without hiding the error that ends training."""
        try:
            self.save()
        except Exception as second:
            if isinstance(error, Stopped):
                raise
            if str(second) != str(error):  # else it is what has ended training
                warn(f'Could not save: {second}')

    def validate(self):
        loss = self.validation_loss()
        self.check_finite(loss)
        self.log.validation(self.step, loss)
        if self.best is not None and not loss < self.best[0]:
            self.worse += 1
        elif self.worker.once(lambda: self.save_best(loss)):  # else what is said of model-best stays as it is
            self.best, self.worse = [loss, self.step], 0

    def save_best(self, loss):
        """Whether the weights could be saved as model-best."""
        self.best_lost = None
        self.lock.check()
        try:
            self.run.save_best(self.session, self.step, loss)
        except run_folder.NotSaved as error:
            self.best_lost = error
            warn(f'{error}. Training goes on')
        return not self.best_lost

    def validation_loss(self):
        total, count, shown = 0.0, 0.0, time.perf_counter()
        for number, batch in enumerate(self.data.validation_batches()):
            self.signals.check(self.worker, self.lock.gone())
            if self.worker.rank == 0 and time.perf_counter() - shown > PROGRESS_EVERY:
                shown = time.perf_counter()
                warn(f'Validation: {number * self.worker.size} of {self.flags.val_batch_count} batches done')
            if batch:
                losses = self.session.run([self.total, self.count], dict(zip((self.inputs, self.tokens), batch,
                                                                             strict=True)))
                total, count = total + losses[0], count + losses[1]
        return self.mean_of_all(total, count)

    def mean_of_all(self, total, count):
        """The mean loss of all ranks' tokens."""
        totals, counts = zip(*self.worker.gather([total, count]), strict=True)
        return float(sum(totals) / sum(counts))

    def write_samples(self):
        """Samples to samples_dir/<run_name>/samples-<step>, the last also to the terminal."""
        if self.worker.rank or not self.flags.sample_num:
            return
        try:
            self.try_samples()
        except (OSError, InputError) as error:
            warn(f'The samples could not be written: {error}')

    def samples_directory(self):
        return paths.child(self.flags.samples_dir, self.flags.run_name, '--run_name')

    def try_samples(self):
        texts = []
        for first in range(0, self.flags.sample_num, self.flags.batch_size):
            if self.signals.received:
                raise Interrupted
            numbers = range(first, min(first + self.flags.batch_size, self.flags.sample_num))
            rows = self.generator.complete(
                [[self.enc.eot]] * len(numbers), [[self.seed + self.step, number] for number in numbers],
                length=self.flags.sample_length or self.hparams.n_ctx - 1, top_k=self.flags.top_k,
                top_p=self.flags.top_p)
            texts += [f'======== SAMPLE {number + 1} ========\n{row.text}\n'
                      for number, row in zip(numbers, rows, strict=True)]
        self.generator.free_cache()
        self.say(texts[-1])
        self.log.text(self.step, samples='\n'.join(texts))
        directory = self.samples_directory()
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, f'samples-{self.step}')
        with paths.replacing(path) as file:
            file.write('\n'.join(texts))
        for left in glob.glob(f'{glob.escape(path)}.*.tmp'):  # by a kill
            os.unlink(left)

    def say(self, line):
        if self.worker.rank == 0:
            say(line)


def say(line):
    """A line on stdout, past the progress bar; where nobody reads any more (`| head`), training goes on unseen."""
    with contextlib.suppress(OSError):
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def warn(line):
    """A line on stderr, past the progress bar."""
    with contextlib.suppress(OSError):
        tqdm.write(' '.join(line.split()), file=sys.stderr)


class Bar(tqdm):
    """A progress bar that goes unseen where it cannot be written: its log may be on the disk that is full."""

    def display(self, *arguments, **options):
        with contextlib.suppress(OSError):
            super().display(*arguments, **options)

    def close(self):
        with contextlib.suppress(OSError):
            super().close()


class Log:
    """What is seen of training: a progress bar on stderr, lines on stdout, TensorBoard events in the run directory."""

    def __init__(self, flags, worker, directory, step, tokens):
        """step: updates done; tokens: of an update."""
        self.silent, self.started, self.tokens = worker.rank != 0, time.perf_counter(), tokens
        self.last = self.started
        self.bar = Bar(initial=step, total=flags.steps, unit='step', disable=self.silent, dynamic_ncols=True,
                        mininterval=0.1 if sys.stderr.isatty() else 10)
        self.events = None
        with self.unharmed():
            if not self.silent:
                self.events = tf.summary.FileWriter(directory)
                # What an interrupted session logged after its last save is not shown twice.
                self.events.add_session_log(tf.SessionLog(status=tf.SessionLog.START), step)
        self.text(step, flags='\n'.join(f'    --{name} {value}' for name, value in dataclasses.asdict(flags).items()))

    @contextlib.contextmanager
    def unharmed(self):
        """Events that cannot be written are told, once, and training goes on."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            self.events = None
            warn(f'TensorBoard events could not be written: {error}')

    def scalars(self, step, **values):
        if self.events:
            with self.unharmed():
                self.events.add_summary(tf.Summary(
                    value=[tf.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]), step)

    def text(self, step, **values):
        """Texts, for TensorBoard's tab of them."""
        if self.events:
            metadata = tf.SummaryMetadata(plugin_data=tf.SummaryMetadata.PluginData(plugin_name='text'))
            with self.unharmed():
                self.events.add_summary(tf.Summary(value=[
                    # A file's name need not be UTF-8.
                    tf.Summary.Value(tag=tag, tensor=tf.make_tensor_proto(value.encode(errors='backslashreplace')),
                                     metadata=metadata) for tag, value in values.items()]), step)

    def update(self, step, text, **values):
        """One update: text for the progress bar, values for TensorBoard."""
        now = time.perf_counter()  # which moves between two updates on every system, and never back
        speed, self.last = self.tokens / (now - self.last), now
        self.bar.set_postfix_str(f'{text}, {speed:.0f} tokens/s', refresh=False)
        self.bar.update()
        self.scalars(step, **values, tokens_per_second=speed, peak_memory_gb=peak_memory() / 1e9)

    def validation(self, step, loss):
        if not self.silent:
            say(f'[{step} | {time.perf_counter() - self.started:.2f}] validation loss = {loss:.4f}')
        self.scalars(step, val_loss=loss)

    def close(self):
        self.bar.close()
        if self.events:
            with self.unharmed():
                self.events.close()


def peak_memory() -> float:
    """The most memory that this process has had, in bytes; NaN on Windows, where Python does not tell."""
    if sys.platform == 'win32':
        return math.nan
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def session_config(worker):
    config = sessions.session_config()
    if worker.gpu is not None:
        config.gpu_options.visible_device_list = str(worker.gpu)
    config.intra_op_parallelism_threads = worker.threads
    # What is constant in the training graph are the zeros that the optimizer's variables start from. Folded, these
    # would be kept beside the variables, for Adam twice the model's size; equal ones found to be one and the same,
    # variables would share their memory until the first update, and then be copied to between its activations.
    config.graph_options.rewrite_options.constant_folding = RewriterConfig.OFF
    config.graph_options.rewrite_options.common_subgraph_elimination = RewriterConfig.OFF
    config.graph_options.optimizer_options.opt_level = tf.OptimizerOptions.L0
    return config


def train(flags, worker: Worker | None = None) -> int:
    """Trains as the TrainFlags say.

    Returns the number of updates applied to the run's weights so far. Raises InputError for flags or files that
    cannot be used. Ctrl-C, SIGTERM and SIGHUP save and then end the process, with status 128 + the signal's
    number; a second Ctrl-C ends it at once, without saving. Before the first update there is nothing to save,
    and they do what they did before the call.
    """
    worker, signals = worker or Worker(), Signals()
    with (tf.Graph().as_default(), tf.Session(config=session_config(worker)) as session,
          contextlib.ExitStack() as stack):
        trainer = Trainer(flags, worker, session, signals)
        if worker.rank == 0 or worker.gpu is not None:
            warn(f'Device{f" of rank {worker.rank}" if worker.rank else ""}: {sessions.device(worker.gpu or 0)}')
        stack.enter_context(signals.noted())
        try:
            trainer.train()
        except Stopped as signal_name:
            trainer.say(f'Stopped by {signal_name} at step {trainer.step}; the same command continues from there')
            sys.exit(128 + signals.received)
        except FloatingPointError:
            worker.refuse(f'the loss, its gradient or the weights are not finite after step {trainer.step}; the last '
                          'save is kept as it is: start again with a lower --learning_rate, or from one before it '
                          'with --restore_from')
        except tf.errors.ResourceExhaustedError as error:
            raise InputError('no memory is left for the update; lower --batch_size, or see --memory_saving_gradients, '
                             '--precision and --optimizer adafactor') from error
        finally:
            trainer.log.close()
            trainer.lock.release()
        trainer.say(f'{trainer.step} steps done, {trainer.losses() or "nothing trained"}: {trainer.run.directory}')
        return trainer.step
