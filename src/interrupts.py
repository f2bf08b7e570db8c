"""The signals that ask a process to end, and what is to be done at them for the length of a block."""
import contextlib
import signal
from collections.abc import Callable, Iterator

SIGNALS = ('SIGINT', 'SIGTERM', 'SIGHUP')  # the last is not known on Windows


@contextlib.contextmanager
def handling(handlers: dict[str, Callable | signal.Handlers]) -> Iterator[dict]:
    """Sets handlers of signals by their names; gives those that there were before, by number.

    What is ignored (SIGHUP under nohup) stays ignored, and outside the main thread, where none can be set, nothing is.
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
