"""Runs a script's function with the flags of the command line; a user's mistake is one line and status 2.

fire calls a function before it rejects an unknown flag (python-fire issue 168), and guesses types (2019 is no
text to it). So names and types are checked against the signature first, and fire gets what it cannot misread.
"""
from command_line.startup import fail, load_tensorflow  # first: a missing package is then told

# isort: split
import contextlib
import dataclasses
import difflib
import inspect
import io
import math
import os
import signal
import sys
import typing
from collections.abc import Callable

import fire

from command_line import interrupts
from command_line.interrupts import default_signal_handlers  # noqa: F401  for scripts
from errors import InputError
from storage import paths
from version import VERSION

MAX_SIZE, MAX_SEED = (1 << 31) - 1, (1 << 63) - 1  # TensorFlow has sizes in 32 bits
EXPECTED = {int: 'a whole number', float: 'a number', bool: 'true or false'}
Function = Callable[..., None]


def flags_from(fields: type) -> Callable[[Function], Function]:
    """Gives a function of *args, **flags the signature and, after its docstring, the help of a dataclass."""
    def decorate(function):
        helps, docs = {}, []  # the help of a flag is in its field, or in the docstring
        for base in filter(dataclasses.is_dataclass, reversed(fields.__mro__)):
            helps |= {flag.name: flag.metadata['help'] for flag in dataclasses.fields(base) if flag.metadata}
            docs.append(inspect.cleandoc(base.__doc__ or '').partition('Args:\n'))
        summary = inspect.cleandoc(function.__doc__ or docs[-1][0])
        lines = [f'    {name}: {text}' for name, text in helps.items()] + [text for _, _, text in docs]
        function.__doc__ = '\n'.join([summary, '', 'Args:', *lines])
        function.__signature__ = inspect.signature(fields)
        function.__annotations__ = typing.get_type_hints(fields)
        return function
    return decorate


def run(function: Function | dict[str, Function], argv: list[str] | None = None):
    """Runs function(**flags) for a script or, of a dict of functions, the one that the first word names.

    Annotations are types: str, int, float, bool, one of these with `| None`, or tuple[str, ...] for a flag
    that may be repeated. A parameter without a default may be given by position. InputError is status 2.
    """
    script = os.path.basename(sys.argv[0])
    argv = sys.argv[1:] if argv is None else argv
    set_encoding(sys.stdout, 'replace')  # of characters that a terminal cannot show
    if argv == ['--version']:
        print(VERSION)
        return
    try:
        with interrupts.handling({'SIGINT': signal.default_int_handler, 'SIGTERM': end, 'SIGHUP': end}):
            if isinstance(function, dict):
                commands, name, argv = function, ''.join(argv[:1]), argv[1:]
                if name in ('--help', '-h'):
                    fire.Fire(commands, command='--help', name=script)  # ends the process
                if name not in commands:
                    problem = f'unknown command {name!r}' if name else 'a command must be given'
                    hint = nearest(name, commands) or f'commands are {", ".join(commands)}:'
                    raise InputError(f'{problem}; {hint} see {script} --help')
                function, script = commands[name], f'{script} {name}'
            fire.Fire(function, command=checked_words(function, script, argv), name=script)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone (`| head`): nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # 128 + SIGPIPE, as a shell reports it
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT
    except Ended as signal_number:
        os.kill(os.getpid(), *signal_number.args)  # and not an exit, which would wait for a reader of stdout
    except InputError as error:
        fail(script, error)
    except MemoryError as error:
        fail(script, f'not enough memory ({error}); give smaller numbers, first of all a --batch_size')
    except OSError as error:
        if not error.filename and error.errno not in paths.REMEDIES:
            raise  # a fault of the code; a full disk, too, is told without the file's name
        fail(script, f'{error.filename or "writing"}: {error.strerror}')


class Ended(BaseException):
    """A signal came that ends processes: its number."""


def end(number, frame):
    raise Ended(number)


