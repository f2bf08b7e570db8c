"""Handlers, within a block of the main thread, of signals that ask a process to end."""
import contextlib
import os
import signal
import socket
import threading

SIGNALS = ('SIGINT', 'SIGTERM', 'SIGHUP')  # Windows lacks the last


@contextlib.contextmanager
def handling(handlers):  # {signal's name: function(number, frame) or SIG_DFL}
    """Sets handlers within the block. An ignored signal (SIGHUP under nohup) stays so."""
    old = {}
    with contextlib.suppress(ValueError):  # in another thread
        for name, handler in handlers.items():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                old[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def default_signal_handlers(first=None):
    """A context in which signals call first() and end a script, not another program. Exceptions would get
    lost: in imports and while graphs are built, C++ calls Python."""
    def end(number, frame):
        first()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    is_script = callable(signal.getsignal(signal.SIGTERM))
    return handling(dict.fromkeys(SIGNALS if is_script else (), end if first else signal.SIG_DFL))


class Stopped(Exception):
    """By the signal of this number."""


class Signals:
    """Notes the first signal for the loop of training. A second Ctrl-C ends the process at once."""
    received = 0

    @contextlib.contextmanager
    def noted(self):
        if threading.current_thread() is not threading.main_thread():  # which gets all signals
            yield
            return
        reader, writer = socket.socketpair()  # Windows has no non-blocking pipes
        with reader, writer, handling(dict.fromkeys(SIGNALS, self.note)):
            writer.setblocking(False)
            thread = threading.Thread(target=answer, args=[reader], daemon=True)
            thread.start()
            old = signal.set_wakeup_fd(writer.fileno())
            try:
                yield
            finally:
                signal.set_wakeup_fd(old)
                writer.close()
                thread.join()

    def note(self, number, frame):
        self.received = self.received or number


def answer(reader):  # of signals' numbers, in a thread: their handlers may have to wait for C++
    answered = False
    while number := reader.recv(1):
        if number[0] != signal.SIGINT:  # launchers send others twice, also in a save
            continue
        if answered:
            os._exit(128 + signal.SIGINT)
        answered = True
        with contextlib.suppress(OSError):
            os.write(2, b'\nCtrl-C: training saves and ends after this batch; Ctrl-C again ends it at once\n')
