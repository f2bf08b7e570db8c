"""The lock of a training run's folder."""
import contextlib
import errno
import os
import sys

from errors import InputError
from storage import paths


class Lock:
    """Keeps others from a run's folder, but not where folders cannot be opened (Windows) or locked (some
    network file systems)."""

    def __init__(self, directory: str):
        self.directory = directory
        self.descriptor: int | None = None  # of the folder
        self.new: list[str] = []  # folders that lock has made, the innermost first

    def lock(self):
        """Makes the folder where there is none, and keeps it. Raises InputError where another process has it,
        or where nothing can be written there."""
        paths.check_writable(self.directory, '--checkpoint_dir')
        new = paths.missing(self.directory)
        os.makedirs(self.directory, exist_ok=True)
        if sys.platform != 'win32':
            import fcntl
            self.descriptor = os.open(self.directory, os.O_RDONLY)
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.unlock()
                raise InputError(f'another process is training {self.directory}; give another --run_name, or '
                                 'wait for its end') from None
            except OSError:
                pass
        self.new = new

    def unlock(self):
        """Lets others have the folder; removes it where it is new and still empty."""
        if not self.gone():
            with contextlib.suppress(OSError):  # the first that is not empty
                for folder in self.new:
                    os.rmdir(folder)
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def gone(self) -> str | None:
        """A line for the user, where the locked folder is not the one at its path any more."""
        if self.descriptor is None or is_at(self.descriptor, self.directory):
            return None
        end = 'while it was trained, so nothing more is saved'
        with contextlib.suppress(OSError):  # Linux alone tells its path
            path = os.readlink(f'/proc/self/fd/{self.descriptor}')
            if is_at(self.descriptor, path):
                return (f'{self.directory} was moved to {path} {end}; its checkpoints are there: move it '
                        'back, and the same command goes on')
        return f'{self.directory} was removed or moved {end}; put it back, and the same command goes on'

    def check(self):
        """Raises InputError where the folder is gone."""
        if message := self.gone():
            raise InputError(message)


def is_at(descriptor, path):  # whether an open folder is the one at a path, as far as is known
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
