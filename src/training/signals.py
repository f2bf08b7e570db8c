"""Signals that end training: the update or batch is finished, the run is saved."""
import contextlib
import os
import signal

from command_line import interrupts


class Stopped(Exception):
    """A signal, by its name, has asked for the end of training."""


class Signals:
    """Notes signals, for the loop to see; but a second Ctrl-C ends the process at once."""

    def __init__(self):
        self.received, self.previous, self.is_answered = 0, {}, False

    @contextlib.contextmanager
    def noted(self):
        handlers = dict.fromkeys(interrupts.SIGNALS, self.note)
        with interrupts.handling(handlers) as self.previous, interrupts.watching(self.answer):
            yield self

    def note(self, number, frame):
        self.received = self.received or number

    def answer(self, number):  # in a thread, as an update may take long
        if number != signal.SIGINT:
            return  # a launcher may send others twice, which must not cut a save off
        if self.is_answered:
            os._exit(128 + number)
        self.is_answered = True
        with contextlib.suppress(OSError):
            os.write(2, b'\nCtrl-C: training ends after this update or batch, and saves; '
                        b'Ctrl-C again ends it at once, without saving\n')

    def check(self, worker, trouble: str | None = None):
        """Raises, on all ranks, InputError for the trouble of one, or Stopped for a signal to one."""
        numbers, troubles = zip(*worker.gather([self.received, trouble]), strict=True)
        for message in filter(None, troubles):
            worker.abort(message)
        for number in filter(None, numbers):
            self.received = number
            raise Stopped(signal.Signals(number).name)
