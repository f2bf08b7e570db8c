"""The log of training: a bar on stderr, lines on stdout, TensorBoard events."""
import sys
import time
from contextlib import contextmanager, suppress

import tensorflow.compat.v1 as tf
from tqdm import tqdm


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

    def __init__(self, flags, worker, folder, step, n_ctx):
        self.tokens = flags.batch_size * flags.accumulate_gradients * n_ctx * worker.size  # of an update
        self.events = None
        self.last = time.perf_counter()
        self.bar = Bar(initial=step, total=flags.steps, unit='step', disable=worker.rank != 0,
                       dynamic_ncols=True, mininterval=0.1 if sys.stderr.isatty() else 10)
        if worker.rank == 0:
            with self.writing_events():
                # Names have seconds: a later start would replace the file of one in the same second.
                self.events = tf.summary.FileWriter(folder, filename_suffix=f'.{step}')
                # Hides what was logged after the last save.
                self.events.add_session_log(tf.SessionLog(status='START'), step)
        self.text(step, 'flags', '\n'.join(f'    --{name} {value}' for name, value in vars(flags).items()))

    @contextmanager
    def writing_events(self):  # until they cannot be written
        with warning_of((OSError, tf.errors.OpError), 'TensorBoard events could not be written') as errors:
            yield
        if errors:
            self.events = None

    def add(self, step, *values):  # dicts of tf.Summary.Value's fields
        with self.writing_events():
            if self.events:
                self.events.add_summary(tf.Summary(value=values), step)

    def scalars(self, step, **values):
        self.add(step, *({'tag': tag, 'simple_value': value} for tag, value in values.items()))

    def text(self, step, tag, text):
        tensor = tf.make_tensor_proto(text.encode(errors='backslashreplace'))  # names of files
        self.add(step, {'tag': tag, 'tensor': tensor, 'metadata': {'plugin_data': {'plugin_name': 'text'}}})

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
        with self.writing_events():
            if self.events:
                self.events.close()


def peak_memory() -> float:  # bytes; NaN on Windows, where Python cannot tell
    if sys.platform == 'win32':
        return float('nan')
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
