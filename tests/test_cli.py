import dataclasses
import os
import subprocess
import sys

from command_line import cli
from command_line.flags import REQUIRED, flag

import pytest

from errors import InputError, require
from version import VERSION

DEFAULTS = {'text': 'none given', 'run_name': 'run1', 'length': 1, 'rate': 0.5, 'include_prefix': False,
            'maybe': None, 'prompt': None}
ODD_TEXTS = ['2019', '1e3', 'None', 'True', '[1]', '{}', '(1, 2)', 'a, b', '"', "'", '\'"', 'a\nb', '\\n',
             '\t', ' ',
             '', '-', '-5', '--length', '--text=1', 'a=b', '#c', '0x10', '1_000', '日本', '\udcff', '-- -h',
             '$HOME',
             '\0']


def script(text: str = 'none given', run_name: str = 'run1', length: int = 1, rate: float = 0.5,
           include_prefix: bool = False, maybe: int | None = None, prompt: str | None = None):
    """Does nothing but say what it was called with.

    Args:
        text: some text.
        length: tokens in a sample.
    """
    calls.append(locals())


def needy(in_text: str, out_npz: str, combine: int = 5):
    calls.append(locals())


calls = []


@pytest.fixture(autouse=True)
def no_calls_yet(monkeypatch):
    calls.clear()
    monkeypatch.setattr(sys, 'argv', ['/some/where/script.py'])


def called(*argv, function=script):
    """What the function was called with: one call, of status 0."""
    calls.clear()
    cli.run(function, list(argv))
    (call,) = calls
    return call


