"""What every script shares: flags checked before any work, mistakes told in one line, TensorFlow's chatter kept away.

fire calls a function before it complains about a flag that the function does not know, and guesses the type of every
value (`--run_name 2019` is an int to it). Here names and types are checked against the signature first, and fire is
handed values that it cannot misread.
"""
# ruff: noqa: E402
import os
import re
import signal
import sys


def is_script():
    """Whether this process runs one of the project's scripts, and does not merely import them."""
    path, src = getattr(sys.modules['__main__'], '__file__', None) or '', os.path.dirname(os.path.realpath(__file__))
    return bool(path) and os.path.dirname(os.path.realpath(path)) in (src, os.path.dirname(src))


def fail(script, error):
    """Ends the process with status 2 after one line on stderr."""
    print(f'{script}: error: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)


def tell_missing(kind, error, traceback):
    """Ends a script as Python does where an exception has been raised, but tells in one line, with status 2, that a
    package of requirements.txt is not installed."""
    if isinstance(error, ModuleNotFoundError):
        root = os.path.relpath(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
        required, venv = (os.path.normpath(os.path.join(root, name)) for name in ('requirements.txt', '.venv'))
        with open(required, encoding='utf-8') as file:
            if error.name in re.findall(r'^[\w-]+', file.read(), re.MULTILINE):
                activate = os.path.join(venv, 'bin', 'activate')
                helps = os.path.exists(activate) and not os.path.samefile(venv, sys.prefix)
                fail(os.path.basename(sys.argv[0]), f'{sys.executable} has no package {error.name}; run: '
                                                    + (f'. {activate}' if helps else f'pip install -r {required}'))
    sys.__excepthook__(kind, error, traceback)


if is_script():
    sys.excepthook = tell_missing  # before the first package is imported

# While a script imports what it needs, first of all what follows here, Ctrl-C has nothing to clear up and would print
# a traceback: it ends the process.
if is_script() and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import collections.abc
import contextlib
import dataclasses
import difflib
import errno
import glob
import inspect
import io
import itertools
import logging
import math
import shutil
import tempfile
import typing

import fire

from command_line import interrupts
from command_line.interrupts import default_signal_handlers
from errors import InputError, require
from storage import paths

LARGEST_SIZE, LARGEST = (1 << 31) - 1, {'seed': (1 << 63) - 1}  # TensorFlow has sizes in 32 bits
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # told without the file's name
Function = collections.abc.Callable[..., None]


def flags_from(fields: type) -> collections.abc.Callable[[Function], Function]:
    """Gives a function that takes **flags the signature and help of a dataclass, so that flags are listed once.

    Where the dataclass is not kw_only, the function takes *args too, since fire then passes them by position. A
    function with a docstring keeps it, and of the dataclass's help only what it says of the flags is added.
    """
    def decorate(function):
        function.__signature__ = inspect.signature(fields)
        function.__annotations__ = typing.get_type_hints(fields)
        function.__doc__ = documentation(function, fields)
        return function
    return decorate


def documentation(function, fields):
    """The dataclass's docstring, or the function's own followed by what those of the dataclass and its bases say of
    their fields."""
    if not function.__doc__:
        return fields.__doc__
    described = [inspect.cleandoc(each.__doc__ or '').partition('Args:\n')[2].rstrip()
                 for each in reversed(fields.__mro__) if dataclasses.is_dataclass(each)]
    return '\n'.join([f'{inspect.cleandoc(function.__doc__)}\n\nArgs:', *filter(None, described)])


def run(function: Function | dict[str, Function], argv: list[str] | None = None):
    """Runs function(**flags) for a script. Exit status: 0, or 2 for a mistake of the user's, told in one line.

    Ctrl-C, SIGTERM and SIGHUP end it without leaving temporary files; the first with status 130, the others as they
    end any process.

    The function's parameters are the script's flags, their annotations the types (str, int, float, bool, or one of
    them with `| None`; tuple[str, ...] for a flag that may be repeated). Parameters without a default may also be given
    by position. In place of the function, a dict of functions by name: the command line then begins with a name, and
    --help in its place lists them.
    """
    script = os.path.basename(sys.argv[0])
    argv = sys.argv[1:] if argv is None else argv
    set_encoding(sys.stdout, 'replace')  # a terminal that cannot show a character is no reason to stop
    try:
        with interrupts.handling({'SIGINT': signal.default_int_handler, 'SIGTERM': end, 'SIGHUP': end}):
            if isinstance(function, dict):
                commands, name, argv = function, ''.join(argv[:1]), argv[1:]
                if name in ('--help', '-h'):
                    print(listing(commands, script))
                    return
                require(name in commands, unknown_command(name, commands, script))
                function, script = commands[name], f'{script} {name}'
            fire.Fire(function, command=arguments(function, argv, script), name=script)
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
        fail(script, f'there is not enough memory ({error}); give smaller numbers, first of all a --batch_size')
    except OSError as error:
        if not error.filename and error.errno not in DISK_ERRORS:
            raise
        fail(script, f'{error.filename or "writing"}: {error.strerror}')


def set_encoding(stream: typing.TextIO, errors: str):
    """Has standard input or output treat what cannot be decoded or encoded as `errors` says.

    What is no terminal is UTF-8 on Windows too, where it would otherwise be in one of the system's older encodings.
    """
    if isinstance(stream, io.TextIOWrapper):  # a replaced one need not be
        stream.reconfigure(encoding='utf-8' if sys.platform == 'win32' and not stream.isatty() else None, errors=errors)


class Ended(BaseException):
    """A signal that ends processes has come: its number."""


def end(number, frame):
    raise Ended(number)


def arguments(function, argv, script):
    """argv checked against the function's signature, as a command of --name=literal that fire reads as it is meant.

    Raises InputError for an unknown or repeated flag, a missing or malformed value, and a missing argument.
    """
    parameters = inspect.signature(function).parameters
    types = typing.get_type_hints(function)
    if asks_for_help(argv, types):
        return ['--help']
    required = [name for name, p in parameters.items() if p.default is p.empty]
    values, rest = {}, list(argv)
    positions = [name for name in required if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    while rest:
        word = rest.pop(0)
        if word[:1] == '-' and word[1:2] not in '0123456789.':  # not a negative number
            name, equals, value = split_flag(word, parameters)
            if name not in types and name.startswith('no') and types.get(name[2:]) is bool and not equals:
                name, equals, value = name[2:], '=', 'false'
            require(name in parameters, unknown_flag(name, parameters, script))
            if not equals:
                value = next_value(name, types[name], rest)
        else:
            positions = [name for name in positions if name not in values]
            require(positions, f'{word!r} was not expected; flags are --name value, see {script} --help')
            name, value = positions.pop(0), word
        if typing.get_origin(types[name]) is tuple:  # of texts: a flag that may come several times
            value = (*values.get(name, ()), value)
        else:
            require(name not in values, f'--{name} is given twice')
            value = convert(name, types[name], value)
        values[name] = value
    missing = [name for name in required if name not in values]
    require(not missing, f'--{" and --".join(missing)} must be given, see {script} --help')
    return [f'--{name}={value!r}' for name, value in values.items()]


def listing(commands, script):
    """What `script --help` prints for a dict of commands: each with the first line of its docstring."""
    width = max(map(len, commands))
    lines = [f'  {name:{width}}  {(inspect.getdoc(each) or name).splitlines()[0]}' for name, each in commands.items()]
    return '\n'.join([f'{script} COMMAND [flags]; {script} COMMAND --help lists the flags of one', '', *lines])


def unknown_command(name, commands, script):
    close = difflib.get_close_matches(name, commands, n=1)
    hint = f'did you mean {close[0]}?' if close else f'commands are {", ".join(commands)}:'
    return f'{f"unknown command {name!r}" if name else "a command must be given"}; {hint} see {script} --help'


def unknown_flag(name, parameters, script):
    close = difflib.get_close_matches(name, parameters, n=1)
    hint = f'did you mean --{close[0]}?' if close else 'all flags:'
    return f'unknown flag --{name}; {hint} see {script} --help'


def split_flag(word, parameters):  # '--some-name=value' -> 'some_name', '=', 'value'
    name, equals, value = word.lstrip('-').partition('=')
    name = name.replace('-', '_')
    if len(name) == 1:  # as fire's help lists it: -l for the one flag that starts with l
        name = ''.join(each for each in parameters if each[0] == name) or name
    return name, equals, value


def asks_for_help(argv, types):
    """Whether --help or -h stands in argv, and not as the text that a flag takes."""
    for before, word in itertools.pairwise(['', *argv]):
        name, equals, _ = split_flag(before, types)
        takes_text = before[:1] == '-' and not equals and str in kinds(types.get(name))
        if word in ('--help', '-h') and not takes_text:
            return True
    return False


def kinds(hint):  # str | None -> (str, NoneType); tuple[str, ...] -> (str, ...)
    return typing.get_args(hint) or (hint,)


def next_value(name, kind, rest):
    """The value of a flag written as `--name value`; a bool stands alone unless true or false follows."""
    if kind is bool and not (rest and rest[0].lower() in ('true', 'false')):
        return 'true'
    require(rest and (rest[0] == '--help' or not rest[0].startswith('--')),
            f'--{name} needs a value (one that starts with -- as --{name}=…)')
    return rest.pop(0)


def convert(name, kind, text):
    """The text of a flag as the type that the signature names; InputError if it is not one.

    None is the lack of a number; a flag that takes text takes it as text, and is left out for the lack of one.
    """
    allowed = kinds(kind)
    if str in allowed:
        return text
    if type(None) in allowed and text == 'None':
        return None
    if bool in allowed and text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    words, largest = {int: 'a whole number', float: 'a number', bool: 'true or false'}, LARGEST.get(name, LARGEST_SIZE)
    with contextlib.suppress(ValueError):
        if float in allowed and math.isfinite(fraction := float(text)):
            return fraction
        if int in allowed:
            if abs(number := int(text)) <= largest:
                return number
            words[int] += f' from {-largest:,} to {largest:,}'
    raise InputError(f'--{name} must be {words[allowed[0]]}, not {text!r}')


def load_tensorflow(computes: bool = True):
    """Imports TensorFlow for a script, and finds its devices, without its start-up lines on the terminal.

    Warnings and errors of later work are still shown; of the start-up's, those that are not the usual ones. Those about
    CUDA are usual too, unless the script computes and the machine has a GPU that TensorFlow does not find.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '1')  # no I lines; warnings remain
    logging.getLogger('tensorflow').addFilter(lambda record: 'deprecated' not in record.getMessage())
    with default_signal_handlers():
        lines = caught_stderr(find_devices)
    missed = computes and gpu_is_visible() and not gpus()
    usual = ('All log messages before absl::InitializeLog', ' port.cc:', ' cpu_feature_guard.cc:',
             'rebuild TensorFlow with the appropriate', 'TF-TRT Warning',
             *(() if missed else (' cudart_stub.cc:', ' cuda_platform.cc:')))
    for line in lines:
        if not any(each in line for each in usual):
            print(line, end='', file=sys.stderr)
    if missed:
        print("TensorFlow finds no GPU, though this machine has one or its driver: see that nvidia-smi lists it (a "
              "container needs --gpus all), and pip install 'tensorflow[and-cuda]', which brings CUDA; "
              'CUDA_VISIBLE_DEVICES=-1 is for the CPU', file=sys.stderr)


def write_model(flags, write: collections.abc.Callable[[str, str, str | None], str]):
    """Makes the folder that ExportFlags name, whole, of the model or run that they name.

    write(new folder, directory of the model or run, name of the checkpoint or None), which is called once TensorFlow
    has been loaded, returns the prefix of the checkpoint that it has written. Raises InputError, before that, where the
    folder exists and where the model or run does not.
    """
    out = paths.expand(flags.out)
    paths.check_new(out)
    directory = paths.model_or_run(flags.model_or_run, flags.models_dir, flags.checkpoint_dir)
    load_tensorflow(computes=False)
    with paths.making(out) as folder:
        prefix = write(folder, directory, flags.checkpoint)
    print(f'Wrote {prefix} to {out}')


def find_devices():
    import tensorflow as tf
    tf.config.list_physical_devices()


def gpus():
    import tensorflow as tf
    return tf.config.list_physical_devices('GPU')


def gpu_is_visible() -> bool:
    """Whether this machine has a GPU of NVIDIA or its driver, and TensorFlow is not told to do without."""
    return os.environ.get('CUDA_VISIBLE_DEVICES') not in ('', '-1') and bool(
        glob.glob('/dev/nvidia*') or os.path.exists('/proc/driver/nvidia') or
        (sys.platform == 'linux' and shutil.which('nvidia-smi')))  # TensorFlow for Windows uses no GPU


def caught_stderr(function):  # -> lines
    """Calls the function with file descriptor 2 led to a file (the lines come from C++), and returns what it got."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile('w+', encoding='utf-8', errors='replace') as caught:
        os.dup2(caught.fileno(), 2)
        try:
            function()
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
        caught.seek(0)
        return caught.readlines()
