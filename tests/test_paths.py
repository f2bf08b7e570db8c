import errno
import importlib
import os
import shutil
import stat
import threading

from command_line import cli

import pytest

from errors import InputError
from storage import paths


@pytest.fixture
def models(tmp_path):
    (tmp_path / 'models').mkdir()
    return tmp_path / 'models'


# Folders that cannot be written

@pytest.mark.parametrize('number, remedy', [
    (errno.EACCES, 'permit this user'), (errno.EPERM, 'permit this user'),
    (errno.EROFS, 'mount it'),
    (errno.ENOSPC, 'make room'), (errno.EDQUOT, 'make room'),
    (errno.EIO, 'check the disk')])
def test_what_to_do_about_a_folder_fits_the_reason(tmp_path, monkeypatch, number, remedy):
    def refuse(path, *arguments):
        raise OSError(number, os.strerror(number), path)
    monkeypatch.setattr(os, 'open', refuse)
    with pytest.raises(InputError) as raised:
        paths.check_writable(str(tmp_path / 'a' / 'b'), '--out')
    told = str(raised.value)
    assert told.startswith(f'--out: no file can be written in {tmp_path} ({os.strerror(number)}); {remedy}')
    assert told.endswith(', or give another --out')


def test_a_folder_is_tried_where_it_is_or_would_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths.check_writable('a/b', '--out')
    assert os.listdir() == []
    (tmp_path / 'file').write_text('')
    (tmp_path / 'link').symlink_to('nowhere')
    for name, remedy in (('file/a/b', 'move that file away'), ('link', 'make the folder'),
                         ('link/a', 'make the folder')):
        with pytest.raises(InputError, match=remedy):
            paths.check_writable(name, '--out')


# Names of models and runs

@pytest.mark.parametrize('there, asked', [
    ('124M', '124M'), ('124M', '117M'), ('117M', '124M'), ('117M', '117M'), ('355M', '345M'),
    ('345M', '355M'),
    ('mine', 'mine'), ('.hidden', '.hidden'), ('a b', 'a b'), ('2019', '2019')])
def test_a_model_is_found_by_its_name_or_alias(models, there, asked):
    (models / there).mkdir()
    assert paths.find_model(asked, str(models)) == str(models / there)


def test_a_name_comes_before_its_alias(models):
    for name in ('117M', '124M'):
        (models / name).mkdir()
    assert paths.find_model('117M', str(models)) == str(models / '117M')
    assert paths.find_model('124M', str(models)) == str(models / '124M')


@pytest.mark.parametrize('there, asked', [('124M', '355M'), ('124M', '345M'), ('774M', '117M'), ('a', 'A')])
def test_no_other_model_is_taken(models, there, asked):
    (models / there).mkdir()
    with pytest.raises(InputError):
        paths.find_model(asked, str(models))


@pytest.mark.parametrize('name', ['124M', 'mine'])
def test_for_a_model_that_is_missing_the_remedies_are_to_look_to_download_or_to_create(models, name):
    with pytest.raises(InputError) as raised:
        paths.find_model(name, str(models), 'runs')
    assert str(raised.value) == (
        f'no model directory {models}/{name} and no run runs/{name}; use download_model.py')


def test_a_file_is_no_model_directory(models):
    (models / 'mine').write_text('')
    with pytest.raises(InputError, match='no model directory'):
        paths.find_model('mine', str(models))


def test_a_run_is_found_by_its_name_too(models, tmp_path, capsys):
    (tmp_path / 'runs' / 'novels').mkdir(parents=True)
    (tmp_path / 'runs' / '124M').mkdir()
    for name in ('novels', '124M'):
        assert paths.find_model(name, str(models), str(tmp_path / 'runs')) == str(tmp_path / 'runs' / name)
    assert paths.find_model('novels', str(tmp_path / 'runs')) == str(tmp_path / 'runs' / 'novels')
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('asked, there', [('mine', 'mine'), ('117M', '124M')])
def test_a_model_comes_before_a_run_of_its_name_which_is_told(models, tmp_path, capsys, asked, there):
    run = tmp_path / 'runs' / asked
    for folder in (models / there, run):
        folder.mkdir(parents=True)
    assert paths.find_model(asked, str(models), str(tmp_path / 'runs'), quiet=True) == str(models / there)
    assert capsys.readouterr() == ('', '')
    assert paths.find_model(asked, str(models), str(tmp_path / 'runs')) == str(models / there)
    assert capsys.readouterr() == ('',
                                   f'{asked} is the model {models / there}; the run of this name is {run}\n')
    assert paths.find_model(str(run), str(models)) == str(run)
    assert paths.find_model(asked, str(tmp_path / 'runs'),
                            str(tmp_path / 'runs')) == str(run)  # as it always was
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('asked, expected', [
    ('a/b', 'a/b'), ('a/b/', 'a/b'), ('./a', './a'), ('./a/', './a'), ('a/../c', 'a/../c'), ('{}/a', '{}/a'),
    ('.', None),
    ('./', '{}'), ('a/..', '{}'), ('$HERE/a', '{}/a')])
