"""Where things are, and how a file or folder is put there: beside its final name first, then renamed.

A model directory holds MODEL_FILES, and may hold special_tokens.json. A run directory (checkpoint/<run_name>)
holds the same DESCRIPTION_FILES beside its checkpoints, so it is a model directory too: `--models_dir checkpoint
--model_name <run_name>`.

Needs no TensorFlow, so that encoding and downloading do not wait for its import.
"""
import contextlib
import errno
import os
import stat
import sys
import tempfile
import typing
from collections.abc import Iterator

from errors import InputError, require

MODEL_FILES = ('checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.data-00000-of-00001', 'model.ckpt.index',
               'model.ckpt.meta', 'vocab.bpe')
DESCRIPTION_FILES = ('hparams.json', 'encoder.json', 'vocab.bpe', 'special_tokens.json')
RELEASED_MODELS = ('124M', '355M', '774M', '1558M')
ALIASES = {'117M': '124M', '345M': '355M'}  # the names under which the first two were announced
PATTERN_CHARACTERS = {'*', '?', '[', '\\'} - {os.sep}
REMEDIES = {  # for what the system says about a file that cannot be written
    errno.EACCES: 'permit this user to write there', errno.EPERM: 'permit this user to write there',
    errno.EROFS: 'mount its file system for writing', errno.ENOENT: 'make the folder',
    errno.ENOTDIR: 'a file has the name of a folder: move it away', errno.ENOSPC: 'make room on its disk',
    errno.EDQUOT: 'make room on its disk', errno.EFBIG: 'permit larger files there (see ulimit -f)',
    errno.EIO: 'see whether its disk is in order'}
SMALL_FILE = 1 << 26  # bytes of a file that is read whole; GPT-2's encoder.json has 2^20
TEXT_FILE = 1 << 30  # bytes of a test set or of prompts, which are read whole too; enwik9 has 10^9
BYTE_ORDER_MARK = '\ufeff'
BINARY_FILES = {  # first bytes of what is often taken for text: what it is
    b'\x1f\x8b': 'a gzip file', b'BZh91AY&SY': 'a bzip2 file', b'\xfd7zXZ\0': 'an xz file',
    b'(\xb5/\xfd': 'a zstd file', b"7z\xbc\xaf'\x1c": 'a 7-Zip file', b'Rar!\x1a\7': 'a RAR file',
    b'PK\3\4': 'a zip file (as .docx, .xlsx, .odt, .epub and .npz are)', b'%PDF-': 'a PDF',
    b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1': 'an Office file (.doc, .xls)', b'PAR1\x15': 'a Parquet file',
    b'SQLite format 3\0': 'a database', b'\x89PNG\r\n': 'a picture', b'\xff\xd8\xff': 'a picture'}


def expand(path: str) -> str:
    """path with ~ and $VARIABLES replaced."""
    return os.path.expanduser(os.path.expandvars(path))


def child(parent: str, name: str, flag: str) -> str:
    """The path of `name` directly under the folder `parent`; InputError where `name` would lead out of it."""
    name = str(name)
    require(name not in ('', '.', '..') and not set(name) & set('/\\\0'),
            f'{flag} {name[:80]!r} is not a plain folder name; give the folder above it by its own flag')
    return os.path.join(expand(parent), name)


def for_tensorflow(path: str) -> str:
    """The path, where TensorFlow can read a checkpoint there: it takes the path for a pattern, and for UTF-8.

    Raises InputError, which names the character, where it cannot. What it is not given, such as the folders above a
    relative path, may have any name.
    """
    for character in path:
        if character in PATTERN_CHARACTERS or '\ud800' <= character <= '\udfff':
            raise InputError(f'the path {path[:200]!r} has the character {character!r}, with which TensorFlow reads no '
                             'checkpoint; give another name, or a path relative to the folder that has it')
    return path


def model_dir(model_name: str, models_dir: str = 'models') -> str:
    """The existing directory of a model; 117M and 345M find 124M and 355M, and the other way round."""
    path = for_tensorflow(child(models_dir, model_name, '--model_name'))
    other = {**ALIASES, **{new: old for old, new in ALIASES.items()}}.get(model_name)
    for candidate in (path, other and child(models_dir, other, '--model_name')):
        if candidate and os.path.isdir(candidate):
            return candidate
    if model_name in (*RELEASED_MODELS, *ALIASES):
        remedy = f'fetch it with ./download_model.py {model_name}'
    else:
        remedy = 'check --model_name and --models_dir, or make one with src/create_model.py'
    raise InputError(f'no model directory {path}; {remedy}')


def descriptions(directory: str) -> list[str]:
    """The paths of a model's or run's DESCRIPTION_FILES, of the last only where it is there."""
    files = [os.path.join(directory, name) for name in DESCRIPTION_FILES]
    return files if os.path.lexists(files[-1]) else files[:-1]


