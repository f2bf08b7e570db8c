"""metrics.jsonl in a run's folder: a line for each update, and one for each validation."""
import errno
import json
import os

from errors import InputError, require
from storage import paths

NAME = 'metrics.jsonl'
MAX_LINE, LARGEST = 1 << 12, 1e39  # bytes; above all of float32


def read(folder):
    """Yields each line with its dict of numbers; an end without line end is no line. Raises InputError for
    what training does not write."""
    path, number = os.path.join(folder, NAME), 0
    with paths.open_regular(path) as file:
        while line := file.readline(MAX_LINE):
            number += 1
            if not line.endswith(b'\n') and len(line) < MAX_LINE:
                return
            try:
                values = json.loads(line)
                numbers = [values['step'], *(value for value in values.values() if value is not None)]
                require(all(type(x) in (int, float) and abs(x) < LARGEST for x in numbers), 'other values')
            except (InputError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise InputError(f'{path}, line {number} is none that training writes') from None
            yield line, values


def reopen(folder, step, validated, warn):
    """Opens it to add lines, after those up to a step, and of its validation if that is done."""
    path = os.path.join(folder, NAME)
    if os.path.islink(path):
        os.unlink(path)
        warn(f'{path} was a link: it is made anew')
    with paths.replacing(path, 'wb') as kept:
        try:
            for line, values in read(folder):
                if values['step'] > step:
                    break
                if values['step'] < step or validated or 'val_loss' not in values:
                    kept.write(line)
        except FileNotFoundError:
            pass
        except InputError as error:
            warn(f'{error}: it is removed, with those after it')
    return open(path, 'ab', buffering=0)  # a line is one write


def append(file, line):  # or raises OSError
    if file.write(line) < len(line):  # of a line that is cut off, the system tells by the number alone
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def copy(source, target):  # of one folder into another, in place of what is there
    path, new = os.path.join(source, NAME), os.path.join(target, NAME)
    if os.path.isfile(path) and not os.path.islink(path):
        paths.copy_file(path, new)
    elif os.path.lexists(new):
        os.unlink(new)
