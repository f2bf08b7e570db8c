"""Kills at random moments: of what trains, encodes, downloads, … nothing half-written is left, and it goes
on.

A campaign runs in a new process, which imports TensorFlow and makes no session, so that forks of it may: a
kill then
costs a second, and not the import. One half of the kills falls at a random moment, the other just before, at
the
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
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import typing

import tiny_vocab
from tqdm import tqdm

sys.path.insert(
    0, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)  # where half of the scripts are

from command_line import cli, startup

SECONDS = 60  # that anything may take
FORK, SPAWN = (multiprocessing.get_context(method) for method in ('fork', 'spawn'))


def in_new_process(function, *arguments):
    """function(*arguments), called in a process of its own; what it raises is raised here."""
    with concurrent.futures.ProcessPoolExecutor(1, SPAWN) as pool:
        return pool.submit(function, *arguments).result()


def import_tensorflow():
    """Imports what attempts need, for them to have. No session may be made here."""
    def load():
        from fast import kernels
        from formats import (
            hugging_face,  # noqa: F401
            saved_model,  # noqa: F401
        )
        from generation import samples  # noqa: F401
        from training import trainer  # noqa: F401
        kernels.MIN_FUSED_ELEMENTS = 1 << 60  # no kernels: compiling them would take most of the time
    startup.capture_stderr(load)


# Attempts, and how they end


@dataclasses.dataclass(frozen=True)
class Fault:
    """Where an attempt is killed: so many seconds after it has begun its work, or at a file operation of a
    number."""

    seconds: float | None = None
    operation: int | None = None
    when: str = ''  # before, during or after
    number: int = signal.SIGKILL  # of the signal

    def __str__(self):
        name = signal.Signals(self.number).name
        return (
            f'{name} {self.when} operation {self.operation}'
            if self.operation
            else f'{name} at {self.seconds:.3f} s'
        )


def draw(rng, seconds, operations, signals=(signal.SIGKILL,)):
    """A Fault within so many seconds or file operations."""
    number = rng.choice(signals)
    if rng.random() < 0.5:
        return Fault(seconds=rng.uniform(0, seconds), number=number)
    return Fault(operation=rng.randint(1, operations), when=rng.choice(('before', 'during', 'after')),
                 seconds=rng.uniform(0, 0.02), number=number)


class Attempt:
    """function(tell), called in a fork of its own session; what it writes goes to the file `log`.

    tell(value) sends a value to this process, which finds them in `told`. The work has begun with the first
    of them.
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
        tqdm.set_lock(
            threading.RLock()
        )  # its own is shared with forks, and one that is killed would keep it for ever
        with open(self.log, 'wb') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        for number in (signal.SIGINT, signal.SIGTERM):  # as cli.py has them before and after a script's work
            signal.signal(number, signal.SIG_DFL)
        operations = watch_operations(fault)
        function(tell)
        tell(next(operations))

    def hear(self, until_first=False):
        """Receives what is told, up to the end of the process (or the first)."""
        with contextlib.suppress(EOFError):
            while not (until_first and self.told):
                if not self.reports.poll(SECONDS):
                    os.killpg(
                        self.process.pid, signal.SIGKILL
                    )  # else the end of this process would wait for it
                    raise AssertionError(f'{self.process.name} says nothing for {SECONDS} s: {self.said()}')
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
            here = counts(*arguments, *options.values()) and next(numbers) == getattr(
                fault, 'operation', None
            )
            if here and fault.when == 'before':
                kill()
            if here and fault.when == 'during':
                threading.Timer(fault.seconds, kill).start()
            try:
                return function(*arguments, **options)
            finally:  # also where it fails, as the removal of what is not there
                if here and fault.when == 'after':
                    kill()
        return call

    for owner, name in (
        (os, 'replace'),
        (os, 'rename'),
        (os, 'unlink'),
        (os, 'fsync'),
        (os, 'mkdir'),
        (os, 'rmdir'),
        (os, 'truncate'),
        (tf.train.Saver, 'save'),
    ):
        setattr(owner, name, watched(getattr(owner, name)))
    builtins.open = watched(
        open, lambda path, mode='r', *_: isinstance(mode, str) and set(mode) & set('wax+')
    )
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
    """Kills a run of train.py again and again; at its end it is to the bit that of a run that nobody has
    disturbed.

    After each kill every checkpoint that the run names loads, and holds the weights that an undisturbed run
    has at that
    step, as does model-best; the next start goes on no more than --save_every updates before the kill; and
    no more is
    left over than what one save was writing or removing.
    """
    return in_new_process(kill_training, count, seed)


