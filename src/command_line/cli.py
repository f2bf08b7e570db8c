"""Runs a script's function with the command line's flags; a user's mistake is one line and status 2.

fire only writes the help: it would call the function before it rejects a flag, and guesses types.
"""
import contextlib
import dataclasses
import difflib
import importlib
import inspect
import io
import os
import signal
import sys
import typing

from command_line.interrupts import handling
from command_line.startup import fail, load_tensorflow

import fire

from errors import InputError
from storage import paths
from version import VERSION


def takes(kind):
    """Makes f(flags) a function of the fields of `kind`, a dataclass of flags, with their help."""
    def decorate(function):
        def main(*args, **kwargs):
            function(kind(*args, **kwargs))
        summary = inspect.cleandoc(function.__doc__ or kind.__doc__ or '')
        lines = [f'    {field.name}: {field.metadata["help"]}' for field in dataclasses.fields(kind)]
        main.__doc__ = '\n'.join([summary, '', 'Args:', *lines])
        vars(main)['__signature__'] = inspect.signature(kind)
        return main
    return decorate


def run(main, argv=None):
    """Calls main(**flags). From a dict, the first word chooses main. Types of flags are str, int, float,
    bool, these with `| None`, and tuple[str, ...], which may be repeated."""
    script, argv = os.path.basename(sys.argv[0]), sys.argv[1:] if argv is None else argv
    if isinstance(main, dict) and argv and argv[0] in main:
        main, script, argv = main[argv[0]], f'{script} {argv[0]}', argv[1:]
    set_encoding(sys.stdout, 'replace')  # what a terminal lacks
    try:
        with handling({'SIGINT': signal.default_int_handler, 'SIGTERM': end, 'SIGHUP': end}):
            if argv[:1] == ['--version']:
                print(script, VERSION)
            elif (flags := parse(main, script, argv)) is None:
                fire.Fire(main, command='--help', name=script)  # ends the process
            else:
                main(**flags)
            sys.stdout.flush()
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # 128 + SIGPIPE
    except KeyboardInterrupt:
        sys.exit(130)
    except Ended as error:
        os.kill(os.getpid(), *error.args)  # sys.exit would wait for stdout's reader
    except InputError as error:
        fail(script, error)
    except MemoryError as error:
        fail(script, f'not enough memory ({error}); give a smaller --batch_size, or other sizes')
    except OSError as error:
        if not error.filename and error.errno not in paths.REMEDIES:
            raise
        fail(script, f'{error.filename or "writing"}: {error.strerror}')


class Ended(BaseException):  # by a signal
    pass


def end(number, frame):
    raise Ended(number)


def set_encoding(stream, errors):
    """Sets a stream's error handler; on Windows, what is no terminal is UTF-8."""
    if isinstance(stream, io.TextIOWrapper):
        encoding = 'utf-8' if sys.platform == 'win32' and not stream.isatty() else None
        stream.reconfigure(encoding=encoding, errors=errors)


def parse(main, script, argv):  # -> {flag: value}, or None for help
    if isinstance(main, dict):
        if argv and argv[0] in ('--help', '-h'):
            return None
        raise InputError(f'unknown command {"".join(argv[:1])!r}; commands are {", ".join(main)}')
    flags = inspect.signature(main).parameters.values()
    types = {flag.name: flag.annotation for flag in flags}
    required = [flag.name for flag in flags if flag.default is flag.empty]
    texts, faults, words = {}, [], list(argv)
    while words:
        word = words.pop(0)
        if word in ('--help', '-h'):
            return None
        if word[:1] == '-' and word[1:2] not in '0123456789.':  # no negative number
            name, text = split_flag(word, types, words)
        else:
            name = next((name for name in required if name not in texts or is_repeated(types[name])), None)
            text = word
        if name is None:
            faults.append(f'{word!r} was not expected')
        elif name not in types:
            near = ''.join(difflib.get_close_matches(name, types, n=1))
            faults.append(f'unknown flag --{name}' + (f' (did you mean --{near}?)' if near else ''))
        elif text is None:
            faults.append(f'--{name} needs a value')
        elif name in texts and not is_repeated(types[name]):
            faults.append(f'--{name} is given twice')
        texts.setdefault(name, []).append(text)
    faults += [f'--{name} must be given' for name in required if name not in texts]
    if faults:
        raise InputError(f'{faults[0]}; see {script} --help')
    return {name: convert(name, types[name], values) for name, values in texts.items()}


def is_repeated(hint):
    return typing.get_origin(hint) is tuple


def split_flag(word, types, words):  # -> name, text (maybe off `words`) or None
    name, equals, text = word.lstrip('-').partition('=')
    name = name.replace('-', '_')
    if len(name) == 1:  # as in fire's help: -l for the only flag with l
        fits = [flag for flag in types if flag[0] == name]
        name = fits[0] if len(fits) == 1 else name
    elif name[:2] == 'no' and types.get(name[2:]) is bool and name not in types and not equals:
        return name[2:], 'false'
    if equals or name not in types:
        return name, text
    after = words[0] if words else '--'
    if types[name] is bool and after.lower() not in ('true', 'false'):
        return name, 'true'
    return name, words.pop(0) if after[:2] != '--' else None


def convert(name, hint, texts):  # -> the value, of type `hint`
    if is_repeated(hint):
        return tuple(texts)
    (text,), (kind, *optional) = texts, typing.get_args(hint) or (hint,)
    if kind is str or (optional and text == 'None'):
        return text if kind is str else None
    largest = (1 << (63 if name == 'seed' else 31)) - 1  # TensorFlow has sizes in 32 bits
    expected = {int: f'a whole number of at most {largest:,}', float: 'a number', bool: 'true or false'}[kind]
    with contextlib.suppress(ValueError):
        value = ('false', 'true').index(text.lower()) if kind is bool else kind(text)
        if abs(value) <= (sys.float_info.max if kind is float else largest):
            return kind(value)
    raise InputError(f'--{name} must be {expected}, not {text!r}')


def writer(summary, module, function='write', for_tensorflow=False):
    """A command that writes a model or run to --out, by a function of a module. It takes an empty folder,
    what checkpoint.find gives, and models_dir. for_tensorflow: TensorFlow is to read it from there."""
    from command_line.flags import ExportFlags  # not for download_model.py, which runs with few files

    def command(flags):
        out = paths.expand(flags.out)
        if for_tensorflow:
            paths.for_tensorflow(out)
        source = flags.find_model(flags.model_or_run)
        with load_tensorflow(computes=False):
            from storage import checkpoint
            write = getattr(importlib.import_module(module), function)
        with paths.making(out) as folder:
            *model, prefix = checkpoint.find(source, flags.models_dir, flags.checkpoint)
            write(folder, *model, prefix, flags.models_dir)
        print(f'Wrote {prefix} to {out}')
    command.__doc__ = summary
    return takes(ExportFlags)(command)
