"""Paths of models and runs, and files and folders that get their name only when they are whole.

A run's folder has DESCRIPTION_FILES beside its checkpoints, so it can be used as a model.
"""
import contextlib
import errno
import os
import stat
import sys
import tempfile
import typing
from collections.abc import Iterator

from errors import InputError

MODEL_FILES = ('checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.data-00000-of-00001',
               'model.ckpt.index', 'model.ckpt.meta', 'vocab.bpe')
DESCRIPTION_FILES = ('hparams.json', 'encoder.json', 'vocab.bpe', 'special_tokens.json')
RELEASED_MODELS = ('124M', '355M', '774M', '1558M')
ALIASES = {'117M': '124M', '345M': '355M'}  # the names under which the first two were announced
PATTERN_CHARACTERS = {'*', '?', '[', '\\'} - {os.sep}
REMEDIES = {  # for a file that cannot be written
    errno.EACCES: 'permit this user to write there', errno.EPERM: 'permit this user to write there',
    errno.EROFS: 'mount its file system for writing', errno.ENOENT: 'make the folder',
    errno.ENOTDIR: 'a file has the name of a folder: move it away', errno.ENOSPC: 'make room on its disk',
    errno.EDQUOT: 'make room on its disk', errno.EFBIG: 'permit larger files there (see ulimit -f)',
    errno.EIO: 'see whether its disk is in order'}
SMALL_FILE, TEXT_FILE = 1 << 26, 1 << 30  # bytes that are read whole; encoder.json has 2^20, enwik9 10^9
BYTE_ORDER_MARK = '\ufeff'
BINARY_FILES = {  # first bytes: a kind that is often taken for text
    b'\x1f\x8b': 'a gzip file', b'BZh91AY&SY': 'a bzip2 file', b'\xfd7zXZ\0': 'an xz file', b'%PDF-': 'a PDF',
    b'(\xb5/\xfd': 'a zstd file', b"7z\xbc\xaf'\x1c": 'a 7-Zip file', b'Rar!\x1a\7': 'a RAR file',
    b'PK\3\4': 'a zip file (as .docx, .xlsx, .odt, .epub and .npz are)', b'PAR1\x15': 'a Parquet file',
    b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1': 'an Office file (.doc, .xls)', b'SQLite format 3\0': 'a database',
    b'\x89PNG\r\n': 'a picture', b'\xff\xd8\xff': 'a picture'}


def expand(path: str) -> str:
    """path with ~ and $VARIABLES replaced."""
    return os.path.expanduser(os.path.expandvars(path))


def child(parent: str, name: str, flag: str) -> str:
    """The path of `name` in the folder `parent`. Raises InputError if `name` leads out of it."""
    if name in ('', '.', '..') or set(name) & set('/\\\0'):
        raise InputError(f'{flag} {name[:80]!r} is not a plain folder name; give its folder by its own flag')
    return os.path.join(expand(parent) or '.', name)


def for_tensorflow(path: str) -> str:
    """The path. Raises InputError if TensorFlow, to which it is a pattern in UTF-8, cannot read there."""
    for character in path:
        if character in PATTERN_CHARACTERS or '\ud800' <= character <= '\udfff':
            raise InputError(f'the path {path[:200]!r} has the character {character!r}, with which '
                             'TensorFlow reads no checkpoint; give another name, or a relative path')
    return path


def find_model(name: str, models_dir: str = 'models', checkpoint_dir: str = 'checkpoint', quiet=False) -> str:
    """The folder of a model or run, given by its name, or by a path with a / in it. Raises InputError.

    117M and 345M find 124M and 355M, and the reverse. If a model hides a run of the same name, a line on
    stderr tells the run's path, unless quiet.
    """
    if os.path.dirname(name):
        path = expand(name).rstrip('/' + os.sep)
        if not os.path.isdir(path):
            raise InputError(f'no folder {name}; give the name of a model or run, or the path of its folder')
        return for_tensorflow(os.path.abspath(path) if os.path.basename(path) in ('.', '..') else path)
    model, run = child(models_dir, name, '--model_name'), child(checkpoint_dir, name, '--model_name')
    other = {**ALIASES, **{new: old for old, new in ALIASES.items()}}.get(name, name)
    folders = [path for path in (model, child(models_dir, other, ''), run) if os.path.isdir(path)]
    if not folders:
        remedy = 'give a model, a run or a path with a /, or make one with src/create_model.py'
        if name in (*RELEASED_MODELS, *ALIASES):
            remedy = f'fetch it with ./download_model.py {name}'
        raise InputError(f'no model directory {model} and no run {run}; {remedy}')
    if folders[-1] == run and not quiet and not os.path.samefile(folders[0], run):
        print(f'{name} is the model {folders[0]}; the run of this name is {run}', file=sys.stderr)
    return for_tensorflow(folders[0])


def descriptions(directory: str) -> list[str]:
    """The paths of a model's or run's DESCRIPTION_FILES, of the last only if it is there."""
    files = [os.path.join(directory, name) for name in DESCRIPTION_FILES]
    return files if os.path.lexists(files[-1]) else files[:-1]


