"""What Windows refuses is refused here too, while a model is made, trained, resumed and sampled: a stand-in
for it."""

import errno
import io
import os
import shutil
import signal
import sys
import tempfile
import time

from command_line import cli
from command_line.flags import SamplingFlags, TrainFlags

import numpy as np
import pytest
import toy
from tiny_vocab import ENGLISH

import encode
from generation import samples
from storage import new_model, paths, run_lock
from storage.npz import npz_arrays
from training import log, trainer

fcntl = pytest.importorskip('fcntl')
pytestmark = pytest.mark.skipif(
    not os.path.exists('/proc/self/maps'), reason='what is open is looked up in /proc'
)


class Sys:
    """The module sys of another system; the standard library and TensorFlow keep theirs."""
    platform = 'win32'

    def __getattr__(self, name):
        return getattr(sys, name)


def in_use(path):
    """Whether this process has a file, or one below a folder, open or mapped into memory."""
    path = os.path.realpath(path)
    names = []
    for descriptor in os.listdir('/proc/self/fd'):
        try:
            names.append(os.readlink(f'/proc/self/fd/{descriptor}'))
        except FileNotFoundError:  # that of listdir itself
            continue
    with open('/proc/self/maps', encoding='utf-8') as file:
        names += [line.split(maxsplit=5)[-1].rstrip('\n') for line in file]
    return any(name == path or name.startswith(f'{path}/') for name in names)


@pytest.fixture
def windows(monkeypatch):
    """No resource, no SIGHUP; no folder can be opened, only a file open for writing be forced to the disk,
    and none
    that is in use be renamed, replaced or removed."""
    def refusing(name, n_paths):
        function = getattr(os, name)

        def refuse(*args, **kwargs):
            for path in args[:n_paths]:
                if in_use(path):
                    raise PermissionError(errno.EACCES, 'is in use', path)
            return function(*args, **kwargs)
        monkeypatch.setattr(os, name, refuse)

    open_, fsync = os.open, os.fsync

    def open_file(path, flags, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, 'is a folder', path)
        return open_(path, flags, *args, **kwargs)

    def fsync_writable(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, 'is not open for writing')
        fsync(descriptor)
    for name, n_paths in (('replace', 2), ('rename', 2), ('unlink', 1), ('remove', 1)):
        refusing(name, n_paths)
    monkeypatch.setattr(shutil, '_use_fd_functions', False)  # which open folders
    monkeypatch.setattr(
        tempfile, 'TemporaryFile', tempfile.NamedTemporaryFile
    )  # which is closed, then removed
    monkeypatch.setattr(os, 'open', open_file)
    monkeypatch.setattr(os, 'fsync', fsync_writable)
    monkeypatch.setitem(sys.modules, 'resource', None)
    monkeypatch.delattr(signal, 'SIGHUP')
    for module in (run_lock, paths, cli, log):
        monkeypatch.setattr(module, 'sys', Sys())


@pytest.fixture
def flags(tmp_path):
    toy.write_model(tmp_path / 'models' / 'toy')
    (tmp_path / 'a.txt').write_text(ENGLISH, encoding='utf-8')
    return lambda **changes: TrainFlags(
        **{
            'dataset': str(tmp_path / 'a.npz'),
            'model_name': 'toy',
            'models_dir': str(tmp_path / 'models'),
            'checkpoint_dir': str(tmp_path / 'checkpoint'),
            'samples_dir': str(tmp_path / 'samples'),
            'save_every': 1,
            'sample_every': 2,
            'sample_length': 3,
            'val_every': 1,
            'val_batch_count': 1,
            'seed': 3,
            **changes,
        }
    )


def test_a_run_is_trained_saved_and_resumed(windows, flags, tmp_path, monkeypatch):
    encode.encode(str(tmp_path / 'a.txt'), str(tmp_path / 'a.npz'), model_name='toy',
                  models_dir=str(tmp_path / 'models'))
    monkeypatch.setattr(time, 'time', lambda: 1e9)  # which may stand still for 16 ms
    for steps in (2, 8):  # of the saves some are removed
        assert trainer.train(flags(steps=steps)) == steps
    assert np.isnan(log.peak_memory())
    assert b'\r' not in (tmp_path / 'samples' / 'run1' / 'samples-8').read_bytes()
    sampling = SamplingFlags(
        model_name='run1', models_dir=str(tmp_path / 'checkpoint'), seed=1, nsamples=1, length=3
    )
    drawn = samples.SampleWriter(sampling, unconditional=True)
    with samples.opened(str(tmp_path / 'drawn.txt')) as file:
        drawn.write(file)
    assert (tmp_path / 'drawn.txt').read_bytes().startswith(b'=====')


def test_a_signal_that_windows_knows_still_stops_training(windows):
    signals = trainer.Signals()
    with signals.noted():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == signal.SIGTERM


def test_a_model_is_made_as_a_whole(windows, tmp_path):
    with paths.making(str(tmp_path / 'models' / 'new')) as folder:
        new_model.create(folder, toy.hparams())
    assert (tmp_path / 'models' / 'new' / 'checkpoint').exists()


def test_what_the_system_refuses_is_told(windows, flags, tmp_path):
    """The stand-in itself refuses: a mapped data set cannot be replaced."""
    for _ in range(2):
        encode.encode(str(tmp_path / 'a.txt'), str(tmp_path / 'a.npz'), model_name='toy',
                  models_dir=str(tmp_path / 'models'))
    mapped = list(npz_arrays(str(tmp_path / 'a.npz')))
    with pytest.raises(PermissionError) as raised:
        encode.encode(str(tmp_path / 'a.txt'), str(tmp_path / 'a.npz'), model_name='toy',
                  models_dir=str(tmp_path / 'models'))
    assert raised.value.filename == str(tmp_path / 'a.npz')
    assert len(mapped) == 1


def test_what_is_piped_is_utf_8_and_a_terminal_keeps_its_own(windows):
    class Terminal(io.BytesIO):
        def isatty(self):
            return True
    written = []
    for kind in (io.BytesIO, Terminal):
        stream = io.TextIOWrapper(kind(), encoding='cp1252', newline='\n')
        cli.set_encoding(stream, 'replace')
        stream.write('é→')
        stream.flush()
        written.append(stream.buffer.getvalue())
    assert written == ['é→'.encode(), b'\xe9?']
