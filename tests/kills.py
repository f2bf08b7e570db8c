"""Kills at random moments: of what trains, encodes, downloads, … nothing half-written is left, and it goes on.

A campaign runs in a new process, which imports TensorFlow and makes no session, so that forks of it may: a kill then
costs a second, and not the import. One half of the kills falls at a random moment, the other just before, at the
beginning of, or after a random file operation.
"""
import builtins
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time

import tiny_vocab
from tqdm import tqdm

import cli

SECONDS = 60  # that anything may take
FORK, SPAWN = (multiprocessing.get_context(method) for method in ('fork', 'spawn'))


def in_new_process(function, *arguments):
    """function(*arguments), called in a process of its own; what it raises is raised here."""
    with concurrent.futures.ProcessPoolExecutor(1, SPAWN) as pool:
        return pool.submit(function, *arguments).result()


def import_tensorflow():
    """Imports what attempts need, for them to have. No session may be made here."""
    def load():
        import fused
        import trainer  # noqa: F401
        fused.SMALLEST = 1 << 60  # no kernels: compiling them would take most of the time
    cli.caught_stderr(load)


# Attempts, and how they end


@dataclasses.dataclass(frozen=True)
class Fault:
    """Where an attempt is killed: so many seconds after it has begun its work, or at a file operation of a number."""
    seconds: float | None = None
    operation: int | None = None
    when: str = ''  # before, during or after
    number: int = signal.SIGKILL  # of the signal

    def __str__(self):
        name = signal.Signals(self.number).name
        return f'{name} {self.when} operation {self.operation}' if self.operation else f'{name} at {self.seconds:.3f} s'


def draw(rng, seconds, operations):
    """A Fault within so many seconds or file operations."""
    if rng.random() < 0.5:
        return Fault(seconds=rng.uniform(0, seconds))
    return Fault(operation=rng.randint(1, operations), when=rng.choice(('before', 'during', 'after')),
                 seconds=rng.uniform(0, 0.02))


class Attempt:
    """function(tell), called in a fork of its own session; what it writes goes to the file `log`.

    tell(value) sends a value to this process, which finds them in `told`. The work has begun with the first of them.
    """

    def __init__(self, function, log, fault=None):
        self.told, self.log = [], log
        self.reports, end = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self.call, args=(function, end.send, fault))
        self.process.start()
        end.close()
        if fault and fault.operation is None:
            self.hear(until_first=True)
            time.sleep(fault.seconds)
            os.kill(self.process.pid, fault.number)

    def call(self, function, tell, fault):
        os.setsid()
        with open(self.log, 'wb') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            signal.signal(number, handler)
        operations = watch_operations(fault)
        function(tell)
        tell(next(operations))

    def hear(self, until_first=False):
        """Receives what is told, up to the end of the process (or the first)."""
        with contextlib.suppress(EOFError):
            while not (until_first and self.told):
                assert self.reports.poll(SECONDS), f'{self.process.name} says nothing for {SECONDS} s, see {self.log}'
                self.told.append(self.reports.recv())

    def end(self):  # -> status, or minus the number of the signal
        """Waits for the end of the process, and of all that it has started."""
        self.hear()
        self.process.join(SECONDS)
        if self.process.exitcode == 0:
            self.operations = self.told.pop()
        until = time.monotonic() + SECONDS
        while others := session(self.process.pid):
            assert time.monotonic() < until, f'processes {others} are left behind'
            time.sleep(0.01)
        return self.process.exitcode

    def said(self):
        with open(self.log, errors='replace') as file:
            return file.read()


def session(number):  # -> ids of its processes, those that have ended left out
    found = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        with contextlib.suppress(OSError), open(f'/proc/{pid}/stat') as file:
            state, _, _, its_session = file.read().rpartition(')')[2].split()[:4]
            if int(its_session) == number and state != 'Z':
                found.append(int(pid))
    return found


def watch_operations(fault):
    """Counts this process's file operations from here on, and kills it at the one that the fault says.

    Returns an iterator that gives the number of those so far, plus one.
    """
    import tensorflow.compat.v1 as tf
    numbers = itertools.count(1)

    def kill():
        os.kill(os.getpid(), fault.number)

    def watched(function, counts=lambda *_: True):
        @functools.wraps(function)
        def call(*arguments, **options):
            here = counts(*arguments, *options.values()) and next(numbers) == getattr(fault, 'operation', None)
            if here and fault.when == 'before':
                kill()
            if here and fault.when == 'during':
                threading.Timer(fault.seconds, kill).start()
            result = function(*arguments, **options)
            if here and fault.when == 'after':
                kill()
            return result
        return call

    for owner, name in ((os, 'replace'), (os, 'rename'), (os, 'unlink'), (os, 'fsync'), (os, 'mkdir'), (os, 'rmdir'),
                        (os, 'truncate'), (tf.train.Saver, 'save')):
        setattr(owner, name, watched(getattr(owner, name)))
    builtins.open = watched(open, lambda path, mode='r', *_: isinstance(mode, str) and set(mode) & set('wax+'))
    return numbers


def digest(content):  # {name: bytes} -> text
    result = hashlib.sha256()
    for name in sorted(content):
        result.update(f'{name} {len(content[name])} '.encode() + content[name])
    return result.hexdigest()


def tensors(prefix):
    """{name: bytes} of all that a checkpoint holds."""
    import tensorflow.compat.v1 as tf
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map()}


# Training