def run_dir(run_name: str, checkpoint_dir: str = 'checkpoint') -> str:
    """The directory of a training run, which need not exist yet."""
    return for_tensorflow(child(checkpoint_dir, run_name, '--run_name'))


@contextlib.contextmanager
def open_regular(path: str, or_pipe: bool = False) -> Iterator[typing.BinaryIO]:
    """Opens a regular file for reading, or a pipe if that is allowed. Raises InputError, OSError."""
    def opener(name, flags):  # a pipe that nobody writes to would keep open() waiting
        return os.open(name, flags | (0 if or_pipe else getattr(os, 'O_NONBLOCK', 0)))
    with open(path, 'rb', opener=opener) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode) and not (or_pipe and stat.S_ISFIFO(mode)):
            raise InputError(f'{path} is {"" if or_pipe else "a pipe or "}a device; give a regular file')
        yield file


def read_small(path: str, limit: int = SMALL_FILE, or_pipe: bool = False) -> bytes:
    """The bytes of a file. Raises InputError for more than `limit` bytes, and as open_regular does."""
    with open_regular(path, or_pipe) as file:
        data = file.read(limit + 1)
        size = max(len(data), os.fstat(file.fileno()).st_size)
    if size > limit:
        raise InputError(f'{path} has {size:,} bytes, expected at most {limit:,}; give the right file')
    return data


def check_text(data: bytes, place: str = ''):
    """Raises InputError, which begins with the place, if a file begins as BINARY_FILES do."""
    for start, kind in BINARY_FILES.items():
        if data.startswith(start):
            raise InputError(f'{place}this is {kind}, not text; unpack or convert it, or leave it out')


@contextlib.contextmanager
def replacing(path: str, mode: str = 'w', encoding: str = 'utf-8') -> Iterator[typing.IO]:
    """Opens a new file. After the block, once on the disk, it takes the place and permissions of `path`."""
    temporary = f'{path}.{os.getpid()}.tmp'
    try:
        with open_to_write(temporary, mode, encoding) as file:
            if os.path.isfile(path) and not os.path.islink(path):
                os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
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


def open_to_write(target, mode, encoding):  # a path, or a descriptor, which stays open
    encoding, newline = (None, None) if 'b' in mode else (encoding, '\n')  # the same bytes on every system
    return open(target, mode, encoding=encoding, newline=newline, closefd=isinstance(target, str))


@contextlib.contextmanager
def output(path: str, mode: str = 'w', encoding: str = 'utf-8') -> Iterator[typing.IO]:
    """Opens a user's file, none of a run: a `stream` directly, others as `replacing`, at the end of links."""
    target = stream(path)
    opener: typing.Any = replacing if target is None else open_to_write
    try:
        with opener(os.path.realpath(path) if target is None else target, mode, encoding) as file:
            yield file
    except OSError as error:
        error.filename = error.filename or path
        raise


def stream(path: str) -> str | int | None:
    """The path of a device or pipe, or the descriptor of an open file like /dev/stdout; None for a file."""
    link = path
    while os.path.exists(path) and os.path.realpath(os.path.dirname(link)) != os.path.realpath('/dev/fd'):
        if not os.path.islink(link):
            return None if os.path.isfile(link) or os.path.isdir(link) else path
        link = os.path.join(os.path.dirname(link), os.readlink(link))
    return int(os.path.basename(link)) if os.path.exists(path) else None


def remedy(error: OSError) -> str:
    """The user's remedy for a file that could not be written."""
    return REMEDIES.get(error.errno or 0, REMEDIES[errno.EIO])


def missing(folder: str) -> list[str]:
    """The folders that must be made for this one to be there, itself first."""
    folders = [os.path.abspath(folder)]
    while not os.path.lexists(folders[-1]):
        folders.append(os.path.dirname(folders[-1]))
    return folders[:-1]


def check_writable(folder: str, flag: str):
    """Raises InputError if no file can be made in a folder or, before it is there, in the folder above."""
    existing = os.path.dirname([os.path.join(folder, ''), *missing(folder)][-1])
    trial = os.path.join(existing, f'counter.{os.getpid()}.tmp')  # a save removes it if a kill has left it
    try:
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT))
        os.unlink(trial)
    except OSError as error:
        raise InputError(f'{flag}: no file can be written in {existing} ({error.strerror}); {remedy(error)}, '
                         f'or give another {flag}') from None


def check_new(folder):
    """Raises InputError if the name of a folder that is to be made is taken."""
    if os.path.lexists(folder):
        raise InputError(f'{folder} exists already; choose another name, or remove it')


@contextlib.contextmanager
def making(folder: str) -> Iterator[str]:
    """Gives a new folder, which becomes `folder` after the block. Raises InputError if `folder` exists."""
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


def synchronize(path: str):
    """Has the system write a file or directory to the disk; no directory on Windows, which opens none."""
    if sys.platform != 'win32' or os.path.isfile(path):
        descriptor = os.open(path, os.O_RDWR if os.path.isfile(path) else os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
