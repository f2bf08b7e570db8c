import itertools
import os
import subprocess

from command_line.flags import PRECISIONS

import numpy as np
import pytest
import runs
import tensorflow.compat.v1 as tf
import toy
from tiny_vocab import ENGLISH

from fast import kernels
from training import trainer
from training.graph import Graph

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('usual_signals')]


@pytest.mark.parametrize('precision', PRECISIONS)
def test_products_are_rounded_to_tf32_only_where_it_is_asked_for(flags, precision):
    tf.config.experimental.enable_tensor_float_32_execution(precision != 'tf32')
    trainer.train(flags(steps=1, precision=precision))
    assert tf.config.experimental.tensor_float_32_execution_enabled() == (precision == 'tf32')


def test_operations_can_be_deterministic_which_exact_resume_on_gpus_needs(flags):
    done = subprocess.run(
        runs.command_of(flags(steps=1, val_every=1)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, 'TF_DETERMINISTIC_OPS': '1'},
    )
    assert done.returncode == 0, done.stderr


def test_accumulated_batches_give_the_update_of_one_large_batch(flags, world):
    """Of windows with and without padding."""
    (world / 'short').mkdir(exist_ok=True)
    for i, words in enumerate(ENGLISH.split('"')):
        (world / 'short' / f'{i}.txt').write_text(words)
    options = {'dataset': str(world / 'short'), 'optimizer': 'sgd', 'learning_rate': 0.5, 'steps': 3}
    trainer.train(flags(run_name='large', batch_size=6, **options))
    trainer.train(flags(run_name='small', batch_size=2, accumulate_gradients=3, memory_saving_gradients=True,
                        **options))
    large, small = (
        tf.train.load_checkpoint(tf.train.latest_checkpoint(os.path.join(flags().checkpoint_dir, name)))
        for name in ('large', 'small')
    )
    for name in large.get_variable_to_shape_map():
        np.testing.assert_allclose(small.get_tensor(name), large.get_tensor(name), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        *[list(runs.events(flags(run_name=name), 'loss').values()) for name in ('large', 'small')], rtol=1e-5
    )


def test_the_gradient_norm_is_that_of_finite_differences(flags, world):
    made = flags(steps=1, optimizer='sgd', learning_rate=1e-3)
    trainer.train(made)
    start, end = (tf.train.load_checkpoint(path) for path in (
        str(world / 'models' / 'toy' / 'model.ckpt'), os.path.join(made.checkpoint_dir, 'run1', 'model-1')))
    moved = [(start.get_tensor(name).astype(float) - end.get_tensor(name)) / 1e-3
             for name in start.get_variable_to_shape_map()]
    expected = np.sqrt(sum((each**2).sum() for each in moved))  # SGD moves by the gradient itself
    np.testing.assert_allclose(runs.events(made, 'gradient_norm')[1], expected, rtol=1e-2)


def test_bfloat16_trains_as_float32_does(flags, monkeypatch):
    """To 1%, with weights and slots that are float32."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 0)
    losses = []
    for precision in ('float32', 'bfloat16'):
        made = flags(run_name=precision, precision=precision, steps=60, batch_size=4)
        trainer.train(made)
        losses.append(list(runs.events(made, 'loss').values()))
        reader = tf.train.load_checkpoint(
            tf.train.latest_checkpoint(os.path.join(made.checkpoint_dir, precision))
        )
        assert set(reader.get_variable_to_dtype_map().values()) == {tf.float32}
    assert losses[0][-1] < losses[0][0] - 0.5  # something was learnt
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'precision': 'bfloat16'},
        {'memory_saving_gradients': True, 'accumulate_gradients': 2, 'val_every': 2},
    ],
)
def test_xla_gives_the_same_losses(flags, options):
    for name in ('plain', 'xla'):
        trainer.train(flags(run_name=name, xla=name == 'xla', steps=4, **options))
    for tag in ('loss', 'val_loss', 'gradient_norm'):
        plain, xla = (runs.events(flags(run_name=name), tag) for name in ('plain', 'xla'))
        assert plain.keys() == xla.keys()
        tolerance = 1e-4 if 'precision' not in options else 1e-2
        np.testing.assert_allclose(list(xla.values()), list(plain.values()), rtol=tolerance)


@pytest.mark.parametrize('options', [
    {}, {'precision': 'bfloat16'}, {'memory_saving_gradients': True}, {'xla': True}])
@pytest.mark.parametrize('least_fused', [0, 1 << 14])
def test_isolated_documents_give_what_documents_one_by_one_do(flags, monkeypatch, options, least_fused):
    """Losses and gradients."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', least_fused)
    hp, end, rng = toy.hparams(), 556, np.random.default_rng(1)
    documents = [[*rng.integers(0, end, n), end] for n in (9, 1, 6, 20, 3, 7)]
    rows = [[*itertools.chain(*documents[:3])], [*itertools.chain(*documents[3:])]]  # 33 tokens: one is cut
    rows, documents[-1] = [row[:hp.n_ctx] for row in rows], documents[-1][:-1]

    def padded(rows):
        tokens = np.full([len(rows), hp.n_ctx], -1)
        for row, ids in zip(tokens, rows, strict=True):
            row[:len(ids)] = ids
        return tokens

    def results(rows, end):
        tokens = padded(rows)
        labels = np.where(tokens % 5 == 0, -1, tokens)  # as of prompts
        with toy.session() as s:
            graph = Graph(flags(optimizer='sgd', **options), hp, None, end)
            toy.assign(s, toy.weights(hp))
            total, count, grads = graph.losses_and_gradients(*graph.batch, graph.weights)
            feed = dict(zip(graph.batch, (np.maximum(tokens, 0), labels), strict=True))
            total, count, grads = s.run([total, count, [tf.convert_to_tensor(grad) for grad in grads]], feed)
        return total, count, [grad * tokens[:, 1:].size for grad in grads]
    total, count, grads = results(rows, end)
    expected_total, expected_count, expected = results(documents, None)
    assert count == expected_count == sum(id % 5 > 0 for document in documents for id in document[1:])
    tolerance = 2e-2 if 'precision' in options else 1e-5
    np.testing.assert_allclose(total, expected_total, rtol=tolerance)
    for grad, other in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad, other, atol=tolerance * np.abs(other).max())
    assert abs(results(rows, None)[0] - total) > 1  # else this would show nothing