def kills_of_adapters(count: int = 50, seed: int = 0):
    """The same of a run that trains an adapter, with --lora_rank."""
    return in_new_process(kill_training, count, seed, {'lora_rank': 4, 'lora_targets': 'all'})


SAVE_EVERY = 3


def kill_training(count, seed, changes=None):
    import_tensorflow()
    rng, counts, seen = random.Random(seed), collections.Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        flags, log = dataclasses.replace(world(folder), **(changes or {})), os.path.join(folder, 'log')
        reached = most_lost = 0
        for number in tqdm(range(count), desc='kills of training', disable=None):
            fault = draw(rng, seconds=0.5, operations=60)
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
            assert end[name] == expected[name], f'seed {seed}: {name} not as after an undisturbed run'
        assert metrics(flags) == metrics(whole), f'seed {seed}: metrics.jsonl not as of an undisturbed run'
    return {**counts, 'checkpoints checked': len(seen), 'most steps lost': most_lost}


def metrics(flags):  # -> lines of metrics.jsonl, without what differs from run to run
    differs = {'time', 'tokens_per_second', 'peak_memory_gb'}
    with open(os.path.join(flags.checkpoint_dir, flags.run_name, 'metrics.jsonl')) as file:
        lines = map(json.loads, file)
        return [{name: line[name] for name in line if name not in differs} for line in lines]


def world(folder):  # -> TrainFlags
    """A model, texts, and the flags of a run without an end."""
    from command_line.flags import TrainFlags

    import toy
    finish(lambda _: toy.write_model(os.path.join(folder, 'models', 'toy'), toy.hparams(n_layer=1)),
           os.path.join(folder, 'log'))
    with open(os.path.join(folder, 'text.txt'), 'w') as file:
        file.write(tiny_vocab.ENGLISH * 3)
    return TrainFlags(dataset=os.path.join(folder, 'text.txt'), models_dir=os.path.join(folder, 'models'),
                      model_name='toy', checkpoint_dir=os.path.join(folder, 'checkpoint'),
                      samples_dir=os.path.join(folder, 'samples'), batch_size=2, learning_rate=1e-3, seed=3,
                      save_every=SAVE_EVERY, val_every=2, val_batch_count=2, sample_every=8, sample_length=3)


def train(flags, tell):
    """Trains, and tells (step, digest of the weights) at the start and after each update."""
    from training import trainer

    def told(method):
        def call(self):
            method(self)
            weights = self.session.run({v.op.name: v for v in self.run.weights})
            tell((self.state.step, digest({name: value.tobytes() for name, value in weights.items()})))
        return call
    for name in ('resume', 'update'):
        setattr(trainer.Trainer, name, told(getattr(trainer.Trainer, name)))
    trainer.train(flags)


def inspected(flags, what):  # -> [(what, digest of weights)]
    """All checkpoints that a run names and its model-best, read whole; AssertionError for one that does not
    load."""
    from storage import checkpoint, run_folder
    directory = os.path.join(flags.checkpoint_dir, flags.run_name)
    last = checkpoint.latest(directory)
    named = [os.path.join(directory, f'model-{step}') for step in run_folder.named_steps(directory)]
    expected = {
        'checkpoint',
        'counter',
        'encoder',
        'hparams',
        'vocab',
        'events',
        'metrics',
        *(['adapter'] if flags.lora_rank else []),
        *map(os.path.basename, named),
        *([os.path.basename(run_folder.state_prefix(last))] if last else []),
    }
    names = os.listdir(directory) if os.path.isdir(directory) else []
    remains = {name.partition('.')[0] for name in names if not name.startswith('model-best')} - expected
    assert len(remains) <= 5, (
        f'{what}: {sorted(remains)} are left over'
    )  # of one save: what it wrote and removed
    if last:
        read(run_folder.state_prefix(last), what)
    found = named + [os.path.join(directory, 'model-best')] * ('model-best.json' in names)
    return [(f'{what}: {os.path.basename(prefix)}', digest(read(prefix, what))) for prefix in found]


