"""Where things are, and how a file or folder is put there: beside its final name first, then renamed.

A model directory holds MODEL_FILES. A run directory (checkpoint/<run_name>) holds the same hparams.json, encoder.json
and vocab.bpe beside its checkpoints, so it is a model directory too: `--models_dir checkpoint --model_name <run_name>`.

Needs no TensorFlow, so that encoding and downloading do not wait for its import.
"""
import contextlib
import errno
import os
import stat
import tempfile
import typing
from collections.abc import Iterator

from errors import InputError, require

MODEL_FILES = ('checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.data-00000-of-00001', 'model.ckpt.index',
               'model.ckpt.meta', 'vocab.bpe')
RELEASED_MODELS = ('124M', '355M', '774M', '1558M')
ALIASES = {'117M': '124M', '345M': '355M'}  # the names under which the first two were announced
REMEDIES = {  # for what the system says about a file that cannot be written
    errno.EACCES: 'permit this user to write there', errno.EPERM: 'permit this user to write there',
    errno.EROFS: 'mount its file system for writing', errno.ENOENT: 'make the folder',
    errno.ENOTDIR: 'a file has the name of a folder: move it away', errno.ENOSPC: 'make room on its disk',
    errno.EDQUOT: 'make room on its disk', errno.EFBIG: 'permit larger files there (see ulimit -f)'}
SMALL_FILE = 1 << 26  # bytes of a file that is read whole; GPT-2's encoder.json has 2^20


def expand(path: str) -> str:
    """path with ~ and $VARIABLES replaced."""
    return os.path.expanduser(os.path.expandvars(path))


def child(parent: str, name: str, flag: str) -> str:
    """The path of `name` directly under the folder `parent`; InputError where `name` would lead out of it."""
    name = str(name)
    require(name not in ('', '.', '..') and not set(name) & set('/\\\0'),
            f'{flag} {name[:80]!r} is not a plain folder name; give the folder above it by its own flag')
    return os.path.join(expand(parent), name)


def model_dir(model_name: str, models_dir: str = 'models') -> str:
    """The existing directory of a model; 117M and 345M find 124M and 355M, and the other way round."""
    path = child(models_dir, model_name, '--model_name')
    other = {**ALIASES, **{new: old for old, new in ALIASES.items()}}.get(model_name)
    for candidate in (path, other and child(models_dir, other, '--model_name')):
        if candidate and os.path.isdir(candidate):
            return candidate
    if model_name in (*RELEASED_MODELS, *ALIASES):
        remedy = f'fetch it with ./download_model.py {model_name}'
    else:
        remedy = 'check --model_name and --models_dir, or make one with src/create_model.py'
    raise InputError(f'no model directory {path}; {remedy}')


def run_dir(run_name: str, checkpoint_dir: str = 'checkpoint') -> str:
    """The directory of a training run, which need not exist yet."""
    return child(checkpoint_dir, run_name, '--run_name')


def model_or_run(given: str, models_dir: str = 'models', checkpoint_dir: str = 'checkpoint') -> str:
    """The existing directory of a model or of a training run: by the name of either, or by its path (with a /).

    Raises InputError where there is none, and where a model and a run have the name.
    """
    if os.path.dirname(given):
        path = os.path.abspath(expand(given))
        require(os.path.isdir(path), f'no folder {given}; give the name of a model or run, or the path of its folder')
        return path
    run = child(checkpoint_dir, given, 'MODEL_OR_RUN')
    if not os.path.isdir(run):
        return model_dir(given, models_dir)
    model = child(models_dir, given, 'MODEL_OR_RUN')
    require(not os.path.isdir(model) or os.path.samefile(model, run),
            f'{given} is both a model and a run; give the path of one, {model} or {run}')
    return run


def read_small(path: str, limit: int = SMALL_FILE) -> bytes:
    """The bytes of a regular file of at most `limit` bytes, for files that are read whole.

    Raises InputError for a pipe or a device, which may never end, and for a larger file; OSError where there is none.
    """
    def opener(name, flags):  # a pipe that nobody writes to would keep open() waiting
        return os.open(name, flags | getattr(os, 'O_NONBLOCK', 0))
    with open(path, 'rb', opener=opener) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f'{path} is a pipe or a device; give a regular file')
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(f'{path} has {status.st_size:,} bytes, expected at most {limit:,}; give the file that belongs '
                         'there')
    return data


@contextlib.contextmanager
def replacing(path: str, mode: str = 'w', encoding: str = 'utf-8') -> Iterator[typing.IO]:
    """Opens a new file beside `path` for writing; at the end of the block it takes the place of `path`, whole.

    On an exception nothing is left behind and `path` is as it was. The data is on the disk before the name is. Text has
    the same bytes on every system.
    """
    temporary, binary = f'{path}.{os.getpid()}.tmp', 'b' in mode
    try:
        with open(temporary, mode, encoding=None if binary else encoding, newline=None if binary else '\n') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename = path  # the name that the caller knows
        raise


def remedy(error: OSError) -> str:
    """What the user can do about a file that could not be written."""
    return REMEDIES.get(error.errno or 0, 'see whether its disk is in order')


def missing(folder: str) -> list[str]:
    """The folders that must be made for this one to be there, itself first; none where it is there."""
    folder, result = os.path.abspath(folder), []
    while not os.path.lexists(folder):
        result.append(folder)
        folder = os.path.dirname(folder)
    return result


def check_writable(folder: str, flag: str):
    """Raises InputError where no file can be made in a folder, or in the one in which it is to be made."""
    new = missing(folder)
    there = os.path.dirname(new[-1]) if new else folder
    trial = os.path.join(there, f'counter.{os.getpid()}.tmp')  # which a save removes, where a kill has left it
    try:
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT))
        os.unlink(trial)
    except OSError as error:
        raise InputError(f'{flag}: no file can be written in {there} ({error.strerror}); {remedy(error)}, or '
                         f'give another {flag}') from None


def check_new(folder):
    """Raises InputError where there is something under the name of a folder that is to be made."""
    require(not os.path.lexists(folder), f'{folder} exists already; choose another name, or remove it')


@contextlib.contextmanager
def making(folder: str) -> Iterator[str]:
    """Gives the path of a new, empty folder; at the end of the block it becomes `folder`, whole.

    On an exception nothing is left behind. Raises InputError, before the block, where `folder` exists.
    """
    check_new(folder)
    parent, name = os.path.split(os.path.abspath(folder))
    beside = os.path.dirname(missing(folder)[-1])  # the folders above are made at the end, too
    with tempfile.TemporaryDirectory(dir=beside, prefix=f'.{name}.') as temporary:
        whole = os.path.join(temporary, name)
        os.mkdir(whole)
        try:
            yield whole
        except OSError as error:
            if error.filename is None or str(error.filename).startswith(temporary):
                error.filename = folder  # the name that the caller knows
            raise
        os.makedirs(parent, exist_ok=True)
        os.rename(whole, folder)
