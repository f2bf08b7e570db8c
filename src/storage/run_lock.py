"""The lock of a training run's folder."""
import contextlib
import errno
import os
import sys

from errors import InputError
from storage import paths


class Lock:
    """Keeps other processes from a run's folder, where the system can lock one."""

    def __init__(self, directory):
        self.directory = directory
        self.descriptor: int | None = None  # of the folder
        self.new: list[str] = []  # folders that lock makes, the innermost first

    def lock(self):  # makes and locks the folder, or raises InputError
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
                message = f'another process is training {self.directory}; give another --run_name'
                raise InputError(message) from None
            except OSError:  # of a file system without locks
                pass
        self.new = new

    def unlock(self):  # and removes a new folder that is still empty
        if not self.gone():
            with contextlib.suppress(OSError):  # the first that is not empty
                for folder in self.new:
                    os.rmdir(folder)
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def gone(self):  # -> a line for the user, if the locked folder is not at its path any more
        if self.descriptor is None:
            return None
        try:
            is_there = os.path.samestat(os.fstat(self.descriptor), os.stat(self.directory))
        except OSError as error:
            is_there = error.errno not in (errno.ENOENT, errno.ENOTDIR)  # else it is not known
        return None if is_there else (
            f'{self.directory} was removed or moved while it was trained; put it back, and train again')

    def check(self):  # raises InputError where the folder is gone
        if line := self.gone():
            raise InputError(line)