def refused(capsys, *argv, function=script):
    """The one line on stderr with which argv is refused; the function is not called."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(function, list(argv))
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert calls == [] and said.out == ''
    assert said.err.endswith('\n') and said.err.count('\n') == 1
    assert said.err.startswith('script.py: error: ')
    return said.err.removeprefix('script.py: error: ')


def assert_same(value, expected):
    assert (type(value), value) == (type(expected), expected)


# What is accepted

def test_without_flags_the_defaults_are_used():
    assert called() == DEFAULTS


@pytest.mark.parametrize('argv, name, expected', [
    (['--length', '7'], 'length', 7),
    (['--length=7'], 'length', 7),
    (['--length', '-7'], 'length', -7),
    (['--length=-7'], 'length', -7),
    (['-l', '7'], 'length', 7),
    (['-l=7'], 'length', 7),
    (['--rate', '2e-5'], 'rate', 2e-5),
    (['--rate', '1'], 'rate', 1.0),
    (['--rate', '-.5'], 'rate', -0.5),
    (['--run-name', 'x'], 'run_name', 'x'),
    (['--run-name=x'], 'run_name', 'x'),
    (['--run_name', 'a-b'], 'run_name', 'a-b'),
    (['--include_prefix'], 'include_prefix', True),
    (['--include-prefix'], 'include_prefix', True),
    (['-i'], 'include_prefix', True),
    (['--include_prefix', 'true'], 'include_prefix', True),
    (['--include_prefix', 'False'], 'include_prefix', False),
    (['--include_prefix=True'], 'include_prefix', True),
    (['--include_prefix=false'], 'include_prefix', False),
])
def test_each_spelling_of_a_flag_sets_it_alone(argv, name, expected):
    found = called(*argv)
    assert_same(found[name], expected)
    assert found == {**DEFAULTS, name: expected}


def test_a_bool_alone_leaves_the_next_flag_to_itself():
    assert called('--include_prefix', '--length', '3') == {**DEFAULTS, 'include_prefix': True, 'length': 3}


@pytest.mark.parametrize('text', ODD_TEXTS)
def test_a_string_arrives_as_it_was_written(text):
    assert_same(called(f'--text={text}')['text'], text)
    assert_same(called(f'--run_name={text}', f'--text={text}')['run_name'], text)


@pytest.mark.parametrize('text', [text for text in ODD_TEXTS if not text.startswith('--')])
def test_a_string_after_a_space_arrives_as_it_was_written(text):
    assert_same(called('--text', text)['text'], text)


@pytest.mark.parametrize('argv, expected', [
    (['--maybe', 'None'], {'maybe': None}), (['--maybe=3'], {'maybe': 3}),
    (['--prompt=None'], {'prompt': 'None'}),
    (['--prompt', 'None'], {'prompt': 'None'}), (['--prompt', '-h'], {'prompt': '-h'}),
    (['-p', '-h'], {'prompt': '-h'}),
    (['--prompt=--help'], {'prompt': '--help'}), (['--prompt', '-x'], {'prompt': '-x'}),
    (['--text', '-h'], {'text': '-h'}), (['--run-name', '-h'], {'run_name': '-h'}),
    (['--prompt', '3'], {'prompt': '3'}), (['--prompt='], {'prompt': ''}),
    (['--prompt', 'none'], {'prompt': 'none'}),
])
def test_a_value_or_none_for_an_optional_flag(argv, expected):
    (name, value), = expected.items()
    assert_same(called(*argv)[name], value)


@pytest.mark.parametrize('argv', [
    ['a', '2019'], ['a', '--out_npz', '2019'], ['--out_npz', '2019', 'a'], ['--in_text=a', '2019'],
    ['--out-npz=2019', '--in-text', 'a']])
def test_required_arguments_by_position_or_by_name(argv):
    assert called(*argv, function=needy) == {'in_text': 'a', 'out_npz': '2019', 'combine': 5}


def test_argv_is_the_command_line_unless_given(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['script.py', '--length', '4'])
    cli.run(script)
    assert calls[0]['length'] == 4


def lister(stop: tuple[str, ...] = (), length: int = 1):
    calls.append(locals())


@pytest.mark.parametrize('argv, expected', [
    ([], ()), (['--stop', 'a'], ('a',)), (['--stop=a'], ('a',)), (['--stop='], ('',)),
    (['--stop', 'b', '--length=2', '--stop=a'], ('b', 'a')), (['-s', 'a', '-s=b'], ('a', 'b')),
    (['--stop', 'a', '--stop', 'a'], ('a', 'a')), (['--stop', 'a,b'], ('a,b',)),
    (['--stop=None', '--stop', '3'], ('None', '3')), (['--stop', 'None', '--stop', '-h'], ('None', '-h'))])
def test_a_flag_of_several_texts_may_be_repeated(argv, expected):
    found = called(*argv, function=lister)
    assert_same(found['stop'], expected)
    assert all(type(text) is str for text in found['stop'])
    assert found['length'] == 1 + ('--length=2' in argv)


@pytest.mark.parametrize('text', ODD_TEXTS)
def test_each_of_several_texts_arrives_as_it_was_written(text):
    assert called(f'--stop={text}', '--stop=b', f'--stop={text}', function=lister)['stop'] == (text, 'b',
                                                                                               text)
    assert called(f'--stop={text}', function=lister)['stop'] == (text,)


@pytest.mark.parametrize('argv, message', [
    (['--stop'], '--stop needs a value'), (['--stop', 'a', '--stop'], '--stop needs a value'),
    (['--stop', 'a', 'b'], "'b' was not expected"), (['--stop', '--length', '2'], '--stop needs a value'),
    (['--nostop'], 'unknown flag --nostop')])
def test_a_flag_of_several_texts_without_a_value_is_refused(capsys, argv, message):
    assert refused(capsys, *argv, function=lister).startswith(message)


def seeded(seed: int | None = None):
    calls.append(locals())


def test_a_seed_may_be_larger_than_a_size(capsys):
    assert called('--seed', str((1 << 63) - 1), function=seeded) == {'seed': (1 << 63) - 1}
    calls.clear()
    assert refused(capsys, '--seed', str(1 << 63), function=seeded).startswith(
        '--seed must be a whole number of at most 9,223,372,036,854,775,807, not')


# What is refused

@pytest.mark.parametrize(
    'argv, message',
    [
        (['--length', '1.5'], "--length must be a whole number of at most 2,147,483,647, not '1.5'"),
        (['--length', 'many'], "--length must be a whole number of at most 2,147,483,647, not 'many'"),
        (['--length='], "--length must be a whole number of at most 2,147,483,647, not ''"),
        (['--length', 'None'], "--length must be a whole number of at most 2,147,483,647, not 'None'"),
        (['--length', 'True'], "--length must be a whole number of at most 2,147,483,647, not 'True'"),
        (['--length', str(1 << 31)], "--length must be a whole number of at most 2,147,483,647, not '21474"),
        (['--length=-2147483648'], '--length must be a whole number of at most 2,147,483,647, not'),
        (['--maybe', '9' * 30], '--maybe must be a whole number of at most 2,147,483,647, not'),
        (
            ['--length', '9' * 5000],
            f"--length must be a whole number of at most 2,147,483,647, not '{'9' * 5000}'",
        ),
        (['--maybe', '1.5'], "--maybe must be a whole number of at most 2,147,483,647, not '1.5'"),
        (['--rate', 'high'], "--rate must be a number, not 'high'"),
        (['--rate', 'nan'], "--rate must be a number, not 'nan'"),
        (['--rate', 'inf'], "--rate must be a number, not 'inf'"),
        (['--rate=-inf'], "--rate must be a number, not '-inf'"),
        (['--rate', '1e400'], "--rate must be a number, not '1e400'"),
        (['--include_prefix=1'], "--include_prefix must be true or false, not '1'"),
        (['--include_prefix='], "--include_prefix must be true or false, not ''"),
        (['--include_prefix', 'yes'], "'yes' was not expected"),
        (['--lenght', '3'], 'unknown flag --lenght (did you mean --length?)'),
        (['--lenght=3'], 'unknown flag --lenght (did you mean --length?)'),
        (['--zzz'], 'unknown flag --zzz; see script.py --help'),
        (['--zzz=a\nb'], 'unknown flag --zzz;'),
        (['--a\nb'], 'unknown flag --a b;'),
        (['-z'], 'unknown flag --z;'),
        (['-r', '1'], 'unknown flag --r;'),
        (['--nolength'], 'unknown flag --nolength'),
        (['--noinclude_prefix=true'], 'unknown flag --noinclude_prefix (did you mean --include_prefix?)'),
        (['--'], 'unknown flag --;'),
        (['--length', '1', '--length', '1'], '--length is given twice'),
        (['--length', '1', '-l', '2'], '--length is given twice'),
        (['--run_name', 'a', '--run-name', 'b'], '--run_name is given twice'),
        (['--include_prefix', '--include_prefix'], '--include_prefix is given twice'),
        (['--length'], '--length needs a value'),
        (['--text', '--length', '3'], '--text needs a value'),
        (['--prompt'], '--prompt needs a value'),
        (['3'], "'3' was not expected"),
        (['a\nb'], "'a\\nb' was not expected"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_any_work(capsys, argv, message):
    assert refused(capsys, *argv).startswith(message)


@pytest.mark.parametrize('argv, message', [
    ([], '--in_text must be given; see script.py --help'),
    (['a'], '--out_npz must be given; see script.py --help'),
    (['--out_npz', 'b'], '--in_text must be given; see script.py --help'),
    (['a', 'b', 'c'], "'c' was not expected"),
    (['a', 'b', '--in_text', 'c'], '--in_text is given twice'),
])
def test_missing_and_surplus_arguments_are_refused(capsys, argv, message):
    assert refused(capsys, *argv, function=needy).startswith(message)


def test_a_letter_that_begins_two_flags_is_refused(capsys):
    assert refused(capsys, '-r', '3').startswith('unknown flag --r')  # run_name, rate


# What the function raises

def raising(error):
    def function():
        raise error
    return function


@pytest.mark.parametrize('error, line', [
    (InputError('the file is empty;\n  give another'), 'script.py: error: the file is empty; give another\n'),
    (FileNotFoundError(2, 'No such file or directory', 'some.txt'),
     'script.py: error: some.txt: No such file or directory\n'),
    (PermissionError(13, 'Permission denied', 'a\nb'), 'script.py: error: a b: Permission denied\n'),
    (MemoryError('1 TiB'),
     'script.py: error: not enough memory (1 TiB); give a smaller --batch_size, or other sizes\n'),
    (OSError(28, 'No space left on device'), 'script.py: error: writing: No space left on device\n'),
])
def test_a_mistake_found_by_the_function_is_one_line_and_status_2(capsys, error, line):
    with pytest.raises(SystemExit) as stopped:
        cli.run(raising(error), [])
    assert stopped.value.code == 2
    assert capsys.readouterr() == ('', line)


@pytest.mark.parametrize('error',
                         [ValueError('fault'), KeyError('fault'), OSError('fault'), OSError(9, 'fault'),
                                   RuntimeError('fault'), AssertionError('fault')])
def test_a_fault_of_the_code_keeps_its_traceback(capsys, error):
    with pytest.raises(type(error)) as raised:
        cli.run(raising(error), [])
    assert raised.value is error
    assert any(entry.name == 'function' for entry in raised.traceback)
    assert capsys.readouterr() == ('', '')


def test_ctrl_c_ends_with_status_130_and_no_traceback(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run(raising(KeyboardInterrupt()), [])
    assert stopped.value.code == 130
    assert capsys.readouterr() == ('', '')


def test_require_raises_its_message_unless_the_condition_holds():
    require(True, 'unseen')
    with pytest.raises(InputError, match=r'^seen$'):
        require([], 'seen')


# Help

@pytest.mark.parametrize(
    'function, argv, said',
    [
        (script, ['--version'], 'script.py'),
        (script, ['--version', '--zzz'], 'script.py'),
        ({'first': script}, ['--version'], 'script.py'),
        ({'first': script}, ['first', '--version'], 'script.py first'),
    ],
)
def test_the_version_is_told(capsys, function, argv, said):
    cli.run(function, argv)
    assert (capsys.readouterr(), calls) == ((f'{said} {VERSION}\n', ''), [])


@pytest.mark.parametrize('argv', [
    ['--help'], ['-h'], ['--length', 'x', '--help'], ['--include_prefix', '-h'],
    ['3', '-h'],
    ['--prompt', '-h', '-h'], ['--prompt=x', '-h'], ['--prompt=', '--help'], ['--zzz', '-h']])
def test_help_lists_all_flags_and_ends_with_status_0(capsys, argv):
    with pytest.raises(SystemExit) as stopped:
        cli.run(script, argv)
    assert stopped.value.code == 0
    said = ''.join(capsys.readouterr())
    assert calls == []
    assert all(f'--{name}' in said for name in DEFAULTS)
    assert 'Does nothing but say what it was called with.' in said and 'tokens in a sample.' in said


@pytest.mark.parametrize('letter, name, value', [
    ('l', 'length', 5), ('t', 'text', '5'), ('m', 'maybe', 5), ('p', 'prompt', '5')])
def test_the_letters_that_help_offers_are_accepted(capsys, letter, name, value):
    with pytest.raises(SystemExit):
        cli.run(script, ['--help'])
    assert f'-{letter}, --{name}=' in ''.join(capsys.readouterr())
    assert_same(called(f'-{letter}', '5')[name], value)


# takes

@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Does something with a dataset."""
    dataset: str = flag(REQUIRED, 'the data to read.')
    run_name: str = flag('run1', 'the name of it.')
    steps: int | None = flag(None, 'how many.')
    fast: bool = flag(False, 'or slow.')