def read(prefix, what):
    from storage import checkpoint
    try:
        return tensors(checkpoint.files_prefix(checkpoint.resolve_path(prefix)))
    except Exception as error:
        raise AssertionError(f'{what}: {prefix}: {error}') from error


def final(flags):
    """All that there is at the end of a run, by what it is."""
    from storage import checkpoint, run_folder
    directory = os.path.join(flags.checkpoint_dir, flags.run_name)
    last = checkpoint.latest(directory)
    with open(f'{run_folder.state_prefix(last)}.json') as file:
        state = json.load(file)
    del state['flags'], state['crc32']  # the name of the run is in both
    best = checkpoint.files_prefix(os.path.join(directory, 'model-best'))
    return {'the state is': state, 'the weights are': tensors(last), 'the best weights are': tensors(best),
            'the optimizer is': tensors(run_folder.state_prefix(last)),
            'the files are': sorted(name for name in os.listdir(directory) if not name.startswith('events')),
            'the samples are': sorted(os.listdir(os.path.join(flags.samples_dir, flags.run_name)))}


def finish(function, log):  # -> what it tells
    """An attempt that nothing disturbs."""
    attempt = Attempt(function, log)
    assert attempt.end() == 0, attempt.said()
    return attempt.told


# What writes one thing: whole or not at all


def kills_of_scripts(count: int = 100, seed: int = 0):
    """Kills encode.py, download_model.py, convert.py, export.py and what answers a file of prompts, `count`
    times each.

    Under its final name there is nothing or what an undisturbed run writes (of downloads, files; of answers,
    the first
    of them); beside it only temporary files; and no process is left. Started again, each ends as if
    undisturbed.
    encode.py is also ended by SIGINT and SIGTERM, after which there are no temporary files either.
    """
    return in_new_process(kill_scripts, count, seed)


@dataclasses.dataclass
class Script:
    """A script to be killed, and what it writes into `folder`."""
    name: str
    function: typing.Callable  # of cli.run
    argv: list[str]
    folder: str
    temporary: str  # what the names of temporary files match
    grows: str = (
        ''  # 'in files' or 'in bytes': it goes on with what is there; else this is there whole or not at all
    )
    signals: tuple = (signal.SIGKILL,)

    def run(self, tell):
        tell('begun')
        cli.run(self.function, self.argv)

    def written(self):  # -> {name: bytes}, names of temporary files
        found, temporary = {}, set()
        for directory, _, names in os.walk(self.folder):
            for path in (os.path.join(directory, name) for name in names):
                name = os.path.relpath(path, self.folder)
                if re.match(self.temporary, name):
                    temporary.add(name)
                elif not re.search(r'\.pb$|\.meta$', name):  # these are not the same twice
                    with open(path, 'rb') as file:
                        found[name] = file.read()
        return found, temporary

    def clear(self):
        for name in os.listdir(self.folder):
            if not re.match(self.temporary, name):
                path = os.path.join(self.folder, name)
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def kill_scripts(count, seed):
    import_tensorflow()
    rng, counts = random.Random(seed), collections.Counter()
    with tempfile.TemporaryDirectory() as folder, scripts(folder) as found:
        for script in found:
            counts.update(kill_script(script, count, f'of seed {seed}', rng, os.path.join(folder, 'log')))
    return dict(counts)