def run_dir(run_name: str, checkpoint_dir: str = 'checkpoint') -> str:
    """The directory of a training run, which need not exist yet."""
    return for_tensorflow(child(checkpoint_dir, run_name, '--run_name'))


def model_or_run(given: str, models_dir: str = 'models', checkpoint_dir: str = 'checkpoint') -> str:
    """The existing directory of a model or of a training run: by the name of either, or by its path (with a /).

    Raises InputError where there is none, and where a model and a run have the name.
    """
    if os.path.dirname(given):
        path = os.path.normpath(expand(given))
        if os.path.basename(path) in ('', '.', '..'):
            path = os.path.abspath(path)  # which has a name
        require(os.path.isdir(path), f'no folder {given}; give the name of a model or run, or the path of its folder')
        return for_tensorflow(path)
    run = for_tensorflow(child(checkpoint_dir, given, 'MODEL_OR_RUN'))
    if not os.path.isdir(run):
        return model_dir(given, models_dir)
    model = child(models_dir, given, 'MODEL_OR_RUN')
    require(not os.path.isdir(model) or os.path.samefile(model, run),
            f'{given} is both a model and a run; give the path of one, {model} or {run}')
    return run


@contextlib.contextmanager
def open_regular(path: str, or_pipe: bool = False) -> Iterator[typing.BinaryIO]:
    """Opens a regular file for reading, or a pipe where that is allowed. Raises InputError for what else there is,
    which may never end; OSError where there is nothing."""
    def opener(name, flags):  # a pipe that nobody writes to would keep open() waiting
        return os.open(name, flags | (0 if or_pipe else getattr(os, 'O_NONBLOCK', 0)))
    with open(path, 'rb', opener=opener) as file:
        mode = os.fstat(file.fileno()).st_mode
        require(stat.S_ISREG(mode) or (or_pipe and stat.S_ISFIFO(mode)),
                f'{path} is {"" if or_pipe else "a pipe or "}a device; give a regular file')
        yield file


def read_small(path: str, limit: int = SMALL_FILE, or_pipe: bool = False) -> bytes:
    """The bytes of a file of at most `limit` bytes, for files that are read whole.

    Raises InputError for a larger file, and as open_regular does; OSError where there is none.
    """
    with open_regular(path, or_pipe) as file:
        data = file.read(limit + 1)
        size = max(len(data), os.fstat(file.fileno()).st_size)
    require(len(data) <= limit, f'{path} has {size:,} bytes, expected at most {limit:,}; give the file that belongs '
                                'there')
    return data


def check_text(data: bytes, place: str = ''):
    """InputError, which begins with the place, where the first bytes of a file are those of a kind that is no text."""
    kinds = [kind for start, kind in BINARY_FILES.items() if data.startswith(start)]
    require(not kinds, f'{place}this is {"".join(kinds)}, not text; unpack or convert it, or leave it out')


@contextlib.contextmanager
def replacing(path: str, mode: str = 'w', encoding: str = 'utf-8') -> Iterator[typing.IO]:
    """Opens a new file beside `path` for writing; at the end of the block it takes the place of `path`, whole.

    On an exception nothing is left behind and `path` is as it was. The data is on the disk before the name is. Text has
    the same bytes on every system. Those who may read a file that was there, and no others, may read the new one.
    """
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
    binary = 'b' in mode
    return open(target, mode, encoding=None if binary else encoding, newline=None if binary else '\n',
                closefd=isinstance(target, str))


@contextlib.contextmanager
def output(path: str, mode: str = 'w', encoding: str = 'utf-8') -> Iterator[typing.IO]:
    """Opens for writing what a user calls `path`: a file as `replacing` does, at the end of symbolic links; a `stream`
    as it is, where nothing can be taken back.

    What stands in a folder is not written in this way, since a link in it could lead out of it.
    """
    target = stream(path)
    if target is None:
        with replacing(os.path.realpath(path), mode, encoding) as file:
            yield file
    else:
        try:
            with open_to_write(target, mode, encoding) as file:
                yield file
        except OSError as error:
            error.filename = error.filename or path
            raise


def stream(path: str) -> str | int | None:
    """What open() is to be given where `path` is no file that could be replaced: the path of a device or a pipe, or the
    descriptor of a file that is open already, such as /dev/stdout; else None."""
    link = path
    while os.path.exists(path):
        folder, name = os.path.split(link)
        if os.path.realpath(folder) == os.path.realpath('/dev/fd'):
            return int(name)
        if not os.path.islink(link):
            return None if os.path.isfile(path) or os.path.isdir(path) else path
        link = os.path.join(folder, os.readlink(link))
    return None


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


def synchronize(path: str):
    """Has the operating system write a file or directory to the disk; a directory not on Windows, which opens none."""
    if sys.platform == 'win32' and os.path.isdir(path):
        return
    descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)  # Windows wants it to be writable
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
