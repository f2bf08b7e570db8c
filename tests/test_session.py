import os

import pytest
import tensorflow.compat.v1 as tf

from fast import session


@pytest.mark.parametrize('details, expected', [
    ({'device_name': 'NVIDIA A100-SXM4-40GB', 'compute_capability': (8, 0)}, 'GPU 1, NVIDIA A100-SXM4-40GB'),
    ({'device_name': 'METAL'}, 'GPU 1, METAL'), ({}, 'GPU 1, unknown')])
def test_a_gpu_is_named_with_what_its_driver_says(monkeypatch, details, expected):
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: [kind, f'second {kind}'])
    monkeypatch.setattr(tf.config.experimental, 'get_device_details', {'second GPU': details}.get)
    assert session.device(1) == expected


def test_a_cpu_is_named_with_the_cores_of_this_process(monkeypatch):
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: [])
    assert session.device() == f'CPU, {len(os.sched_getaffinity(0))} cores'