def kill_script(script, count, of_seed, rng, log):
    counts = collections.Counter()
    os.mkdir(script.folder)
    seconds, operations = undisturbed(script.run, log)
    whole, _ = script.written()
    script.clear()
    for number in tqdm(range(count), desc=f'kills of {script.name}', disable=None):
        fault = draw(rng, seconds, operations, script.signals)
        what = f'kill {number} {of_seed} of {script.name} ({fault})'
        before = script.written()[1]
        attempt = Attempt(script.run, log, fault)
        status = attempt.end()
        found, temporary = script.written()
        assert status in (0, -fault.number, 128 + fault.number), (
            f'{what}: ended with {status}: {attempt.said()}'
        )
        if fault.number != signal.SIGKILL:
            assert temporary <= before, f'{what}: left {temporary - before}'
        for name, content in found.items():
            same = whole[name].startswith(content) if script.grows == 'in bytes' else whole[name] == content
            assert same, f'{what}: {name} is not that of an undisturbed run'
        if status == 0:
            assert found == whole, f'{what}: wrote {sorted(found)} and not {sorted(whole)}'
        if found == whole:  # the next starts anew, beside what temporary files there are
            script.clear()
        else:
            assert script.grows or not found, f'{what}: wrote {sorted(found)} and not {sorted(whole)}'
        counts.update({f'kills of {script.name}': 1, f'{script.name} ended before its kill': status == 0,
                       f'temporary files or folders of {script.name}': len(temporary - before)})
    return counts


def undisturbed(function, log):  # -> seconds from the beginning of its work, file operations
    attempt = Attempt(function, log)
    attempt.hear(until_first=True)
    begun = time.monotonic()
    assert attempt.end() == 0, attempt.said()
    return time.monotonic() - begun, attempt.operations


@contextlib.contextmanager
def serving(files):  # {name: bytes} -> URL
    """A server of a model's files, in a process of its own."""
    import test_download_model
    with test_download_model.Server() as server:
        server.files = files
        process = FORK.Process(target=server.serve_forever, daemon=True)
        process.start()
        yield server.url
        process.kill()
        process.join()


@contextlib.contextmanager
def scripts(folder):  # -> list of Script
    import convert
    import download_model
    import encode
    import export
    import interactive_conditional_samples
    import load_dataset
    flags = world(folder)
    model = os.path.join(flags.models_dir, 'toy')
    load_dataset.MAX_GROUP_SIZE = 1 << 16  # many groups
    download_model.CHUNK = 512
    at = functools.partial(os.path.join, folder)
    with open(at('text.txt'), 'w') as file:
        file.writelines(f'{i} {tiny_vocab.ENGLISH}' for i in range(1000))
    with open(at('prompts.txt'), 'w') as file:
        file.writelines(f'prompt {i}\n' for i in range(40))
    finish(lambda _: convert.to_hf('toy', at('source'), models_dir=flags.models_dir), at('log'))
    toy = ['--model_name=toy', f'--models_dir={flags.models_dir}']
    hidden = r'\.{}\.\w+'

    def script(name, function, *argv, **more):
        return Script(name, function, [each.format(out=at(name)) for each in argv], folder=at(name), **more)
    files = {}
    for name in os.listdir(model):
        with open(os.path.join(model, name), 'rb') as file:
            files[name] = file.read()
    every_end = signal.SIGKILL, signal.SIGINT, signal.SIGTERM
    with serving(files) as url:
        yield [
            script(
                'encode',
                encode.encode,
                at('text.txt'),
                '{out}/out.npz',
                *toy,
                temporary=r'out\.npz\.\d+\.tmp$',
                signals=every_end,
            ),
            script(
                'encode --workers 2',
                encode.encode,
                at('text.txt'),
                '{out}/out.npz',
                *toy,
                '--workers=2',
                temporary=r'out\.npz\.\d+\.tmp$',
                signals=every_end,
            ),
            script(
                'download_model',
                download_model.download_model,
                'toy',
                '--models_dir={out}',
                f'--base_url={url}',
                temporary=r'.*\.part(\.etag)?$',
                grows='in files',
            ),
            script('to_hf', convert.to_hf, 'toy', '{out}/hf', toy[1], temporary=hidden.format('hf')),
            script(
                'from_hf',
                convert.from_hf,
                at('source'),
                'back',
                '--models_dir={out}',
                temporary=hidden.format('back'),
            ),
            script('export', export.export, 'toy', '{out}/served', toy[1], temporary=hidden.format('served')),
            script(
                'prompts_file',
                interactive_conditional_samples.interact_model,
                *toy,
                '--length=5',
                '--seed=1',
                f'--prompts_file={at("prompts.txt")}',
                '--batch_size=3',
                '--precision=bfloat16',
                '--logprobs',
                '--output={out}/answers.jsonl',
                temporary='$',
                grows='in bytes',
            ),
        ]