def test_a_path_has_a_slash_before_and_after(tmp_path, monkeypatch, asked, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HERE', str(tmp_path))
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    (tmp_path / 'c').mkdir()
    asked = asked.format(tmp_path)
    if expected is None:
        with pytest.raises(InputError, match='not a plain folder name'):
            paths.find_model(asked)
        return
    path = paths.find_model(asked)
    assert path == expected.format(tmp_path) and os.path.dirname(path)
    assert paths.find_model(path) == path


def test_a_path_that_is_no_folder_is_told(tmp_path):
    (tmp_path / 'file').write_text('')
    for name in ('file', 'none'):
        with pytest.raises(InputError,
                           match=f'no folder .*/{name}; give a name, or the path'):
            paths.find_model(str(tmp_path / name))


@pytest.mark.parametrize('name', ['../x', 'a/b', '/etc', 'a/', '', '.', '..', 'a\0b', '\0', 'a\\b', '..\\x'])
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    finders = [(paths.run_dir, '--run_name')] + [(paths.find_model, '--model_name')] * ('/' not in name)
    for find, flag in finders:
        with pytest.raises(InputError) as raised:
            find(name, str(tmp_path))
        assert str(raised.value).startswith(f'{flag} {name!r} is not a plain folder name')
        assert '\n' not in str(raised.value) and '\0' not in str(raised.value)


def test_a_run_directory_need_not_exist(tmp_path):
    assert paths.run_dir('run1', str(tmp_path / 'checkpoint')) == str(tmp_path / 'checkpoint' / 'run1')
    assert os.listdir(tmp_path) == []


def test_folders_are_given_by_the_originals_names_unless_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'models' / '124M').mkdir(parents=True)
    assert paths.find_model('124M') == os.path.join('models', '124M')
    assert paths.run_dir('run1') == os.path.join('checkpoint', 'run1')


