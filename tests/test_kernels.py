import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import toy

import memory_saving_gradients
import model
from fast import kernels


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 0)


@kernels.fused
def scaled_sine(x, factor, n):
    """sin(factor·x)·n, of which n, whole numbers, has no gradient."""
    return tf.sin(x * factor) * tf.cast(n, tf.float32)[:, None]


def calls(graph):
    return [op for op in graph.get_operations() if 'PartitionedCall' in op.type]


@pytest.mark.parametrize('shape', [[2, 3], [None, 3], [2, None]])
def test_results_and_gradients_are_those_worked_out_by_hand(shape):
    x, n = np.array([[0.1, 0.2, 0.3], [1, 2, 3]]), np.array([2, 3])
    with toy.session() as s:
        X = tf.placeholder(tf.float32, shape)
        factor = tf.constant([0.5, 1, 2])
        y = scaled_sine(X, factor, tf.constant(n, tf.int32))
        # Compiled where all sizes but the first are known.
        assert len(calls(s.graph)) == (shape[1] is not None)
        dx, dfactor = tf.gradients(3 * y, [X, factor])
        y, dx, dfactor = s.run([y, dx, dfactor], {X: x})
    factor = np.array([0.5, 1, 2])
    np.testing.assert_allclose(y, np.sin(factor * x) * n[:, None], rtol=1e-5)
    np.testing.assert_allclose(dx, 3 * np.cos(factor * x) * factor * n[:, None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        dfactor, (3 * np.cos(factor * x) * x * n[:, None]).sum(0), rtol=1e-5, atol=1e-6
    )


def test_one_kernel_serves_all_calls_of_a_size():
    with toy.session() as s:
        x = tf.ones([2, 3])
        for _ in range(4):
            x = scaled_sine(x, tf.ones([3]), tf.ones([2], tf.int32))
        assert len({op.get_attr('f').name for op in calls(s.graph)}) == 1


def test_a_copy_of_an_operation_takes_its_gradient_from_what_was_computed_again():
    """With s(x) = sin(2·x): what lies between the checkpoints x and s(s(x)) of s(s(s(x))) is not kept."""
    with toy.session() as s:
        x = tf.constant([[0.3, 0.7]])
        two, one = tf.constant([2.0, 2.0]), tf.constant([1], tf.int32)
        points = [tf.identity(x)]
        for _ in range(3):
            points.append(scaled_sine(points[-1], two, one))
        first = set(s.graph.get_operations())
        found, = memory_saving_gradients.gradients(points[3], [x], checkpoints=[points[0], points[2]])
        kept = {t.op for op in set(s.graph.get_operations()) - first for t in op.inputs if t.op in first}
        assert {points[0].op, points[2].op} <= kept and points[1].op not in kept
        found = s.run(found)
    x, expected = np.array([[0.3, 0.7]]), 1
    for _ in range(3):
        x, expected = np.sin(2 * x), expected * 2 * np.cos(2 * x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_gradient_from_the_result_is_the_only_one():
    """Softmax: its gradient taken from the result is that of finite differences, once, not twice."""
    rng = np.random.RandomState(1)
    scores, upstream = rng.standard_normal([1, 2, 3, 5]), rng.standard_normal([1, 2, 3, 5])

    def reference(scores):
        hidden = np.arange(5)[None] > 2 + np.arange(3)[:, None]
        e = np.where(hidden, 0, np.exp(scores))
        return (e / e.sum(-1, keepdims=True) * upstream).sum()

    with toy.session() as s:
        X = tf.constant(scores, tf.float32)
        y = model.causal_softmax(X)
        assert len(calls(s.graph)) == 1
        found, = s.run(tf.gradients(y, X, upstream.astype(np.float32)))
    expected = np.zeros_like(scores)
    for i in np.ndindex(scores.shape):
        step = np.zeros_like(scores)
        step[i] = 1e-6
        expected[i] = (reference(scores + step) - reference(scores - step)) / 2e-6
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_graph_in_which_nothing_is_to_be_compiled_has_no_kernels_in_loops_and_functions_either():
    double = kernels.kernel(lambda x: 2 * x)

    def both(x):
        return double(scaled_sine(x, tf.ones([3]), tf.ones([2], tf.int32)))
    results = []
    for nothing in (False, True):
        with toy.session() as s:
            if nothing:
                kernels.disable_xla()
            y = both(tf.ones([2, 3]))
            looped = tf.while_loop(lambda i, x: i < 1, lambda i, x: (i + 1, both(x)), (0, tf.ones([2, 3])))[1]
            assert (b'_XlaMustCompile' in s.graph.as_graph_def().SerializeToString()) != nothing
            assert (len(calls(s.graph)) == 2) != nothing
            results += s.run([y, looped])
    np.testing.assert_allclose(results, [np.full([2, 3], 2 * np.sin(1))] * 4, rtol=1e-6)


@pytest.mark.parametrize('function', [kernels.optimization_barrier, kernels.materialized])
def test_what_is_said_of_loops_changes_no_bit_and_no_shape(function):
    values = np.float32([[0, -0.0, 1e-30, -3e38, 1 / 3, 7]])
    seen = []

    @kernels.kernel
    def twice(x):
        seen.append(function(2 * x))
        return function(2 * x)
    with toy.session() as s:
        found = s.run(twice(tf.constant(values / 2)))
    assert seen[0].shape == values.shape
    assert found.tobytes() == values.tobytes()
