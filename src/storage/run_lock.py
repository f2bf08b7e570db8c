"""The lock of a training run's folder."""
import contextlib
import errno
import os
import sys

from errors import InputError
from storage import paths


class Lock:
    """Keeps other processes from a run's folder, if the system can lock it."""

    def __init__(self, folder):
        self.folder = folder
        self.descriptor: int | None = None  # of the folder
        self.new = []  # folders that lock made, the innermost first

    def lock(self):  # makes and locks the folder; raises InputError
        paths.check_writable(self.folder, '--checkpoint_dir')
        new = paths.missing(self.folder)
        os.makedirs(self.folder, exist_ok=True)
        if sys.platform != 'win32':
            import fcntl
            self.descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.unlock()
                message = f'another process is training {self.folder}; give another --run_name'
                raise InputError(message) from None
            except OSError:  # a file system without locks
                pass
        self.new = new

    def unlock(self):  # and removes new folders that are empty
        if not self.gone():
            with contextlib.suppress(OSError):  # the first that is not empty
                for folder in self.new:
                    os.rmdir(folder)
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def gone(self):  # -> a line for the user if the folder is not at its path
        if self.descriptor is None:
            return None
        try:
            is_there = os.path.samestat(os.fstat(self.descriptor), os.stat(self.folder))
        except OSError as error:
            is_there = error.errno not in (errno.ENOENT, errno.ENOTDIR)  # else unknown
        return None if is_there else (
            f'{self.folder} was removed or moved while it was trained; put it back, and train again')

    def check(self):
        if line := self.gone():
            raise InputError(line)
