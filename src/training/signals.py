"""Signals that end training after a batch, with a save."""
import contextlib
import os
import signal

from command_line.interrupts import SIGNALS, handling, watching


class Stopped(Exception):
    """By the signal of this number."""


class Signals:
    """Notes the first signal for the loop. A second Ctrl-C ends the process at once."""
    received, answered = 0, False

    @contextlib.contextmanager
    def noted(self):
        with handling(dict.fromkeys(SIGNALS, self.note)), watching(self.answer):
            yield

    def note(self, number, frame):
        self.received = self.received or number

    def answer(self, number):  # in a thread
        if number != signal.SIGINT:  # launchers send others twice, also in a save
            return
        if self.answered:
            os._exit(128 + number)
        self.answered = True
        with contextlib.suppress(OSError):
            os.write(2, b'\nCtrl-C: training saves and ends after this batch; Ctrl-C again ends it at once\n')
