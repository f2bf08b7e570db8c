import json
import os
import pathlib
import shutil
import weakref

import numpy as np
import pytest
import runs
import tensorflow.compat.v1 as tf
import toy

import convert
import export
import model
from errors import InputError
from evaluation import likelihood
from generation import generator
from storage import checkpoint, paths, run_folder
from storage.run_state import TrainState

pytestmark = pytest.mark.slow


def test_a_moved_directory_loads(toy_model, tmp_path):
    moved = tmp_path / 'moved'
    shutil.copytree(toy_model[0], moved)
    (moved / 'checkpoint').write_text('model_checkpoint_path: "/somewhere/else/model.ckpt"\n')
    assert checkpoint.resolve_path(str(moved)) == str(moved / 'model.ckpt')
    (moved / 'checkpoint').write_text('model_checkpoint_path: "/somewhere/else/model-3"\n')
    with pytest.raises(InputError, match=r'names model-3: there is no .*/moved/model-3\.index'):
        checkpoint.resolve_path(str(moved))
    (moved / 'checkpoint').write_text('rubbish')
    with pytest.raises(InputError, match='does not name a checkpoint'):
        checkpoint.resolve_path(str(moved))


def test_a_checkpoint_file_leads_nowhere_else(toy_model, tmp_path):
    for name in ('elsewhere', 'toy', 'toy/below'):
        shutil.copytree(toy_model[0], tmp_path / name)
    at = tmp_path / 'toy'
    for name in (
        tmp_path / 'elsewhere/model.ckpt',
        '../elsewhere/model.ckpt',
        'below/model.ckpt',
        './model.ckpt',
    ):
        (at / 'checkpoint').write_text(f'model_checkpoint_path: "{name}"\n')
        assert checkpoint.latest(str(at)) == str(at / 'model.ckpt')
    os.unlink(at / 'model.ckpt.index')
    for name in (
        str(tmp_path / 'elsewhere/model.ckpt'),
        '../elsewhere/model.ckpt',
        'below/../../elsewhere/model.ckpt',
    ):
        (at / 'checkpoint').write_text(f'model_checkpoint_path: "{name}"\n')
        with pytest.raises(InputError, match='there is no'):
            checkpoint.latest(str(at))
    for name in (
        'C:\\\\runs\\\\elsewhere\\\\model.ckpt',
        '\\\\host\\x\\model.ckpt',
        'C:/x/model.ckpt',
    ):  # of Windows
        (at / 'checkpoint').write_text(f'model_checkpoint_path: "{name}"\n')
        with pytest.raises(InputError, match='there is no'):
            checkpoint.latest(str(at))
        (at / 'model.ckpt.index').touch()
        assert checkpoint.latest(str(at)) == str(at / 'model.ckpt')
        os.unlink(at / 'model.ckpt.index')
    (at / 'checkpoint').write_text('model_checkpoint_path: "below/model.ckpt"\n')
    with pytest.raises(InputError, match='there is no'):
        checkpoint.latest(str(at))


def test_a_checkpoint_of_another_number_of_heads_is_refused(graph, toy_model, tmp_path):
    """The shapes of its weights are the same."""
    run = runs.a_run(toy_model, tmp_path)
    run.save(graph, TrainState(1))
    other = toy_model[1].__class__(**{**toy_model[1].values(), 'n_head': 2})
    with pytest.raises(InputError, match='was trained from a model of other sizes'):
        run_folder.check_start(run.folder, toy_model[0], 'latest', other)


@pytest.mark.parametrize('sizes, message', [
    ({'n_embd': 64}, r"model/wpe is float32 \[32, 32\], but hparams.json makes it float32 \[32, 64\]"),
    ({'n_layer': 3}, 'model/h2/ln_1/g is missing'),
    ({'n_layer': 1}, r'model\.ckpt has more layers than hparams\.json'),
])
def test_a_checkpoint_of_other_sizes_is_refused(toy_model, sizes, message):
    with pytest.raises(InputError, match=message):
        checkpoint.check_sizes(
            checkpoint.resolve_path(toy_model[0]),
            toy_model[1].__class__(**{**toy_model[1].values(), **sizes})
        )


