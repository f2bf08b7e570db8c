import fnmatch
import glob
import os
import shutil
import subprocess
import sys

from command_line import cli, startup

import fire
import pytest

SRC = os.path.dirname(os.path.dirname(os.path.abspath(cli.__file__)))


ROOT = os.path.dirname(SRC)


SCRIPTS = [os.path.relpath(path,
                           ROOT) for path in sorted(glob.glob(f'{ROOT}/*.py') + glob.glob(f'{SRC}/*.py'))
           if os.access(path, os.X_OK)]


@pytest.fixture
def bare(tmp_path):
    """Runs a copy of the project by this Python with only the packages of a folder; gives status, output."""
    home = tmp_path / 'gpt-2'
    shutil.copytree(SRC, home / 'src', ignore=shutil.ignore_patterns('__pycache__'))
    for path in [*glob.glob(f'{ROOT}/*.py'), f'{ROOT}/requirements.txt']:
        shutil.copy(path, home)

    def run(*argv, packages='', cwd=home):
        done = subprocess.run([sys.executable, '-S', *argv], cwd=cwd,
                              env={**os.environ, 'PYTHONPATH': str(packages)},
                              text=True, capture_output=True, timeout=60)
        return done.returncode, done.stdout, done.stderr
    run.home = home
    return run


@pytest.mark.parametrize('name', SCRIPTS)
def test_what_is_not_installed_is_told_in_one_line(bare, name):
    said = (f'{os.path.basename(name)}: error: {sys.executable} has no package fire; run: pip install -r '
            '{0}/requirements.txt\n')
    assert bare(name) == (2, '', said.format('.'))
    assert bare(f'../{name}', cwd=bare.home / 'src') == (2, '', said.format('..'))


@pytest.mark.parametrize('argv, missing', [
    (['encode.py'], 'regex'), (['src/evaluate.py'], 'tqdm'), (['download_model.py'], 'urllib3'),
    (['train.py', '--dataset', 'a.txt'], 'tensorflow')])
def test_so_is_what_is_imported_later(bare, tmp_path, argv, missing):
    (tmp_path / 'packages').mkdir()
    for path in glob.glob(f'{os.path.dirname(os.path.dirname(fire.__file__))}/*'):
        if os.path.basename(path) != missing:
            os.symlink(path, tmp_path / 'packages' / os.path.basename(path))
    status, out, said = bare(*argv, packages=tmp_path / 'packages')
    assert (status, out, said.count('\n')) == (2, '',
                                               1) and f'has no package {missing}; run: pip install' in said


def test_tensorflow_starts_without_a_line_on_the_terminal(tmp_path):
    adds = tmp_path / 'adds.py'
    adds.write_text('from command_line import cli\ncli.load_tensorflow()\nimport tensorflow.compat.v1 as tf\n'
                    'with tf.Graph().as_default(), tf.Session() as session:\n'
                    '    one = tf.ones_initializer()\n'
                    '    v = tf.get_variable("v", [2, 3], initializer=one, use_resource=True)\n'
                    '    session.run(tf.global_variables_initializer())\n'
                    '    print(session.run(tf.reduce_sum(v) + 1))\n')
    environment = {name: value for name, value in os.environ.items() if name != 'TF_CPP_MIN_LOG_LEVEL'}
    done = subprocess.run([sys.executable, str(adds)], env={**environment, 'PYTHONPATH': SRC}, text=True,
                          capture_output=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, '7.0\n', '')


def test_what_is_written_to_stderr_meanwhile_is_caught_and_given_back(capfd):
    lines = startup.capture_stderr(lambda: os.write(2, b'one\ntwo\xff\n'))
    os.write(2, b'three\n')
    assert lines == ['one\n', 'two\ufffd\n']
    assert capfd.readouterr().err == 'three\n'


def test_stderr_is_led_back_after_an_exception(capfd):
    with pytest.raises(KeyError):
        startup.capture_stderr(lambda: {}['absent'])
    os.write(2, b'here again\n')
    assert capfd.readouterr().err == 'here again\n'


def test_only_unusual_lines_of_the_start_are_shown(capfd, monkeypatch):
    monkeypatch.setattr(
        startup,
        'devices',
        lambda: os.write(
            2, b'I0000 port.cc:153] oneDNN custom operations\nE0000 gpu.cc:9] the driver is too old\n'
        ),
    )
    cli.load_tensorflow(computes=False)
    assert capfd.readouterr().err == 'E0000 gpu.cc:9] the driver is too old\n'


NO_DRIVER = ('E0000 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: Failed call to '
             'cuInit: UNKNOWN\n'
             'I0000 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.\n')


def set_devices(monkeypatch, gpus):
    def devices(kind=None):
        os.write(2, b'' if kind else NO_DRIVER.encode())
        return gpus
    monkeypatch.setattr(startup, 'devices', devices)


@pytest.fixture(params=['/dev/nvidia0', '/proc/driver/nvidia', 'nvidia-smi'])
def gpu(request, monkeypatch):
    """A machine that shows a GPU in one way, which TensorFlow does not find."""
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(startup.glob, 'glob', lambda pattern: fnmatch.filter([request.param], pattern))
    monkeypatch.setattr(startup.os.path, 'exists', lambda path: path == request.param)
    monkeypatch.setattr(startup.shutil, 'which', lambda name: name if name == request.param else None)
    set_devices(monkeypatch, [])


def test_why_a_gpu_that_is_there_is_not_found_is_told(gpu, capfd):
    cli.load_tensorflow()
    said = capfd.readouterr().err
    assert said.startswith(NO_DRIVER + 'TensorFlow finds no GPU') and said.count('\n') == 3
    for text in ("pip install 'tensorflow[and-cuda]'", 'CUDA_VISIBLE_DEVICES=-1'):
        assert text in said


@pytest.mark.parametrize('value, computes, gpus', [('-1', True, []), ('', True, []), (None, False, []),
                                                    (None, True, ['GPU:0'])])
def test_nothing_is_told_where_no_gpu_is_wanted_or_one_is_found(gpu, capfd, monkeypatch, value, computes,
                                                                gpus):
    if value is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', value)
    set_devices(monkeypatch, gpus)
    cli.load_tensorflow(computes)
    assert capfd.readouterr().err == ''
