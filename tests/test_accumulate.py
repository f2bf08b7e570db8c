import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import toy

from accumulate import AccumulatingOptimizer


def updates(batches, opt):
    """The variable and the losses shown after an update by each list of batches, for a loss of mean((w -
    x)²)."""
    with toy.session() as s:
        w = tf.Variable([1.0, -2.0], use_resource=True)
        x = tf.placeholder(tf.float32, [None, 2])
        accumulating = AccumulatingOptimizer(opt, [w])
        reset = accumulating.reset()
        compute = accumulating.compute_gradients(tf.reduce_mean(tf.square(w - x)))
        apply = accumulating.apply_gradients()
        s.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        losses = []
        for group in batches:
            s.run(reset)
            for batch in group:
                s.run(compute, {x: batch})
            losses.append(s.run(apply))
        return s.run(w), losses


@pytest.mark.parametrize('sizes', [[4], [2, 2], [1, 1, 1, 1]])
def test_n_batches_give_the_update_of_one_batch_of_all(sizes):
    data = np.random.RandomState(0).standard_normal([3, 4, 2])
    w, losses = np.array([1.0, -2.0]), []
    for rows in data:  # gradient descent by hand
        losses.append(np.mean((w - rows) ** 2))
        w = w - 0.1 * (w - rows).mean(axis=0)
    groups = [np.split(rows, np.cumsum(sizes)[:-1]) for rows in data]
    found, shown = updates(groups, tf.train.GradientDescentOptimizer(0.1))
    np.testing.assert_allclose(found, w, rtol=1e-6)
    np.testing.assert_allclose(shown, losses, rtol=1e-6)


def test_sums_are_no_part_of_a_checkpoint():
    with toy.session():
        w = tf.Variable([1.0], use_resource=True)
        AccumulatingOptimizer(tf.train.AdamOptimizer(), [w])
        assert [v.op.name for v in tf.global_variables()] == [w.op.name]
