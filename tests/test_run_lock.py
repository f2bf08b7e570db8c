import fcntl
import glob
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import runs

from errors import InputError
from training import data as training_data
from training import trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('usual_signals')]


GONE = {'moved': lambda folder: os.rename(folder, f'{folder}-moved'), 'removed': shutil.rmtree,
        'replaced': lambda folder: (os.rename(folder, f'{folder}-moved'), os.mkdir(folder))}


@pytest.mark.parametrize('change', GONE)
def test_a_run_whose_folder_goes_away_ends_at_once_and_makes_no_other(flags, monkeypatch, capsys, change):
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    runs.at_step(monkeypatch, {3: lambda: GONE[change](directory)})
    with pytest.raises(InputError) as ended:
        trainer.train(flags(save_every=2))
    if change == 'removed':
        assert str(ended.value).startswith(f'{directory} was removed or moved while it was trained')
        assert not os.path.exists(directory)
    else:
        assert str(ended.value).startswith(f'{directory} was removed or moved while it was trained')
        assert runs.newest(f'{directory}-moved') == 2 and os.path.exists(f'{directory}-moved/model-2.index')
        assert os.path.exists(directory) == (change == 'replaced') and not glob.glob(f'{directory}/*')
    assert 'be saved' not in capsys.readouterr().err  # nor tried once more


@pytest.mark.parametrize('method', ['val_loss', 'sample', 'try_save'])
def test_a_folder_that_goes_away_before_a_save_is_not_made_again(flags, monkeypatch, capsys, method):
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    original = getattr(trainer.Trainer, method)

    def removing(self):
        result = original(self)
        shutil.rmtree(directory)
        return result
    monkeypatch.setattr(trainer.Trainer, method, removing)
    with pytest.raises(InputError, match='run1 was removed or moved while it was trained'):
        trainer.train(flags(val_every=2, sample_every=2, save_every=2, sample_length=3))
    assert not os.path.exists(directory) and 'be saved' not in capsys.readouterr().err


def test_a_run_is_one_process_at_a_time(flags):
    trainer.train(flags(steps=1))
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    with open(os.path.join(directory, 'counter'), 'rb') as file:  # whichever file, the lock is the folder's
        before = file.read()
    other = subprocess.Popen([sys.executable, '-c', 'import fcntl, os, sys, time\n'
                              'fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n'
                              'print(flush=True)\ntime.sleep(60)', directory], stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(InputError, match=r'another process is training .*run1; give another --run_name'):
        trainer.train(flags(steps=2))
    assert pathlib.Path(directory, 'counter').read_bytes() == before
    other.kill()
    other.wait()
    other.stdout.close()
    assert trainer.train(flags(steps=2)) == 2


@pytest.mark.parametrize('size, function', [(1, 'load_dataset'), (2, 'encode_to_npz')])
def test_the_folder_is_kept_to_one_process_before_text_is_read(flags, monkeypatch, size, function):
    """Also of a run that begins; of several processes, it is encoded into that folder."""
    directory = os.path.join(flags().checkpoint_dir, 'run1')
    original, refused = getattr(training_data, function), []

    def second(*arguments, **options):
        with pytest.raises(InputError, match=r'another process is training .*run1'):
            trainer.train(flags(steps=1))
        descriptor = os.open(directory, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        refused.append(function)
        return original(*arguments, **options)
    monkeypatch.setattr(training_data, function, second)
    assert trainer.train(flags(steps=1), trainer.Worker(0, size)) == 1
    assert refused == [function]


@pytest.mark.parametrize('kept', ['', 'checkpoint', 'checkpoint/run1'])
def test_a_start_that_fails_removes_the_empty_folders_that_it_has_made(flags, tmp_path, kept):
    (tmp_path / kept).mkdir(parents=True, exist_ok=True)
    with pytest.raises(InputError, match='nothing matches'):
        trainer.train(flags(dataset='nowhere/*.txt'))
    folders = [os.path.relpath(path, tmp_path) for path, _, _ in os.walk(tmp_path)]
    assert folders == ['.', 'checkpoint', 'checkpoint/run1'][:1 + len(pathlib.Path(kept).parts)]