def test_a_checkpoint_of_another_type_is_refused(toy_model, tmp_path):
    with toy.session() as s:
        for name, value in toy_model[2].items():
            tf.get_variable(name, initializer=value.astype(np.float64))
        s.run(tf.global_variables_initializer())
        tf.train.Saver().save(s, str(tmp_path / 'model'), global_step=40)
    with pytest.raises(
        InputError, match=r'model-40: model/\S+ is float64 .*, but hparams\.json makes it float32'
    ):
        checkpoint.find(toy_model[0], checkpoint_name=str(tmp_path))


@pytest.mark.parametrize(
    'begin',
    [
        lambda at: generator.load('toy', at),
        lambda at: likelihood.Likelihood('toy', at),
        lambda at: export.export('toy', f'{at}/out', models_dir=at),
        lambda at: convert.to_hf('toy', f'{at}/out', models_dir=at),
    ],
)
@pytest.mark.parametrize(
    'sizes', [{'n_layer': 1000}, {'n_embd': 8192, 'n_layer': 900}, {'n_vocab': 2**31 - 1}]
)
def test_sizes_of_another_model_are_refused_before_its_graph_is_built(
    toy_model, tmp_path, monkeypatch, begin, sizes
):
    shutil.copytree(toy_model[0], tmp_path / 'toy')
    (tmp_path / 'toy' / 'hparams.json').write_text(json.dumps({**toy_model[1].values(), **sizes}))
    monkeypatch.setattr(tf, 'Session', None)
    monkeypatch.setattr(tf, 'get_variable', None)
    with pytest.raises(InputError, match=r'toy/model\.ckpt'):
        begin(str(tmp_path))


def damage_flip(path):
    data = bytearray(pathlib.Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    pathlib.Path(path).write_bytes(data)


@pytest.mark.parametrize('suffix, damage', [
    ('data-00000-of-00001', damage_flip), ('index', lambda path: os.truncate(path, 100)),
    ('data-00000-of-00001', lambda path: os.truncate(path, 1000)), ('data-00000-of-00001', os.unlink),
    ('index', lambda path: pathlib.Path(path).write_bytes(b'<html>not found</html>' * 50)),
])
def test_damaged_checkpoints_are_one_line(graph, toy_model, tmp_path, suffix, damage):
    shutil.copytree(toy_model[0], tmp_path / 'toy')
    damage(str(tmp_path / 'toy' / f'model.ckpt.{suffix}'))
    with pytest.raises(InputError, match=r'toy/model\.ckpt cannot be read, use another checkpoint') as error:
        checkpoint.restore(
            graph, checkpoint.resolve_path(str(tmp_path / 'toy')), checkpoint.model_variables()
        )
    assert '\n' not in str(error.value)


def test_what_tensorflow_cannot_write_is_told_with_the_remedy_that_fits(graph, toy_model, tmp_path):
    run = runs.a_run(toy_model, tmp_path)
    for number in paths.REMEDIES:
        with pytest.raises(run_folder.NotSaved) as raised, run.saving(run.path('model-1')):
            raise tf.errors.UnknownError(
                None, None, f'{run.folder}/model-1.tempstate; {os.strerror(number)}\n\t [[save]]')
        assert raised.value.__cause__.errno == number
        assert str(raised.value).endswith(f'the last: {paths.REMEDIES[number]}')


def test_restored_variables_own_their_memory(tmp_path, monkeypatch):
    """An update would copy an array that came from outside, and free it only when it has ended."""
    toy.write_model(tmp_path)
    reader, arrays = type(tf.train.load_checkpoint(str(tmp_path))), []
    get_tensor = reader.get_tensor

    def recorded(self, name):
        array = get_tensor(self, name)
        arrays.append(weakref.ref(array))
        return array
    monkeypatch.setattr(reader, 'get_tensor', recorded)
    with toy.session() as session:
        model.weights(checkpoint.load_hparams(tmp_path / 'hparams.json'))
        checkpoint.restore(session, str(tmp_path / 'model.ckpt'), checkpoint.model_variables())
        session.run(tf.no_op())  # TensorFlow lets arrays go when a next call begins
        assert len(arrays) == 28 and all(array() is None for array in arrays)
