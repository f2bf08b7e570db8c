"""The benchmarks run, on models that are too small to tell anything of speed."""
import contextlib
import os

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture
def benchmarks(monkeypatch, tmp_path):
    """The folder's modules, as its scripts import them, and a folder with a toy model of theirs."""
    monkeypatch.syspath_prepend(os.path.join(ROOT, 'benchmarks'))
    import random_model
    import sampling
    import training
    monkeypatch.setitem(random_model.SIZES, 'toy', (2, 4, 32))
    monkeypatch.setattr(random_model, 'N_VOCAB', 300)
    monkeypatch.setattr(sampling, 'SIZE', 'toy')
    next(random_model.write(str(tmp_path), 'toy', n_ctx=32))
    return training, sampling, str(tmp_path)


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


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'int8'])
def test_sampling_is_measured(benchmarks, precision):
    _, sampling, directory = benchmarks
    assert next(sampling.ours(directory, precision, rows=2, tokens=3, prompt=5)) > 0
    (seconds,) = sampling.steps(directory, precision, tokens=4)
    assert len(seconds) == 3