@cli.takes(Settings)
def taker(flags):
    calls.append(dataclasses.asdict(flags))


def test_takes_makes_flags_of_the_fields_of_a_dataclass(capsys):
    assert called('--dataset', '1e3', '--run-name=2019', '--steps', '3', '--fast', function=taker) == {
        'dataset': '1e3', 'run_name': '2019', 'steps': 3, 'fast': True}


def test_takes_has_the_defaults_of_the_dataclass():
    defaults = {'run_name': 'run1', 'steps': None, 'fast': False}
    assert called('--dataset=a', function=taker) == {'dataset': 'a', **defaults}


@pytest.mark.parametrize('argv, message', [
    ([], '--dataset must be given'), (['a', 'b'], "'b' was not expected"),
    (['--dataset=a', '--step=3'], 'unknown flag --step'),
    (['--dataset=a', '--steps=x'], '--steps must be a whole')])
def test_takes_checks_against_the_dataclass(capsys, argv, message):
    assert refused(capsys, *argv, function=taker).startswith(message)


def test_takes_gives_the_help_of_the_dataclass(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run(taker, ['--help'])
    said = ''.join(capsys.readouterr())
    assert stopped.value.code == 0
    assert 'script.py DATASET <flags>' in said  # as it may be given by position
    assert all(f'--{name}' in said for name in ('run_name', 'steps', 'fast'))
    assert 'Does something with a dataset.' in said and 'the data to read.' in said


# As processes

def test_a_reader_that_goes_away_ends_the_script_quietly(tmp_path):
    endless = tmp_path / 'endless.py'
    endless.write_text('from command_line import cli\n'
                       'def endless():\n    while True:\n        print("y" * 70)\ncli.run(endless)\n')
    process = subprocess.Popen(
        [sys.executable, str(endless)],
        env={**os.environ, 'PYTHONPATH': os.path.dirname(os.path.dirname(cli.__file__))},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == 'y' * 70 + '\n'
    process.stdout.close()
    assert process.stderr.read() == ''
    process.stderr.close()
    assert process.wait(timeout=60) == 141


# Several commands

def first(length: int = 1):
    """Does the first thing.

    At length.
    """
    calls.append({'first': length})


def second_one(text: str):
    """Does the second thing."""
    calls.append({'second': text})


COMMANDS = {'first': first, '2nd': second_one}


@pytest.mark.parametrize('argv, expected', [
    (['first'], {'first': 1}), (['first', '--length', '3'], {'first': 3}), (['2nd', 'a'], {'second': 'a'}),
    (['2nd', '--text=first'], {'second': 'first'})])
def test_a_command_is_called_with_the_flags_after_it(argv, expected):
    assert called(*argv, function=COMMANDS) == expected


@pytest.mark.parametrize('argv, message', [
    ([], "script.py: error: unknown command ''; commands are first, 2nd\n"),
    (['frist'], "script.py: error: unknown command 'frist'; commands are first, 2nd\n"),
    (['first', '--lenght', '3'],
     'script.py first: error: unknown flag --lenght (did you mean --length?); see script.py first --help\n'),
    (['2nd'], 'script.py 2nd: error: --text must be given; see script.py 2nd --help\n'),
])
def test_a_mistaken_command_is_told_in_one_line(capsys, argv, message):
    with pytest.raises(SystemExit) as stopped:
        cli.run(COMMANDS, argv)
    assert (stopped.value.code, calls) == (2, [])
    assert capsys.readouterr() == ('', message)


@pytest.mark.parametrize('word', ['--help', '-h'])
def test_help_lists_the_commands(capsys, word):
    with pytest.raises(SystemExit) as stopped:
        cli.run(COMMANDS, [word])
    assert stopped.value.code == 0 and calls == []
    said = ''.join(capsys.readouterr())
    assert all(text in said for text in ('script.py COMMAND', 'first\n       Does the first thing.', '2nd',
                                         'second'))


def test_help_of_a_command_lists_its_flags(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run(COMMANDS, ['first', '--help'])
    assert stopped.value.code == 0
    said = ''.join(capsys.readouterr())
    assert 'script.py first' in said and '--length' in said and 'At length.' in said


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoreSettings(Settings):
    """Does more."""
    speed: float = flag(1.0, 'how fast.')


@cli.takes(MoreSettings)
def documented(flags):
    """Does it in its own words."""
    calls.append(dataclasses.asdict(flags))


def test_a_function_keeps_its_docstring_and_gets_the_help_of_inherited_fields(capsys):
    assert called('--dataset=a', '--speed', '2', function=documented)['speed'] == 2.0
    with pytest.raises(SystemExit):
        cli.run(documented, ['--help'])
    said = ''.join(capsys.readouterr())
    assert 'Does it in its own words.' in said and 'Does more.' not in said and 'Does something' not in said
    assert 'the data to read.' in said and 'how many.' in said and 'how fast.' in said