def kills_of_training(count: int = 100, seed: int = 0):
    """Kills a run of train.py again and again; at its end it is to the bit that of a run that nobody has disturbed.

    After each kill every checkpoint that the run names loads, and holds the weights that an undisturbed run has at that
    step, as does model-best; the next start goes on no more than --save_every updates before the kill; and no more is
    left over than what one save was writing or removing.
    """
    return in_new_process(kill_training, count, seed)


SAVE_EVERY = 3


def kill_training(count, seed):
    import_tensorflow()
    rng, counts, seen = random.Random(seed), collections.Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        flags, log = world(folder), os.path.join(folder, 'log')
        reached = most_lost = 0
        for number in tqdm(range(count), desc='kills of training', disable=None):
            fault = draw(rng, seconds=0.5, operations=80)
            what = f'kill {number} of seed {seed} ({fault})'
            attempt = Attempt(functools.partial(train, flags), log, fault)
            status = attempt.end()
            assert status == -signal.SIGKILL, f'{what}: ended with {status}: {attempt.said()}'
            steps = [step for step, _ in attempt.told]
            if steps:
                assert steps[0] >= reached - SAVE_EVERY, f'{what}: went on from {steps[0]} after {reached}'
                most_lost, reached = max(most_lost, reached - steps[0]), steps[-1]
            saving = os.path.exists(os.path.join(flags.checkpoint_dir, flags.run_name, 'saving'))
            seen += inspected(flags, what)
            counts.update({'kills of training': 1, 'of them at a file operation': bool(fault.operation),
                           'of them within a save': saving})
        flags = dataclasses.replace(flags, steps=reached + 2 * SAVE_EVERY + 1)
        whole = dataclasses.replace(flags, run_name='whole')
        finish(functools.partial(train, flags), log)
        expected = finish(functools.partial(train, whole), log)
        for what, weights in seen:
            assert weights in [each for _, each in expected], f'{what}: not the weights of an undisturbed run'
        end, expected = final(flags), final(whole)
        for name in expected:
            assert end[name] == expected[name], f'seed {seed}: {name} not as after an undisturbed run {end[name] if isinstance(end[name], list) else 0} {expected[name] if isinstance(end[name], list) else 0}'
    return {**counts, 'checkpoints checked': len(seen), 'most steps lost': most_lost}


def world(folder):  # -> TrainFlags
    """A model, texts, and the flags of a run without an end."""
    import toy
    from flags import TrainFlags
    finish(lambda _: toy.write_model(os.path.join(folder, 'models', 'toy')), os.path.join(folder, 'log'))
    with open(os.path.join(folder, 'text.txt'), 'w') as file:
        file.write(tiny_vocab.ENGLISH * 3)
    return TrainFlags(dataset=os.path.join(folder, 'text.txt'), models_dir=os.path.join(folder, 'models'),
                      model_name='toy', checkpoint_dir=os.path.join(folder, 'checkpoint'),
                      samples_dir=os.path.join(folder, 'samples'), batch_size=2, learning_rate=1e-3, seed=3,
                      save_every=SAVE_EVERY, val_every=2, val_batch_count=2, sample_every=5, sample_length=3)


def train(flags, tell):
    """Trains, and tells (step, digest of the weights) at the start and after each update."""
    import trainer

    def told(method):
        def call(self):
            method(self)
            weights = self.session.run({v.op.name: v for v in self.run.model_variables})
            tell((self.step, digest({name: value.tobytes() for name, value in weights.items()})))
        return call
    for name in ('resume', 'advance'):
        setattr(trainer.Trainer, name, told(getattr(trainer.Trainer, name)))
    trainer.train(flags)


def inspected(flags, what):  # -> [(what, digest of weights)]
    """All checkpoints that a run names and its model-best, read whole; AssertionError for one that does not load."""
    import checkpoint
    directory = os.path.join(flags.checkpoint_dir, flags.run_name)
    last = checkpoint.latest(directory)
    named = checkpoint.all_named(directory) if last else []
    best = [os.path.join(directory, 'model-best')] * os.path.exists(os.path.join(directory, 'model-best.index'))
    found = []
    for prefix in [*named, *best, *([checkpoint.state_prefix(last)] if last else [])]:
        try:
            found.append((f'{what}: {prefix}', digest(tensors(prefix))))
        except Exception as error:
            raise AssertionError(f'{what}: {prefix}: {error}') from error
    expected = {'checkpoint', 'counter', 'encoder', 'hparams', 'vocab', 'model-best', 'events', 'saving',
                *map(os.path.basename, named), *(os.path.basename(checkpoint.state_prefix(prefix)) for prefix in named)}
    names = os.listdir(directory) if os.path.isdir(directory) else []
    remains = {name for name in names if name.partition('.')[0] not in expected}
    assert len(remains) <= 8, f'{what}: {sorted(remains)} are left over'
    return found[:len(named) + len(best)]


def final(flags):
    """All that there is at the end of a run, by what it is."""
    import checkpoint
    directory = os.path.join(flags.checkpoint_dir, flags.run_name)
    last = checkpoint.latest(directory)
    with open(f'{checkpoint.state_prefix(last)}.json') as file:
        state = json.load(file)
    del state['flags']
    return {'the state is': state, 'the weights are': tensors(last), 'the best weights are': tensors(
        os.path.join(directory, 'model-best')), 'the optimizer is': tensors(checkpoint.state_prefix(last)),
        'the files are': sorted(name for name in os.listdir(directory) if not name.startswith('events')),
        'the samples are': sorted(os.listdir(os.path.join(flags.samples_dir, flags.run_name)))}


def finish(function, log):  # -> what it tells
    """An attempt that nothing disturbs."""
    attempt = Attempt(function, log)
    assert attempt.end() == 0, attempt.said()
    return attempt.told