def test_home_and_variables_are_expanded_in_folders_but_not_in_names(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('WHERE', str(tmp_path / 'there'))
    assert paths.expand('~/a') == str(tmp_path / 'a')
    assert paths.run_dir('$WHERE', '$WHERE') == str(tmp_path / 'there' / '$WHERE')


# replacing

def test_a_new_file_has_its_name_only_when_it_is_whole(tmp_path):
    target = tmp_path / 'file'
    with paths.replacing(str(target)) as file:
        file.write('häl')
        file.flush()
        assert not target.exists()
        file.write('f')
    assert target.read_bytes() == 'hälf'.encode()
    assert os.listdir(tmp_path) == ['file']


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / 'file'
    target.write_bytes(b'old')
    with paths.replacing(str(target), 'wb') as file:
        file.write(b'\xff\0new')
        file.flush()
        assert target.read_bytes() == b'old'
    assert target.read_bytes() == b'\xff\0new'
    assert os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('error', [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('old', [None, b'old'])
def test_on_an_exception_all_is_as_it_was(tmp_path, error, old):
    target = tmp_path / 'file'
    if old is not None:
        target.write_bytes(old)
    with pytest.raises(error), paths.replacing(str(target)) as file:
        file.write('half')
        raise error()
    expected = {} if old is None else {'file': old}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == expected


def test_a_failing_rename_leaves_nothing_behind(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(28, 'No space left on device', 'file')
    monkeypatch.setattr(os, 'replace', failing)
    with pytest.raises(OSError, match='No space'), paths.replacing(str(tmp_path / 'file')) as file:
        file.write('text')
    assert os.listdir(tmp_path) == []


def test_the_data_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync',
                        lambda file: (done.append(('fsync', os.fstat(file).st_size)), fsync(file)))
    monkeypatch.setattr(os, 'replace', lambda *names: (done.append('replace'), replace(*names)))
    with paths.replacing(str(tmp_path / 'file')) as file:
        file.write('seven x')
    assert done == [('fsync', 7), 'replace']


def test_a_folder_that_is_not_there_is_an_error_naming_the_path(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, paths.replacing(str(tmp_path / 'none' / 'file')):
        pass
    assert str(tmp_path / 'none' / 'file') in raised.value.filename


def test_the_files_of_a_model_are_the_seven_released():
    assert sorted(paths.MODEL_FILES) == ['checkpoint', 'encoder.json', 'hparams.json',
                                         'model.ckpt.data-00000-of-00001',
                                         'model.ckpt.index', 'model.ckpt.meta', 'vocab.bpe']


# making

def test_a_new_folder_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with paths.making(os.path.join('new', 'folder')) as folder:
        assert os.listdir(folder) == []
        with open(os.path.join(folder, 'file'), 'w') as file:
            file.write('whole')
        assert not os.path.exists('new')
    assert os.listdir(tmp_path) == ['new'] and os.listdir('new') == ['folder']
    assert (tmp_path / 'new' / 'folder' / 'file').read_text() == 'whole'


@pytest.mark.parametrize('error', [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_on_an_exception_there_is_no_new_folder(tmp_path, error):
    with pytest.raises(error), paths.making(str(tmp_path / 'new' / 'folder')) as folder:
        with open(os.path.join(folder, 'file'), 'w') as file:
            file.write('half')
        raise error()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('make', [
    lambda folder: os.mkdir(os.path.join(folder, 'none', 'file')), lambda folder: os.fsync(1 << 20)])
def test_an_error_of_the_disk_names_the_folder_that_was_to_be(tmp_path, make):
    with pytest.raises(OSError) as error, paths.making(str(tmp_path / 'new')) as folder:
        make(folder)
    assert error.value.filename == str(tmp_path / 'new')


@pytest.mark.parametrize('make', [os.mkdir, lambda path: os.symlink('nowhere', path),
                                  lambda path: open(path, 'w').close()])
def test_a_folder_that_exists_is_refused_before_any_work(tmp_path, make):
    make(str(tmp_path / 'old'))
    with pytest.raises(InputError, match='old exists already'), paths.making(str(tmp_path / 'old')):
        pytest.fail('the block was entered')
    assert os.listdir(tmp_path) == ['old']


def test_a_folder_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(NotADirectoryError), paths.making(str(tmp_path / 'file' / 'folder')):
        pytest.fail('the block was entered')


def test_a_small_file_is_read_only_where_it_is_regular_and_small(tmp_path, monkeypatch):
    (tmp_path / 'file').write_bytes(b'12345')
    monkeypatch.setattr(paths, 'SMALL_FILE', 5)
    assert paths.read_small(str(tmp_path / 'file')) == b'12345'
    monkeypatch.setattr(paths, 'SMALL_FILE', 4)
    with pytest.raises(InputError, match='has more than 4 bytes'):
        paths.read_small(str(tmp_path / 'file'))
    os.mkfifo(tmp_path / 'pipe')
    for path in (tmp_path / 'pipe', '/dev/zero'):
        with pytest.raises(InputError, match='is a pipe or a device'):
            paths.read_small(str(path))
    with pytest.raises(FileNotFoundError):
        paths.read_small(str(tmp_path / 'none'))


# output

def test_those_who_may_read_a_file_may_read_what_replaces_it(tmp_path):
    target = tmp_path / 'file'
    target.write_text('old')
    target.chmod(0o604)
    with paths.replacing(str(target)) as file:
        file.write('new')
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o604}
    assert (target.read_text(), target.stat().st_mode & 0o777) == ('new', 0o604)


@pytest.mark.parametrize('old', ['old', None])
def test_what_a_link_leads_to_is_replaced_and_not_the_link(tmp_path, old):
    (tmp_path / 'there').mkdir()
    (tmp_path / 'link').symlink_to('there/link')
    (tmp_path / 'there' / 'link').symlink_to('file')
    if old:
        (tmp_path / 'there' / 'file').write_text(old)
    with pytest.raises(ValueError), paths.output(str(tmp_path / 'link')) as file:
        file.write('half')
        raise ValueError
    assert (tmp_path / 'link').exists() == bool(old)
    with paths.output(str(tmp_path / 'link')) as file:
        file.write('new')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'there' / 'link').is_symlink()
    assert (tmp_path / 'there' / 'file').read_text() == 'new'
    assert sorted(os.listdir(tmp_path / 'there')) == ['file', 'link']


def test_a_link_within_a_folder_is_replaced_and_not_what_it_leads_to(tmp_path):
    (tmp_path / 'thesis').write_text('mine')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'counter').symlink_to('../thesis')
    with paths.replacing(str(tmp_path / 'run' / 'counter')) as file:
        file.write('5')
    assert ((tmp_path / 'run' / 'counter').read_text(), (tmp_path / 'thesis').read_text()) == ('5', 'mine')


def test_into_a_pipe_is_written_straight(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'link').symlink_to('pipe')
    read = []
    for name in ('pipe', 'link'):
        reader = threading.Thread(target=lambda name=name: read.append((tmp_path / name).read_bytes()),
                                  daemon=True)
        reader.start()
        with paths.output(str(tmp_path / name)) as file:
            file.write('häl')
        reader.join(10)
        assert stat.S_ISFIFO((tmp_path / name).stat().st_mode)
    assert read == ['häl'.encode()] * 2 and sorted(os.listdir(tmp_path)) == ['link', 'pipe']


def test_into_a_device_is_written_straight(tmp_path):
    device = tmp_path / 'null'
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, os.stat('/dev/null').st_rdev)
        device.write_text('')
    except OSError:
        pytest.skip('no device can be made here')
    with paths.output(str(device), 'wb') as file:
        file.write(b'gone')
    assert stat.S_ISCHR(device.stat().st_mode) and os.listdir(tmp_path) == ['null']


@pytest.mark.parametrize('kind', ['file', 'pipe'])
def test_what_is_open_already_is_written_on_from_where_it_is(tmp_path, kind):
    """As /dev/stdout is in `>> log`."""
    if kind == 'file':
        descriptor = os.open(tmp_path / 'log', os.O_WRONLY | os.O_CREAT)
    else:
        reading, descriptor = os.pipe()
    (tmp_path / 'link').symlink_to(f'/dev/fd/{descriptor}')
    os.write(descriptor, b'before, ')
    for path in (f'/dev/fd/{descriptor}', str(tmp_path / 'link')):
        with paths.output(path) as file:
            file.write('new, ')
    os.write(descriptor, b'after')
    os.close(descriptor)
    if kind == 'file':
        assert (tmp_path / 'log').read_text() == 'before, new, new, after'
    else:
        assert os.read(reading, 100) == b'before, new, new, after'
        os.close(reading)
    assert (tmp_path / 'link').is_symlink()


def test_what_is_open_for_reading_alone_is_named():
    with open(__file__, 'rb') as file:
        path = f'/dev/fd/{file.fileno()}'
        with pytest.raises(OSError) as raised, paths.output(path) as out:
            out.write('text')
    assert raised.value.filename == path


# Characters that TensorFlow cannot read

@pytest.mark.parametrize('name', ['a[1]', 'a*', 'a?', 'a\udcff'])
@pytest.mark.parametrize('find', [paths.find_model, paths.run_dir])
def test_a_folder_whose_checkpoints_tensorflow_cannot_read_is_refused(tmp_path, find, name):
    (tmp_path / name / 'b').mkdir(parents=True)
    for given in ((name, str(tmp_path)), ('b', str(tmp_path / name))):
        with pytest.raises(InputError) as raised:
            find(*given)
        assert f'has the character {name[1]!r}' in str(raised.value)
    with pytest.raises(InputError, match='has the character'):
        paths.find_model(str(tmp_path / name))


def test_what_stands_above_a_relative_path_may_have_any_name(tmp_path, monkeypatch):
    (tmp_path / 'a[1]' / 'models' / 'b').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'a[1]')
    assert paths.find_model('b') == paths.find_model('models/b/') == 'models/b'
    monkeypatch.chdir('models/b')
    with pytest.raises(InputError, match='has the character'):
        paths.find_model('./')  # whose name is known from the top alone


# In the scripts

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """models/toy, checkpoint/novels that was trained from it, and a text."""
    from create_model import create_model
    folder = tmp_path_factory.mktemp('home')
    create_model('toy', 1, 2, 32, 32, models_dir=str(folder / 'models'), seed=1)
    shutil.copytree(folder / 'models' / 'toy', folder / 'checkpoint' / 'novels')
    (folder / 'text.txt').write_text('The sea was quiet. ' * 20)
    return folder


@pytest.mark.parametrize('name', ['toy', 'novels', './checkpoint/novels'])
@pytest.mark.parametrize('script, function, argv', [
    ('generate_unconditional_samples', 'sample_model', ['--model_name={}', '--length=2', '--nsamples=1']),
    ('interactive_conditional_samples', 'interact_model', ['--model_name={}', '--length=2', '--prompt=The']),
    ('evaluate', 'COMMANDS', ['perplexity', '--model_name={}', '--data=text.txt']),
    ('convert', 'COMMANDS', ['to_hf', '{}', 'out']),
    ('export', 'export', ['{}', 'out']),
    ('create_model', 'create_model', ['copy', '--vocab_from={}', '--n_layer=1', '--n_embd=12', '--n_ctx=8']),
    ('encode', 'encode', ['text.txt', 'text.npz', '--model_name={}']),
    ('train', 'train',
     ['--dataset=text.txt', '--model_name={}', '--steps=1', '--sample_every=0', '--run_name=toy'])])
def test_every_script_takes_a_model_a_run_or_a_path(home, tmp_path, monkeypatch, capsys, script, function,
                                                    argv, name):
    shutil.copytree(home, tmp_path / 'home')
    monkeypatch.chdir(tmp_path / 'home')
    cli.run(getattr(importlib.import_module(script), function), [word.format(name) for word in argv])
    assert 'the run of this name' not in capsys.readouterr().err
