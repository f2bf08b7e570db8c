"""A run of the original code or of its fine-tuning fork, laid out by hand, is used as it is by every
script."""

import json
import pathlib

from command_line import cli
from command_line.flags import TrainFlags

import numpy as np
import numpy_gpt2
import pytest
import reference
import safetensors.numpy
import tensorflow.compat.v1 as tf
import toy
from tiny_vocab import ENGLISH

import encoder
import evaluate
import interactive_conditional_samples
from convert import to_hf
from errors import InputError
from storage import checkpoint
from training import trainer


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A folder with the model `toy` that runs are trained from, and its sizes."""
    models = tmp_path_factory.mktemp('models')
    hp, _ = toy.write_model(models / 'toy')
    return models, hp


@pytest.fixture(params=['weights', 'weights and Adam'])
def run(request, models, tmp_path):
    """checkpoint/old as the fork leaves it after 123 updates, and its weights: no hparams.json, no
    vocabulary."""
    directory, values = tmp_path / 'checkpoint' / 'old', toy.weights(models[1], seed=5, scale=0.2)
    directory.mkdir(parents=True)
    written = dict(values)
    if request.param == 'weights and Adam':
        written.update(
            {
                f'{name}/{slot}': np.full_like(value, 0.5)
                for name, value in values.items()
                for slot in ('Adam', 'Adam_1')
            },
            beta1_power=np.float32(0.9),
            beta2_power=np.float32(0.999),
        )
    with toy.session() as s:
        for name, value in written.items():
            tf.get_variable(name, initializer=value, use_resource=False)
        s.run(tf.global_variables_initializer())
        saver = tf.train.Saver()
        saver.save(s, str(directory / 'model'), global_step=100)
        saver.save(s, str(directory / 'model'), global_step=123)
    (directory / 'counter').write_text('123\n')
    # As it is where the run was made in a folder that is now elsewhere.
    index = (directory / 'checkpoint').read_text().replace('"model-', '"/content/gpt-2/checkpoint/old/model-')
    (directory / 'checkpoint').write_text(index)
    return directory, values


def test_it_is_sampled(models, run, capsys):
    model_path, hp = models
    directory, values = run
    enc = encoder.get_encoder('toy', str(model_path))
    prompt = enc.encode('The keeper')
    cli.run(interactive_conditional_samples.interact_model, [
        '--models_dir', str(model_path), '--model_name', 'toy', '--checkpoint', str(directory / 'model-123'),
        '--prompt', 'The keeper', '--temperature', '0', '--length', '12'])
    sample = capsys.readouterr().out.partition('\n')[2]
    assert sample == enc.decode(numpy_gpt2.greedy(values, prompt, hp.n_head, 12)) + '\n'


def test_it_is_evaluated(models, run, tmp_path, capsys):
    model_path, hp = models
    (tmp_path / 'text.txt').write_text(ENGLISH[:200])
    cli.run(
        evaluate.COMMANDS,
        [
            'perplexity',
            '--data',
            str(tmp_path / 'text.txt'),
            '--models_dir',
            str(model_path),
            '--model_name',
            'toy',
            '--checkpoint',
            str(run[0]),
            '--boundary',
            'none',
            '--json',
        ],
    )
    found = {each['name']: each['value'] for each in json.loads(capsys.readouterr().out)['figures']}
    tokens = encoder.get_encoder('toy', str(model_path)).encode(ENGLISH[:200])
    losses = reference.nats(reference.numpy_model(hp, run[1]), tokens, hp.n_ctx, hp.n_ctx // 2)
    assert found['perplexity per token'] == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)


def test_it_is_converted(models, run, tmp_path):
    to_hf('toy', str(tmp_path / 'hf'), models_dir=str(models[0]), checkpoint=str(run[0]))
    found = safetensors.numpy.load_file(tmp_path / 'hf' / 'model.safetensors')
    np.testing.assert_array_equal(
        found['transformer.h.1.mlp.c_proj.weight'], run[1]['model/h1/mlp/c_proj/w'][0]
    )
    np.testing.assert_array_equal(found['transformer.wte.weight'], run[1]['model/wte'])
    assert len(found) == len(run[1])


@pytest.mark.parametrize('restore_from', ['latest', 'path'])
def test_training_goes_on_from_it(models, run, tmp_path, restore_from, capsys):
    directory, values = run
    (tmp_path / 'text.txt').write_text(ENGLISH)

    def train(**changes):
        return trainer.train(
            TrainFlags(
                **{
                    'dataset': str(tmp_path / 'text.txt'),
                    'model_name': 'toy',
                    'models_dir': str(models[0]),
                    'combine': 1,
                    'run_name': 'old' if restore_from == 'latest' else 'new',
                    'checkpoint_dir': str(tmp_path / 'checkpoint'),
                    'restore_from': 'latest' if restore_from == 'latest' else str(directory / 'model-123'),
                    'seed': 1,
                    'sample_every': 0,
                    'save_every': 0,
                    'optimizer': 'sgd',
                    **changes,
                }
            )
        )

    # An update so small that it rounds to nothing: what is saved is what was loaded.
    assert train(steps=124, learning_rate=1e-30) == 124
    assert (
        'model-123 has no training state beside it: the optimizer and the data start anew'
        in capsys.readouterr().out
    )
    saved = directory if restore_from == 'latest' else directory.parent / 'new'
    assert (saved / 'counter').read_text() == '124\n'
    reader = tf.train.load_checkpoint(checkpoint.resolve_path(str(saved)))
    assert checkpoint.resolve_path(str(saved)) == str(saved / 'model-124')
    for name, value in values.items():
        np.testing.assert_array_equal(reader.get_tensor(name), value)
    assert train(steps=126, restore_from='latest', learning_rate=0.01) == 126
    if restore_from == 'latest':  # the older ones are kept as long as five are not exceeded
        assert {path.name for path in pathlib.Path(directory).glob('model-*.index')} == {
            f'model-{step}.index' for step in (100, 123, 124, 126)}


def test_without_its_model_the_remedy_is_told(run):
    with pytest.raises(InputError) as raised:
        to_hf('old', str(run[0].parent.parent / 'hf'), checkpoint_dir=str(run[0].parent))
    assert f"for a run of other code, give its model and --checkpoint {run[0]}/" in str(raised.value)
