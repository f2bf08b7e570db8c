"""Paths of models and runs; files and folders that get their name when whole."""
import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import stat
import sys
import tempfile

from errors import InputError, require

DESCRIPTIONS = ('hparams.json', 'encoder.json', 'vocab.bpe', 'special_tokens.json')
TEMPLATE = 'template.json'
MODEL_FILES = ('checkpoint', *DESCRIPTIONS[:3], 'model.ckpt.data-00000-of-00001', 'model.ckpt.index',
               'model.ckpt.meta')
RELEASED_MODELS = ('124M', '355M', '774M', '1558M')
ALIASES = {'117M': '124M', '345M': '355M'}  # former names
REMEDIES = {  # of a failed write
    errno.EACCES: 'permit this user to write', errno.EPERM: 'permit this user to write',
    errno.EROFS: 'mount it for writing', errno.ENOENT: 'make the folder', errno.EIO: 'check the disk',
    errno.ENOTDIR: 'move that file away', errno.ENOSPC: 'make room', errno.EDQUOT: 'make room',
    errno.EFBIG: 'permit larger files'}
SMALL_FILE = 1 << 26  # bytes; encoder.json has 2^20


def expand(path):  # ~ and $VARIABLES
    return os.path.expanduser(os.path.expandvars(path))


def child(parent, name, flag):
    """The path of a name in a folder. Raises InputError if it leads out."""
    require(name not in ('', '.', '..') and not set(name) & set('/\\\0'),
            f'{flag} {name[:80]!r} is not a plain folder name')
    return os.path.join(expand(parent) or '.', name)


def for_tensorflow(path):
    """The path. Raises InputError if TensorFlow, to which it is a pattern in UTF-8, cannot read it."""
    if match := re.search(r'[*?[\\\ud800-\udfff]', path.replace(os.sep, '/')):
        raise InputError(
            f'{path[:200]!r} has the character {match[0]!r}, which TensorFlow cannot read; rename it')
    return path


def find_model(name, models_dir='models', checkpoint_dir='checkpoint', quiet=False) -> str:
    """The folder of a model (124M and 117M are one), run, or path with a /."""
    if os.path.dirname(name):
        path = expand(name).rstrip('/' + os.sep)
        require(os.path.isdir(path), f'no folder {name}; give a name, or the path of a folder')
        return for_tensorflow(os.path.abspath(path) if os.path.basename(path) in ('.', '..') else path)
    names = next(([name, *pair] for pair in ALIASES.items() if name in pair), [name])
    models = [child(models_dir, alias, '--model_name') for alias in names]
    run = child(checkpoint_dir, name, '--model_name')
    folders = [path for path in (*models, run) if os.path.isdir(path)]
    require(folders, f'no model directory {models[0]} and no run {run}; use download_model.py')
    if folders[-1] == run and not quiet and not os.path.samefile(folders[0], run):
        print(f'{name} is the model {folders[0]}; the run of this name is {run}', file=sys.stderr)
    return for_tensorflow(folders[0])


def descriptions(folder):  # paths of DESCRIPTIONS, the last only if there
    files = [f'{folder}/{name}' for name in DESCRIPTIONS]
    return files if os.path.lexists(files[-1]) else files[:-1]


def copy_descriptions(source, target):  # from folder to folder, and the template of prompts and answers
    for path in [*descriptions(source), f'{source}/{TEMPLATE}']:
        if os.path.lexists(path):
            copy_file(path, f'{target}/{os.path.basename(path)}')


def run_dir(run_name, checkpoint_dir='checkpoint'):  # which need not exist yet
    return for_tensorflow(child(checkpoint_dir, run_name, '--run_name'))


def open_regular(path, or_pipe=False):
    """Opens a file. Raises InputError for a device, or a pipe unless or_pipe."""
    mode = os.stat(path).st_mode  # open would wait for a pipe's writer
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or (stat.S_ISFIFO(mode) and not or_pipe):
        raise InputError(f'{path} is a pipe or a device; give a file')
    return open(path, 'rb')


