"""The log of training: a bar on stderr, lines on stdout, TensorBoard events, metrics.jsonl, samples."""
import glob
import importlib
import json
import math
import os
import sys
import time
from contextlib import contextmanager, suppress

import tensorflow.compat.v1 as tf
from tqdm import tqdm

from errors import InputError
from storage import metrics_file, paths

SINKS = {  # of Log: what fails, and how
    'events': ('TensorBoard events', (OSError, tf.errors.OpError)), 'metrics': ('metrics.jsonl', OSError),
    'tracker': ('the log of --log_to', (Exception, SystemExit))}


def say(line, file=None):  # past the bar, while anybody reads it
    file = file or sys.stdout
    with suppress(OSError):
        tqdm.write(line, file)
        file.flush()


def warn(line):  # on stderr
    say(' '.join(line.split()), sys.stderr)


@contextmanager
def warning_of(errors, prefix):  # in the block; yields their list
    caught = []
    try:
        yield caught
    except errors as error:
        caught.append(error)
        warn(f'{prefix}: {error}')


class Bar(tqdm):
    def display(self, *args, **kwargs):
        with suppress(OSError):
            super().display(*args, **kwargs)


class Log:
    """Of rank 0; others write nothing."""

    def __init__(self, flags, worker, folder, state, n_ctx):
        step = state.step
        self.tokens = flags.batch_size * flags.accumulate_gradients * n_ctx * worker.size  # of an update
        self.events = self.metrics = self.tracker = None
        self.last = time.perf_counter()
        self.bar = Bar(initial=step, total=flags.steps, unit='step', disable=worker.rank != 0,
                       dynamic_ncols=True, mininterval=0.1 if sys.stderr.isatty() else 10)
        worker.run_on_rank0(lambda: self.start_tracker(flags, step))  # first: it may be refused
        if worker.rank == 0:
            with self.writing('metrics'):
                self.metrics = metrics_file.reopen(folder, step, state.actions_done > 0, warn)
            with self.writing('events'):
                # Names have seconds: a later start would replace the file of one in the same second.
                self.events = tf.summary.FileWriter(folder, filename_suffix=f'.{step}')
                # Hides what was logged after the last save.
                self.events.add_session_log(tf.SessionLog(status='START'), step)
        self.text(step, 'flags', '\n'.join(f'    --{name} {value}' for name, value in vars(flags).items()))

    def start_tracker(self, flags, step):  # each session is a run of its own there, in one group
        if flags.log_to:
            name = f'{flags.run_name} from {step}, {time.strftime("%Y-%m-%d %H:%M:%S")}'
            try:
                self.tracker = importlib.import_module(flags.log_to)
                self.tracker.init(project='gpt-2', group=flags.run_name, name=name, config=vars(flags))
            except (Exception, SystemExit) as error:
                raise InputError(f'--log_to {flags.log_to}: {error}') from None

    @contextmanager
    def writing(self, sink):  # one of SINKS, until that fails
        name, failures = SINKS[sink]
        with warning_of(failures, f'{name} could not be written') as errors:
            yield
        if errors:
            setattr(self, sink, None)

    def tell(self, sink, function):  # calls function(the sink), unless that has failed
        with self.writing(sink):
            if target := getattr(self, sink):
                function(target)

    def add(self, step, *values):  # dicts of tf.Summary.Value's fields
        self.tell('events', lambda events: events.add_summary(tf.Summary(value=values), step))

    def scalars(self, step, **values):
        self.add(step, *({'tag': tag, 'simple_value': value} for tag, value in values.items()))
        numbers = {tag: float(value) if math.isfinite(value) else None for tag, value in values.items()}
        line = json.dumps({'step': step, **numbers, 'time': round(time.time(), 3)}).encode() + b'\n'
        self.tell('metrics', lambda metrics: metrics_file.append(metrics, line))
        self.tell('tracker', lambda tracker: tracker.log(numbers, step=step))

    def sync(self):  # before a checkpoint, which a later session goes on from
        self.tell('metrics', lambda metrics: os.fsync(metrics.fileno()))

    def text(self, step, tag, text):
        tensor = tf.make_tensor_proto(text.encode(errors='backslashreplace'))  # names of files
        self.add(step, {'tag': tag, 'tensor': tensor, 'metadata': {'plugin_data': {'plugin_name': 'text'}}})

    def samples(self, step, texts, folder):  # shows the last, writes all into the file samples-<step>
        say(texts[-1])
        text, path = '\n'.join(texts), f'{folder}/samples-{step}'
        self.text(step, 'samples', text)
        with warning_of(OSError, 'The samples could not be written'):
            os.makedirs(folder, exist_ok=True)
            with paths.replacing(path) as file:
                file.write(text)
            for temporary in glob.glob(f'{glob.escape(path)}.*.tmp'):  # of a kill
                os.unlink(temporary)

    def say(self, line, file=None):
        if not self.bar.disable:
            say(line, file)

    def update(self, step, text, **values):
        now = time.perf_counter()
        speed, self.last = self.tokens / (now - self.last), now
        self.bar.set_postfix_str(f'{text}, {speed:.0f} tokens/s', refresh=False)
        self.bar.update()
        self.scalars(step, **values, tokens_per_second=speed, peak_memory_gb=peak_memory() / 1e9)

    def close(self):
        with suppress(OSError):
            self.bar.close()
        self.tell('events', lambda events: events.close())
        self.tell('metrics', lambda metrics: metrics.close())
        self.tell('tracker', lambda tracker: tracker.finish())


def peak_memory() -> float:  # bytes; NaN on Windows, where Python cannot tell
    if sys.platform == 'win32':
        return float('nan')
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
