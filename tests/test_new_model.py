
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import toy

from formats import saved_model
from storage import checkpoint, new_model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('write', [
    lambda folder, run: new_model.create(folder, toy.hparams()),
    lambda folder, run: new_model.write(folder, toy.hparams(), [('wte', np.zeros([2, 2], np.float32))]),
    lambda folder, run: saved_model.write(folder, *checkpoint.find(run))])
def test_what_only_writes_files_takes_no_gpu(toy_model, tmp_path, monkeypatch, write):
    configurations, session = [], tf.Session
    monkeypatch.setattr(tf, 'Session', lambda *arguments, config=None: (
        configurations.append(config), session(*arguments, config=config))[1])
    write(str(tmp_path), str(toy_model[0]))
    assert configurations and all(dict(config.device_count) == {'GPU': 0} for config in configurations)