def set_encoding(stream: typing.TextIO, errors: str):
    """Sets a standard stream's error handler; one that is no terminal is UTF-8 on Windows too."""
    if isinstance(stream, io.TextIOWrapper):  # a replaced one need not be
        encoding = 'utf-8' if sys.platform == 'win32' and not stream.isatty() else None
        stream.reconfigure(encoding=encoding, errors=errors)


def nearest(name, known, dashes=''):
    return ''.join(f'did you mean {dashes}{close}?' for close in difflib.get_close_matches(name, known, n=1))


def checked_words(function, script, argv):
    """argv, checked against the function's signature, as --name=literal for fire. Raises InputError."""
    parameters, types = inspect.signature(function).parameters, typing.get_type_hints(function)
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    by_position = [name for name in required if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    texts, problems, words = {}, [], list(argv)
    while words:
        word = words.pop(0)
        if word in ('--help', '-h'):  # whatever is wrong with other words
            return ['--help']
        name, text = next((name for name in by_position if name not in texts), None), word
        if word[:1] == '-' and word[1:2] not in '0123456789.':  # no negative number
            name, text = split_flag(word, types, words)
        if name is None:
            problems.append(f'{word!r} was not expected; flags are --name value, see {script} --help')
        elif name not in types:
            hint = nearest(name, types, '--') or 'all flags:'
            problems.append(f'unknown flag --{name}; {hint} see {script} --help')
        elif text is None:
            problems.append(f'--{name} needs a value (one that starts with -- as --{name}=…)')
        elif name in texts and typing.get_origin(types[name]) is not tuple:
            problems.append(f'--{name} is given twice')
        texts.setdefault(name, []).append(text)
    missing = [name for name in required if name not in texts]
    if missing:
        problems.append(f'--{" and --".join(missing)} must be given, see {script} --help')
    if problems:
        raise InputError(problems[0])
    return [f'--{name}={convert(name, types[name], values)!r}' for name, values in texts.items()]


def split_flag(word, types, words):  # -> name, text (None if there is none), of which `words` may begin with
    name, equals, text = word.lstrip('-').partition('=')
    name = name.replace('-', '_')
    if len(name) == 1:  # as fire's help lists it: -l for the one flag that starts with l
        name = ''.join(flag for flag in types if flag[0] == name) or name
    elif name[:2] == 'no' and types.get(name[2:]) is bool and name not in types and not equals:
        return name[2:], 'false'
    if equals or name not in types:
        return name, text
    following = words[0] if words else '--'
    if types[name] is bool and following.lower() not in ('true', 'false'):
        return name, 'true'
    is_text = str in (types[name], *typing.get_args(types[name]))
    takes = is_text if following in ('--help', '-h') else following[:2] != '--'
    return name, words.pop(0) if takes else None


def convert(name, hint, texts):
    """The text of a flag as the type that the signature names; 'None' is no number. Raises InputError."""
    if typing.get_origin(hint) is tuple:
        return tuple(texts)
    (text,), (kind, *optional) = texts, typing.get_args(hint) or (hint,)
    if kind is str or (optional and text == 'None'):
        return text if kind is str else None
    expected, largest = EXPECTED[kind], MAX_SEED if name == 'seed' else MAX_SIZE
    with contextlib.suppress(ValueError):
        value = ('false', 'true').index(text.lower()) if kind is bool else kind(text)
        if math.isfinite(value) if kind is float else abs(value) <= largest:
            return kind(value)
        if kind is int:
            expected += f' from {-largest:,} to {largest:,}'
    raise InputError(f'--{name} must be {expected}, not {text!r}')


def write_model(flags, write: Callable[[str, str, str | None], str]):
    """Makes the folder of ExportFlags by write(folder, model's folder, checkpoint); or InputError."""
    out = paths.expand(flags.out)
    paths.check_new(out)
    directory = paths.find_model(flags.model_or_run, flags.models_dir, flags.checkpoint_dir)
    load_tensorflow(computes=False)
    with paths.making(out) as folder:
        prefix = write(folder, directory, flags.checkpoint)
    print(f'Wrote {prefix} to {out}')
