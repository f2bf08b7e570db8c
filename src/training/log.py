"""The log of training: a progress bar on stderr, lines on stdout, TensorBoard events in the run directory."""
import contextlib
import dataclasses
import math
import sys
import time

import tensorflow.compat.v1 as tf
from tqdm import tqdm


def say(line):
    """Prints a line past the progress bar; training goes on where nobody reads it (`| head`)."""
    with contextlib.suppress(OSError):
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def warn(line):
    """The same on stderr."""
    with contextlib.suppress(OSError):
        tqdm.write(' '.join(line.split()), file=sys.stderr)


class Bar(tqdm):
    """A progress bar that training survives where stderr cannot be written: its disk may be full."""

    def display(self, *arguments, **options):
        with contextlib.suppress(OSError):
            super().display(*arguments, **options)


class Log:
    def __init__(self, flags, worker, directory, step, tokens):
        """step: updates done; tokens: of an update."""
        self.is_silent, self.started, self.tokens = worker.rank != 0, time.perf_counter(), tokens
        self.last = self.started
        self.bar = Bar(initial=step, total=flags.steps, unit='step', disable=self.is_silent,
                       dynamic_ncols=True, mininterval=0.1 if sys.stderr.isatty() else 10)
        self.events = None
        with self.ignoring_write_errors():
            if not self.is_silent:
                self.events = tf.summary.FileWriter(directory)
                # Hides what an interrupted session logged after its last save.
                self.events.add_session_log(tf.SessionLog(status=tf.SessionLog.START), step)
        lines = [f'    --{name} {value}' for name, value in dataclasses.asdict(flags).items()]
        self.text(step, 'flags', '\n'.join(lines))

    @contextlib.contextmanager
    def ignoring_write_errors(self):
        """Warns once where events cannot be written, and writes no more of them."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            self.events = None
            warn(f'TensorBoard events could not be written: {error}')

    def add(self, step, values):  # values: of tf.Summary
        if self.events:
            with self.ignoring_write_errors():
                self.events.add_summary(tf.Summary(value=values), step)

    def scalars(self, step, **values):
        self.add(step, [tf.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])

    def text(self, step, tag, text):
        metadata = tf.SummaryMetadata(plugin_data=tf.SummaryMetadata.PluginData(plugin_name='text'))
        text = text.encode(errors='backslashreplace')  # a file's name need not be UTF-8
        self.add(step, [tf.Summary.Value(tag=tag, tensor=tf.make_tensor_proto(text), metadata=metadata)])

    def update(self, step, text, **values):
        """One update: text for the progress bar, values for TensorBoard."""
        now = time.perf_counter()
        speed, self.last = self.tokens / (now - self.last), now
        self.bar.set_postfix_str(f'{text}, {speed:.0f} tokens/s', refresh=False)
        self.bar.update()
        self.scalars(step, **values, tokens_per_second=speed, peak_memory_gb=peak_memory() / 1e9)

    def validation(self, step, loss):
        if not self.is_silent:
            say(f'[{step} | {time.perf_counter() - self.started:.2f}] validation loss = {loss:.4f}')
        self.scalars(step, val_loss=loss)

    def close(self):
        with contextlib.suppress(OSError):
            self.bar.close()
        if self.events:
            with self.ignoring_write_errors():
                self.events.close()


def peak_memory() -> float:
    """The most memory that this process has had, in bytes; NaN on Windows, where Python does not tell."""
    if sys.platform == 'win32':
        return math.nan
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
