"""The script convert.py: which model it takes, and where it writes."""
import os
import shutil

from command_line import cli

import numpy as np
import pytest
import safetensors.numpy
import tensorflow.compat.v1 as tf
import test_hugging_face
import toy
from test_hugging_face import assert_bits, tensors, weights

import convert
import model
from convert import from_hf, to_hf
from errors import InputError
from storage import checkpoint

home, folder = test_hugging_face.home, test_hugging_face.folder  # fixtures


# Which model

@pytest.fixture
def run(home, tmp_path):
    """A run `mine` in checkpoint, whose weights are the model's doubled, and with ones in model-best."""
    directory = shutil.copytree(home[0] / 'models' / 'toy', tmp_path / 'checkpoint' / 'mine')
    with toy.session() as s:
        model.weights(home[1])
        saver = tf.train.Saver(checkpoint.model_variables())
        toy.assign(s, {name: np.ones_like(value) for name, value in home[2].items()})
        saver.save(s, str(directory / 'model-best'), write_state=False)
        toy.assign(s, {name: value * 2 for name, value in home[2].items()})
        saver.save(s, str(directory / 'model'), global_step=7)
    return directory


@pytest.mark.parametrize('given, flags, factor', [
    ('mine', {}, 2), ('toy', {}, 1), ('{}/checkpoint/mine', {}, 2), ('{}/checkpoint/mine/', {}, 2),
    ('mine', {'checkpoint': 'model-7'}, 2), ('mine', {'checkpoint': 'model-best'}, None),
    ('toy', {'checkpoint': '{}/checkpoint/mine'}, 2),
    ('toy', {'checkpoint': '{}/checkpoint/mine/model-best'}, None)])
def test_a_model_or_run_is_found_by_name_or_path(home, run, tmp_path, given, flags, factor):
    flags = {name: value.format(tmp_path) for name, value in flags.items()}
    to_hf(given.format(tmp_path), str(tmp_path / 'out'), models_dir=str(home[0] / 'models'),
          checkpoint_dir=str(tmp_path / 'checkpoint'), **flags)
    expected = {name: np.ones_like(value) if factor is None else value * factor for name,
                value in home[2].items()}
    assert_bits(safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors'), tensors(expected))


@pytest.mark.parametrize('given, flags, message', [
    ('absent', {}, 'no model directory'), ('{}/absent', {}, 'no folder'),
    ('..', {}, 'not a plain folder name'),
    ('mine', {'checkpoint': 'model-8'}, 'no checkpoint'),
    ('toy', {'checkpoint': '{}/none/model-8'}, 'no checkpoint'),
    ('both', {}, 'no {}/models/both/hparams.json')])
def test_what_is_no_model_is_refused(home, run, tmp_path, given, flags, message):
    models = shutil.copytree(home[0] / 'models', tmp_path / 'models')
    for parent in (models, tmp_path / 'checkpoint'):
        (parent / 'both').mkdir()
    flags = {name: value.format(tmp_path) for name, value in flags.items()}
    with pytest.raises(InputError) as raised:
        to_hf(given.format(tmp_path), str(tmp_path / 'out'), models_dir=str(models),
              checkpoint_dir=str(tmp_path / 'checkpoint'), **flags)
    assert message.format(tmp_path) in str(raised.value)
    assert sorted(os.listdir(tmp_path)) == ['checkpoint', 'models']


# What exists

@pytest.mark.parametrize('kind', ['file', 'empty folder', 'link'])
def test_what_exists_is_refused_and_kept(home, tmp_path, kind):
    for path in (tmp_path / 'out', tmp_path / 'models' / 'back'):
        path.parent.mkdir(exist_ok=True)
        {'file': path.touch, 'empty folder': path.mkdir,
         'link': lambda path=path: path.symlink_to('nowhere')}[kind]()
    for call in (lambda: to_hf('toy', str(tmp_path / 'out'), models_dir=str(home[0] / 'models')),
                 lambda: from_hf(str(home[0] / 'hf'), 'back', models_dir=str(tmp_path / 'models'))):
        with pytest.raises(InputError, match='exists already; choose another name'):
            call()
    assert sorted(os.listdir(tmp_path)) == ['models', 'out'] and os.listdir(tmp_path / 'models') == ['back']


def test_from_the_command_line_a_mistake_is_one_line_and_status_2(home, folder, capsys, monkeypatch):
    monkeypatch.setattr('sys.argv', ['convert.py'])
    with pytest.raises(SystemExit) as stopped:
        cli.run(convert.COMMANDS, ['to_hf', 'toy', str(folder), '--models_dir', str(home[0] / 'models')])
    assert stopped.value.code == 2
    assert capsys.readouterr() == ('', f'convert.py to_hf: error: {folder} exists already; choose another '
                                       'name\n')


def test_only_what_tensorflow_reads_must_have_a_plain_name(home, folder, tmp_path, monkeypatch):
    theirs = shutil.copytree(folder, tmp_path / 'a [1]')
    with pytest.raises(InputError, match=r"has the character '\['"):
        from_hf(str(theirs), 'b[1]', models_dir=str(tmp_path / 'models'))
    from_hf(str(theirs), 'b', models_dir=str(tmp_path / 'models'))
    assert_bits(weights(tmp_path / 'models' / 'b'), home[2])
    monkeypatch.chdir(shutil.move(tmp_path / 'models', theirs))
    to_hf('./b', str(tmp_path / 'c[2]'))
    assert_bits(safetensors.numpy.load_file(tmp_path / 'c[2]' / 'model.safetensors'), tensors(home[2]))
