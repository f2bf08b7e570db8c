"""The benchmarks run, on models that are too small to tell anything of speed."""
import contextlib
import glob
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys

from command_line import cli, startup

import pytest

pytestmark = pytest.mark.processes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def benchmarks(monkeypatch, tmp_path):
    """The folder's modules, as its scripts import them, and a folder with a toy model of theirs."""
    monkeypatch.syspath_prepend(os.path.join(ROOT, 'benchmarks'))
    import random_model
    import sampling_speed as sampling
    import training_speed as training
    monkeypatch.setitem(random_model.SIZES, 'toy', (2, 4, 32))
    monkeypatch.setattr(random_model, 'N_VOCAB', 300)
    monkeypatch.setattr(sampling, 'SIZE', 'toy')
    next(random_model.write(str(tmp_path), 'toy', n_ctx=32))
    return training, sampling, str(tmp_path)


@pytest.mark.parametrize('script', [path for path in sorted(glob.glob(f'{ROOT}/benchmarks/*.py'))
                                    if os.access(path, os.X_OK)])
def test_a_benchmark_starts(script):
    result = subprocess.run([sys.executable, script, '--help'], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_two_processes_of_training_are_measured_side_by_side(benchmarks, monkeypatch):
    training, _, directory = benchmarks
    with contextlib.ExitStack() as stack:  # a session that only the end of Python closes would wait for ever
        steps = []
        for pid, precision, saving in ((1, 'float32', False), (2, 'bfloat16', True)):
            monkeypatch.setattr(os, 'getpid', lambda pid=pid: pid)
            steps.append(stack.enter_context(contextlib.closing(
                training.ours(directory, 'toy', 2, 32, precision, saving))))
            assert next(steps[-1]) > 0
        assert all(next(each) > 0 for each in steps)


def test_a_save_is_measured_beside_an_update(benchmarks):
    training, _, directory = benchmarks
    with contextlib.closing(training.saves(directory, 'toy')) as steps:
        assert min(next(steps)) > 0


@pytest.mark.parametrize('precision', ['float32', 'int8'])
def test_sampling_is_measured(benchmarks, precision):
    _, sampling, directory = benchmarks
    assert next(sampling.ours(directory, precision, rows=2, tokens=3, prompt=5)) > 0
    (seconds,) = sampling.steps(directory, precision, tokens=4)
    assert len(seconds) == 3


@pytest.fixture
def check_gpu(benchmarks, monkeypatch, tmp_path):
    """The module, with toy models, and what it has processes compute in this one; and a Check of a device."""
    import check_gpu
    import random_model

    from fast import kernels
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS',
                        1 << 60)  # no kernels: compiling them would take most of the time
    pids = itertools.count()
    for name, value in {'SIZE': 'toy', 'SEQUENCE': 32, 'UPDATES': 1,
                        'LIMITS': {'float32': 1e-4, 'bfloat16': 5e-2},
                        'SMALL': {'n_layer': 1, 'n_head': 2, 'n_embd': 32, 'n_ctx': 32}}.items():
        monkeypatch.setattr(check_gpu, name, value)
    monkeypatch.setattr(random_model, 'make', lambda *arguments: next(random_model.write(*arguments)))
    monkeypatch.setattr(check_gpu.Check, 'run', lambda self, function, device, **arguments: next(
        function(**{'directory': self.directory, 'device': device, **arguments})))
    monkeypatch.setattr(os, 'getpid', lambda: next(pids))  # which names a timed run
    for name in ('CUDA_VISIBLE_DEVICES', 'TF_DETERMINISTIC_OPS'):  # which it changes
        monkeypatch.setenv(name, os.environ.get(name, '0'))
    return check_gpu, lambda device: check_gpu.Check(str(tmp_path / 'checked'), device)


@pytest.fixture(autouse=True)
def checked(tmp_path):
    (tmp_path / 'checked').mkdir()


def test_a_cpu_computes_what_a_cpu_does(check_gpu, capsys):
    module, check = check_gpu
    rows = list(check('CPU').rows(gpus=1))[:8]  # the others differ in flags alone
    del rows[6]  # the resumed run on the CPU, which is that of the device here
    kept = [module.show(*row) for row in rows]
    assert all(kept)
    table = re.findall(r'^\| (.*?) \| (.*?) \| (.*?) \|$', capsys.readouterr().out, re.MULTILINE)
    assert [name for name, *_ in table] == [name for name, *_ in rows]
    errors = [float(figure.partition(' ')[0]) for _, figure, _ in table[:6]]
    assert [i for i, figure in enumerate(errors) if figure] == [2, 3]  # of bfloat16
    assert re.fullmatch(r'\d+ tokens/s, peak \d+\.\d\d GB', table[6][1])


def test_a_device_that_rounds_is_found_wrong(check_gpu, monkeypatch, capsys):
    module, check = check_gpu
    run = module.Check.run
    monkeypatch.setattr(module.Check, 'run', lambda self, function, device, **arguments: run(
        self, function, device, **{**arguments, **({'precision': 'bfloat16'} if device == 'GPU' else {})}))
    wrong = check('GPU')
    assert not module.show('scores', lambda: wrong.scores('float32'), 1e-4)
    assert not module.show('gradients', lambda: wrong.gradients('float32'), 1e-4)
    assert capsys.readouterr().out.count('| WRONG |') == 2


def test_a_process_that_fails_is_a_row_and_no_end(check_gpu, capsys):
    def fails():
        raise RuntimeError('timed ended with status 1:\nTraceback\nOutOfMemory: a | b')
    assert not check_gpu[0].show('training', fails)
    assert capsys.readouterr().out == '| training | OutOfMemory: a / b | WRONG |\n'


def test_without_a_gpu_nothing_is_checked(check_gpu, monkeypatch, capsys):
    import tensorflow as tf
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind=None: [])
    monkeypatch.setattr(startup, 'gpu_is_visible', lambda: False)
    with pytest.raises(SystemExit) as stopped:
        cli.run(check_gpu[0].check_gpu, [])
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count('\n')) == (2, '', 1) and 'no GPU' in said.err


@pytest.mark.skipif(not (shutil.which('mpirun') and importlib.util.find_spec('horovod')),
                    reason='Horovod is missing')
def test_two_processes_make_the_gradients_of_one(check_gpu):
    assert check_gpu[1]('CPU').gradients_of_two() < 1e-5
