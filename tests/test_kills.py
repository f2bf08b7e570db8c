"""Short forms of the campaigns of kills.py, and how scripts end that are interrupted before their work has
begun."""

import glob
import os
import signal
import subprocess
import sys

import kills
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPTS = [
    name for name in (*glob.glob(f'{ROOT}/*.py'), *glob.glob(f'{ROOT}/src/*.py')) if os.access(name, os.X_OK)
]

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != 'linux', reason='looks for processes as Linux lists them'),
]


@pytest.mark.parametrize('campaign', [kills.kills_of_training, kills.kills_of_adapters])
def test_a_run_that_is_killed_ends_as_one_that_is_not(campaign):
    counts = campaign(count=6)
    assert counts['kills of training'] == 6 and counts['most steps lost'] <= kills.SAVE_EVERY


def test_scripts_that_are_killed_leave_nothing_half_written():
    counts = kills.kills_of_scripts(count=2)
    assert [number for name, number in counts.items() if name.startswith('kills of')] == [2] * 7


def ended(number, argv, folder, python_path, before=None, stdout=subprocess.PIPE):
    """A process that gets a signal of this number; before: what else it had been told to do on it than is
    usual."""
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    return subprocess.run(
        [sys.executable, *argv],
        env={**os.environ, 'PYTHONPATH': str(python_path)},
        cwd=folder,
        preexec_fn=lambda: signal.signal(number, usual if before is None else before),
        text=True,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
    )


def interrupted(folder, module, argv, number=signal.SIGINT, before=None):
    """A script that gets a signal within its import of a module, which then fails as C++ code does."""
    (folder / f'{module}.py').write_text(
        f'import os, time\nos.kill(os.getpid(), {number:d})\ntime.sleep(0.1)\n'
        'raise ImportError("initialization failed")\n'
    )
    return ended(number, argv, folder, folder, before)


@pytest.mark.parametrize('script', SCRIPTS, ids=os.path.basename)
def test_ctrl_c_while_a_script_begins_ends_it_quietly(tmp_path, script):
    done = interrupted(tmp_path, 'fire', [script, '--help'])
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, '', '')


@pytest.mark.parametrize(
    'number, argv',
    [
        (signal.SIGINT, ['train.py', '--dataset=x']),
        (signal.SIGINT, ['src/generate_unconditional_samples.py']),
        (signal.SIGINT, ['src/interactive_conditional_samples.py']),
        (signal.SIGINT, ['src/create_model.py', 'new']),
        (signal.SIGINT, ['src/convert.py', 'to_hf', 'toy', 'new']),
        (signal.SIGTERM, ['src/convert.py', 'to_hf', 'toy', 'new']),
        (signal.SIGHUP, ['src/convert.py', 'from_hf', 'x', 'new']),
        (signal.SIGINT, ['src/export.py', 'toy', 'new']),
        (signal.SIGINT, ['src/evaluate.py', 'perplexity', '--data=x.txt']),
    ],
)
def test_a_signal_while_tensorflow_is_imported_ends_a_script_and_leaves_nothing(tmp_path, argv, number):
    (tmp_path / 'models' / 'toy').mkdir(parents=True)
    (tmp_path / 'x.txt').write_text('text')
    done = interrupted(tmp_path, 'tensorflow', [os.path.join(ROOT, argv[0]), *argv[1:]], number)
    assert (done.returncode, done.stdout, done.stderr) == (-number, '', '')
    assert {'models', 'x.txt', 'tensorflow.py'} == {
        name for name in os.listdir(tmp_path) if name != '__pycache__'
    }
    assert os.listdir(tmp_path / 'models') == ['toy']


def test_what_is_ignored_stays_ignored(tmp_path):
    done = interrupted(tmp_path, 'fire', [os.path.join(ROOT, 'encode.py'), '--help'], before=signal.SIG_IGN)
    assert done.returncode == 1 and 'ImportError: initialization failed' in done.stderr


def test_who_imports_the_scripts_keeps_his_signals():
    code = (
        'import signal\nbefore = [signal.getsignal(each) for each in (1, 2, 15)]\n'
        'from command_line import interrupts\nimport encode, evaluate\n'
        'with interrupts.default_signal_handlers():\n'
        '    during = [signal.getsignal(each) for each in (1, 2, 15)]\n'
        'assert before == during == [signal.getsignal(each) for each in (1, 2, 15)]'
    )
    path = os.pathsep.join([ROOT, os.path.join(ROOT, 'src')])
    assert (
        subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONPATH': path}).returncode == 0
    )


# While they work


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_script_that_then_leaves_no_temporary_file(tmp_path, number):
    script = tmp_path / 'writes.py'
    script.write_text('import os, time\nfrom command_line import cli\nfrom storage import paths\n'
                      'def write():\n    with paths.replacing("out") as file:\n'
                      f'        os.kill(os.getpid(), {number:d})\n        time.sleep(9)\ncli.run(write)\n')
    done = ended(number, [str(script)], tmp_path, os.path.join(ROOT, 'src'))
    assert (done.returncode, done.stdout, done.stderr) == (-number, '', '')
    assert os.listdir(tmp_path) == ['writes.py']


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_script_whose_reader_does_not_read(tmp_path, number):
    (tmp_path / 'endless.py').write_text(
        'import os, signal\nfrom command_line import cli\n'
        'def endless():\n    signal.alarm(1)\n    while True:\n        print("y" * 70)\n'
        f'signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), {number:d}))\ncli.run(endless)\n')
    reader, writer = os.pipe()
    try:
        done = ended(number, ['endless.py'], tmp_path, os.path.join(ROOT, 'src'), stdout=writer)
    finally:
        os.close(reader)
        os.close(writer)
    assert (done.returncode, done.stderr) == (130 if number == signal.SIGINT else -number, '')
