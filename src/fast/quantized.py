"""Matrix products in any precision; matrices in bfloat16 or int8 for sampling."""
import typing

import tensorflow.compat.v1 as tf

from fast.kernels import float32, in_kernel, materialized, optimization_barrier


class QuantizedMatrix(typing.NamedTuple):
    """values, bfloat16 or int8 [n_out, n_in], times scale, float32 [n_out]."""
    values: tf.Tensor
    scale: tf.Tensor


def quantize(name, weight, dtype):  # -> weight, or QuantizedMatrix
    """int8: in steps of 1/127 of an output's largest weight (Jacob et al. 2018, section 3, zero at 0)."""
    if dtype == tf.float32 or not name.endswith(('/w', 'wte')):
        return weight
    matrix = weight if name == 'wte' else tf.transpose(weight[0])
    if dtype != tf.int8:
        return QuantizedMatrix(tf.cast(matrix, dtype), tf.ones([matrix.shape[0]]))
    largest = tf.reduce_max(tf.abs(matrix), 1)
    scale = tf.where_v2(largest > 0, largest / 127, 1.0)
    return QuantizedMatrix(tf.cast(tf.round(matrix / scale[:, None]), tf.int8), scale)


def with_precision(w, dtype):  # -> w with products' factors in dtype
    products = {name: tf.cast(w[name], dtype) for name in w if '/attn/' in name or '/mlp/' in name}
    return {**w, **products, 'output': tf.cast(w['wte'], dtype)}


def lookup(matrix, rows):  # [N, E], int32 [...] -> [..., E]
    if not isinstance(matrix, QuantizedMatrix):
        return tf.gather(matrix, rows)
    return float32(tf.gather(matrix.values, rows)) * tf.gather(matrix.scale, rows)[..., None]


def matmul(x, w, transposed=False):  # [N, n_in], [n_in, n_out] (transposed: [n_out, n_in]) -> [N, n_out]
    """Of w's type; float32 if w is QuantizedMatrix, always transposed."""
    if not isinstance(w, QuantizedMatrix):
        return product(tf.cast(x, w.dtype), w, transpose_b=transposed)
    x = tf.cast(x, tf.bfloat16)
    if not in_kernel():
        result = float32(tf.matmul(x, tf.cast(w.values, tf.bfloat16), transpose_b=True))
    elif x.shape[0] == 1:  # becomes a loop that reads values as stored
        row, values = materialized(float32(x)), float32(w.values)
        result = optimization_barrier(tf.matmul(row, values, transpose_b=True))
    elif w.values.dtype == tf.int8:
        result = int8_matmul(float32(x), w.values)
    else:
        result = product(x, w.values, transpose_b=True, output_type=tf.float32)
    return result * w.scale


def product(x, y, **options):
    return optimization_barrier(tf.matmul(optimization_barrier(x), y, **options))


def int8_matmul(x, values):  # float32 [N, n_in], int8 [n_out, n_in] -> float32 [N, n_out]
    """x as a coarse and a fine number of int8: docs/decisions/int8-activations.md."""
    largest = tf.reduce_max(tf.abs(x), -1, keepdims=True)
    step = tf.where_v2(largest > 0, largest / 127 ** 2, 1.0)
    steps = tf.round(x / step)
    high = tf.round(steps / 127)
    parts = tf.cast(tf.concat([high, steps - 127 * high], 0), tf.int8)
    high, low = tf.split(product(parts, values, transpose_b=True, output_type=tf.int32), 2)
    return (127 * float32(high) + float32(low)) * step