def read_small(path) -> bytes:
    """The bytes of a file. Raises InputError for more than SMALL_FILE, and as open_regular."""
    with open_regular(path) as file:
        data = file.read(SMALL_FILE + 1)
    require(len(data) <= SMALL_FILE, f'{path} has more than {SMALL_FILE:,} bytes; give another')
    return data


def read_json(path, remedy) -> dict:
    """The object of a JSON file, which may begin with a byte-order mark."""
    require(os.path.exists(path), f'no {path}; {remedy}')
    return parse_object(read_small(path), path, remedy)


def parse_object(text, place, remedy, kind='object') -> dict:  # of JSON; raises InputError
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{place} is not JSON ({error}); {remedy}') from None
    require(isinstance(values, dict), f'{place} must hold an {kind}; {remedy}')
    return values


@contextlib.contextmanager
def naming(path, temporary):  # an OSError with no path or a temporary one gets the user's
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).startswith(temporary):
            error.filename = path
        raise


def write_json(path, values):  # replaces the file
    with replacing(path) as file:
        json.dump(values, file)


@contextlib.contextmanager
def replacing(path, mode='w'):
    """Opens a new file, which replaces `path` once on the disk; permissions stay."""
    temporary = f'{path}.{os.getpid()}.tmp'
    try:
        with open_to_write(temporary, mode) as file:
            if os.path.isfile(path) and not os.path.islink(path):
                os.chmod(temporary, os.stat(path).st_mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def copy_file(source, target):  # replaces the target
    with open(source, 'rb') as original, replacing(target, 'wb') as file:
        shutil.copyfileobj(original, file)


def open_to_write(target, mode):  # a path, or a descriptor, which stays open
    encoding, newline = (None, None) if 'b' in mode else ('utf-8', '\n')  # the same on all systems
    return open(target, mode, encoding=encoding, newline=newline, closefd=isinstance(target, str))


@contextlib.contextmanager
def output(path, mode='w'):
    """Opens a user's file: a `stream` directly, others by `replacing`, at the end of links."""
    require(os.path.basename(path) and not os.path.isdir(path), f'{path!r} does not name a file')
    target, end = stream(path), os.path.realpath(path)
    with naming(path, end), replacing(end, mode) if target is None else open_to_write(target, mode) as file:
        yield file


def stream(path) -> str | int | None:
    """A device's or pipe's path, the descriptor of an open file like /dev/stdout, or None for a file."""
    while os.path.exists(path):
        folder, name = os.path.split(path)
        if os.path.realpath(folder) == os.path.realpath('/dev/fd'):
            return int(name)
        if not os.path.islink(path):
            return None if os.path.isfile(path) or os.path.isdir(path) else path
        path = os.path.join(folder, os.readlink(path))
    return None


def remedy(error):  # for a file that cannot be written
    return REMEDIES.get(error.errno or errno.EIO, 'check the disk')


def missing(folder):  # folders to be made, itself first
    path = pathlib.Path(os.path.abspath(folder))
    return [str(part) for part in (path, *path.parents) if not os.path.lexists(part)]


def check_writable(folder, flag):
    """Raises InputError if no file can be made in a folder, or above a missing one."""
    new = missing(folder)
    folder = os.path.dirname(new[-1]) if new else folder
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f'{flag}: no file can be written in {folder} ({error.strerror}); {remedy(error)}, '
                         f'or give another {flag}') from None


@contextlib.contextmanager
def making(folder):
    """Gives a folder, which becomes `folder` at the end. Raises InputError if that exists."""
    require(not os.path.lexists(folder), f'{folder} exists already; choose another name')
    parent, name = os.path.split(os.path.abspath(folder))
    beside = os.path.dirname(missing(folder)[-1])  # those between are made last
    with tempfile.TemporaryDirectory(dir=beside, prefix=f'.{name}.') as temporary, naming(folder, temporary):
        whole = f'{temporary}/{name}'
        os.mkdir(whole)
        yield whole
        os.makedirs(parent, exist_ok=True)
        os.rename(whole, folder)


def synchronize(path):  # to the disk; Windows opens no folder
    is_file = os.path.isfile(path)
    if is_file or sys.platform != 'win32':
        descriptor = os.open(path, os.O_RDWR if is_file else os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
