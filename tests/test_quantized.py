import numpy as np
import numpy_gpt2
import tensorflow.compat.v1 as tf
import toy

from fast.quantized import quantize


def test_int8_has_a_scale_for_each_output():
    rng = np.random.RandomState(1)
    value = (rng.standard_normal([1, 7, 5]) * [0.01, 1, 100, 0, 1e-30]).astype(np.float32)
    for name, matrix in (('h0/mlp/c_fc/w', value), ('wte', value[0].T)):
        with toy.session() as s:
            found = s.run(quantize(name, tf.constant(matrix), tf.int8))
        assert found.values.dtype == np.int8 and found.values.shape == (5, 7)
        np.testing.assert_allclose(
            found.scale, np.where(np.abs(value[0]).max(0) > 0, np.abs(value[0]).max(0) / 127, 1), rtol=1e-6
        )
        assert (np.abs(found.values).max(axis=1) == [127, 127, 127, 0, 127]).all()
        error = np.abs(value[0].T - found.values * found.scale[:, None].astype(np.float64))
        assert (error <= found.scale[:, None] * 0.5001).all()


def test_bfloat16_is_rounded_to_nearest_and_what_is_no_matrix_is_left_as_it_is():
    value = np.random.RandomState(1).standard_normal([1, 9, 4]).astype(np.float32)
    with toy.session() as s:
        found = quantize('h1/attn/c_proj/w', tf.constant(value), tf.bfloat16)
        assert found.values.dtype == tf.bfloat16 and (s.run(found.scale) == 1).all()
        assert (s.run(tf.cast(found.values, tf.float32)) == numpy_gpt2.rounded(value)[0].T).all()
        for name in ('wpe', 'h0/ln_1/g', 'h0/attn/c_attn/b'):
            kept = tf.constant(value[0])
            assert quantize(name, kept, tf.int8) is kept
