import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import toy

import memory_saving_gradients
import model
from errors import InputError


@pytest.mark.parametrize('n_layer', [1, 2, 5])
def test_gradients_are_those_of_tensorflow(n_layer):
    hp = toy.hparams(n_layer=n_layer)
    tokens = np.random.RandomState(1).randint(0, hp.n_vocab, [2, hp.n_ctx])
    with toy.session() as s:
        X = tf.constant(tokens, tf.int32)
        total, count = model.loss(model.model(hp, X)['logits'], X)
        variables = tf.trainable_variables()
        plain = tf.gradients(total / count, variables)
        before = len(s.graph.get_operations())
        saving = memory_saving_gradients.gradients(total / count, variables)
        recomputed = [op for op in s.graph.get_operations()[before:] if op.name.startswith('recomputed')]
        # Attention's two batch matmuls again for every layer but the last, which is not recomputed.
        assert sum(op.type == 'BatchMatMulV2' and '/gradients' not in op.name for op in recomputed) == 2 * (
            n_layer - 1
        )
        toy.assign(s, toy.weights(hp))
        for expected, found in zip(*s.run([[tf.convert_to_tensor(g) for g in plain], saving]), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_chain_worked_out_by_hand():
    """y = (a·(a·x)²)², so dy/dx = 4·a⁶·x³ and dy/da = 6·a⁵·x⁴."""
    with toy.session() as s:
        a, x = tf.constant(1.5), tf.constant(0.5)
        first = tf.square(a * x)
        second = a * first
        y = tf.square(second)
        found = memory_saving_gradients.gradients(y, [x, a], checkpoints=[second, first])
        np.testing.assert_allclose(s.run(found), [4 * 1.5**6 * 0.5**3, 6 * 1.5**5 * 0.5**4], rtol=1e-6)


def test_what_has_no_gradient_is_none():
    with toy.session():
        x = tf.constant(2.0)
        middle = tf.square(x)
        found = memory_saving_gradients.gradients(
            tf.sqrt(middle), [x, tf.constant(1.0)], checkpoints=[middle]
        )
    assert found[0] is not None and found[1] is None


def test_a_graph_without_checkpoints_is_refused():
    with toy.session(), pytest.raises(InputError, match='no checkpoint lies before ys'):
        memory_saving_gradients.gradients(tf.square(tf.constant(2.0)), [tf.constant(1.0)])
