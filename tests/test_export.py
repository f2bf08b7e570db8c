import os
import shutil

from command_line import cli

import pytest
import tensorflow.compat.v1 as tf
import toy

from export import export


def run(capfd, *argv):
    """The status, stdout and stderr of the command line."""
    capfd.readouterr()
    status = 0
    try:
        cli.run(export, [str(word) for word in argv])
    except SystemExit as stopped:
        status = stopped.code
    return status, *capfd.readouterr()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in folder.rglob('*')}


def test_of_a_run_the_checkpoint_that_is_asked_for_is_written(models, capfd, tmp_path):
    run_directory = shutil.copytree(models[0] / 'toy', tmp_path / 'checkpoint' / 'mine')
    best = toy.weights(models[1], seed=5)
    with toy.session() as s:
        for name, value in best.items():
            tf.get_variable(name, initializer=value)
        s.run(tf.global_variables_initializer())
        tf.train.Saver().save(s, str(run_directory / 'model-best'), write_state=False)
    out = tmp_path / 'new' / 'served' / '1'
    assert run(
        capfd, 'mine', out, '--checkpoint_dir', tmp_path / 'checkpoint', '--checkpoint=model-best'
    ) == (0, f'Wrote {run_directory}/model-best to {out}\n', '')
    reader = tf.train.load_checkpoint(str(out / 'variables' / 'variables'))
    assert (reader.get_tensor('model/wte') == best['model/wte']).all()
    assert os.listdir(out.parent) == ['1'] and os.listdir(out.parent.parent) == ['served']


@pytest.mark.parametrize('make', [lambda path: path.mkdir(), lambda path: path.write_text('mine'),
                                  lambda path: path.symlink_to('nowhere')], ids=['folder', 'file', 'link'])
def test_what_exists_is_refused_and_kept(models, capfd, tmp_path, make):
    make(tmp_path / 'out')
    before = contents(tmp_path)
    status, out, err = run(capfd, 'toy', tmp_path / 'out', '--models_dir', models[0])
    assert (status, out) == (2, '') and err.endswith(
        f': error: {tmp_path}/out exists already; choose another name\n')
    assert contents(tmp_path) == before


def test_a_folder_that_could_not_be_loaded_is_not_made(models, capfd, tmp_path):
    status, out, err = run(capfd, 'toy', tmp_path / 'a[1]' / '1', '--models_dir', models[0])
    assert (status, out) == (2, '') and "has the character '['" in err and err.count('\n') == 1
    assert contents(tmp_path) == {}


def cut(path, length=None):
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2 if length is None else length])


@pytest.mark.parametrize('damage, named', [
    (lambda toy: cut(toy / 'model.ckpt.data-00000-of-00001'), 'model.ckpt cannot be read'),
    (lambda toy: cut(toy / 'model.ckpt.index'), 'model.ckpt cannot be read'),
    (lambda toy: cut(toy / 'hparams.json'), 'hparams.json is not JSON'),
    (lambda toy: cut(toy / 'encoder.json'), 'encoder.json'),
    (lambda toy: (toy / 'vocab.bpe').unlink(), 'vocab.bpe'),
    (lambda toy: shutil.rmtree(toy), 'no model directory'),
])
def test_of_a_damaged_model_nothing_is_written(models, capfd, tmp_path, damage, named):
    damage(shutil.copytree(models[0] / 'toy', tmp_path / 'models' / 'toy'))
    (tmp_path / 'out').mkdir()
    status, out, err = run(
        capfd, 'toy', tmp_path / 'out' / 'served' / '1', '--models_dir', tmp_path / 'models'
    )
    assert (status, out) == (2, '') and err.count('\n') == 1
    assert named in err and str(tmp_path / 'models' / 'toy') in err
    assert contents(tmp_path / 'out') == {}


def test_a_model_is_named_as_by_the_sampling_scripts_or_by_its_path(models, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(models[0].parent)
    for number, (folder, argv) in enumerate((
            (models[0], ['toy', '--models_dir', models[0]]), (models[0].name, [f'{models[0].name}/toy']),
            (models[0], ['toy', '--models_dir', models[0], '--checkpoint_dir', models[0]]))):
        assert run(capfd, argv[0], tmp_path / str(number), *argv[1:]) == (
            0, f'Wrote {folder}/toy/model.ckpt to {tmp_path}/{number}\n', '')


def test_a_checkpoint_that_is_not_there_is_named(models, capfd, tmp_path):
    status, out, err = run(capfd, 'toy', tmp_path / 'out', '--models_dir', models[0], '--checkpoint=model-9')
    assert (
        (status, out) == (2, '') and f'no checkpoint {models[0]}/toy/model-9' in err and err.count('\n') == 1
    )
    assert contents(tmp_path) == {}
