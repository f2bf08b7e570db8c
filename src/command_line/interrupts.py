"""The signals that ask a process to end, and what is to be done at them for the length of a block."""
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping

SIGNALS = ('SIGINT', 'SIGTERM', 'SIGHUP')  # the last is not known on Windows


@contextlib.contextmanager
def handling(handlers: Mapping[str, Callable | signal.Handlers]) -> Iterator[dict]:
    """Sets handlers of signals by their names; gives those that there were before, by number.

    An ignored signal (SIGHUP under nohup) stays ignored. Outside the main thread, no handler can be set.
    """
    previous = {}
    with contextlib.suppress(ValueError):
        for name, handler in handlers.items():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    try:
        yield previous
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def default_signal_handlers(first: Callable[[], None] | None = None):
    """A context in which signals call first() and end a script, where they would raise exceptions.

    While modules are imported and graphs are built, C++ calls Python, and drops what that raises, or makes
    another error of it. A program that is not within cli.run keeps its signals.
    """
    def end(number, frame):
        if first:
            first()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    is_script = callable(signal.getsignal(signal.SIGTERM))
    return handling(dict.fromkeys(SIGNALS if is_script else (), end if first else signal.SIG_DFL))


@contextlib.contextmanager
def watching(function: Callable[[int], None]) -> Iterator[None]:
    """Calls function(number), in a thread of its own, as soon as a signal comes that has a handler.

    The handler itself waits until C++ code returns to Python, which may take long. Outside the main thread
    nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def watch():
        while number := reader.recv(1):
            function(number[0])
    reader, writer = socket.socketpair()  # no pipe: it cannot be set non-blocking on Windows
    with reader, writer:
        writer.setblocking(False)
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        previous = signal.set_wakeup_fd(writer.fileno())
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            writer.close()
            thread.join()
