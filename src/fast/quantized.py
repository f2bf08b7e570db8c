"""Matrix products in any precision; matrices as sampling reads them fastest, in bfloat16 or int8."""
import typing

import tensorflow.compat.v1 as tf

from fast.kernels import in_kernel, materialized, optimization_barrier


class QuantizedMatrix(typing.NamedTuple):
    """A matrix output by output: bfloat16 or int8 [n_out, n_in], times scale, float32 [n_out]."""
    values: tf.Tensor
    scale: tf.Tensor


def quantize(name, weight, dtype):  # a weight of model.weight_shapes -> QuantizedMatrix; no matrix: as it is
    """int8: each output's weights in steps of 1/127 of its largest (Jacob et al. 2018, "Quantization and
    training of neural networks for efficient integer-arithmetic-only inference", section 3, with zero at
    0)."""
    if not name.endswith(('/w', 'wte')):
        return weight
    matrix = weight if name == 'wte' else tf.transpose(weight[0])
    if dtype != tf.int8:
        return QuantizedMatrix(tf.cast(matrix, dtype), tf.ones([matrix.shape[0]]))
    largest = tf.reduce_max(tf.abs(matrix), axis=1)
    scale = tf.where_v2(largest > 0, largest / 127, 1.0)
    return QuantizedMatrix(tf.cast(tf.round(matrix / scale[:, None]), tf.int8), scale)


def with_precision(w, dtype):  # {name: tensor} -> {name: tensor}
    """The weights with matrices of products in dtype. 'output' is added: the token embedding for the output
    layer, beside the float32 one for looking tokens up."""
    products = {name: tf.cast(w[name], dtype) for name in w if '/attn/' in name or '/mlp/' in name}
    return {**w, **products, 'output': tf.cast(w['wte'], dtype)}


def lookup(matrix, rows):  # [N, E], int32 [...] -> [..., E]
    """Rows of a matrix."""
    if not isinstance(matrix, QuantizedMatrix):
        return tf.gather(matrix, rows)
    return tf.cast(tf.gather(matrix.values, rows), tf.float32) * tf.gather(matrix.scale, rows)[..., None]


def matmul(x, w, transposed=False):  # [N, n_in], [n_in, n_out] (transposed: [n_out, n_in]) -> [N, n_out]
    """The product in w's type. By a QuantizedMatrix: of activations in bfloat16, added up in float32."""
    if not isinstance(w, QuantizedMatrix):
        x = optimization_barrier(tf.cast(x, w.dtype))
        return optimization_barrier(tf.matmul(x, w, transpose_b=transposed))
    x = tf.cast(x, tf.bfloat16)
    if not in_kernel():
        product = tf.cast(tf.matmul(x, tf.cast(w.values, tf.bfloat16), transpose_b=True), tf.float32)
    elif x.shape[0] == 1:  # compiled into a loop that reads the values as they are stored
        row = materialized(tf.cast(x, tf.float32))
        product = optimization_barrier(tf.matmul(row, tf.cast(w.values, tf.float32), transpose_b=True))
    elif w.values.dtype == tf.int8:
        product = int8_matmul(tf.cast(x, tf.float32), w.values)
    else:
        x = optimization_barrier(x)
        product = optimization_barrier(tf.matmul(x, w.values, transpose_b=True, output_type=tf.float32))
    return product * w.scale


def int8_matmul(x, values):  # float32 [N, n_in], int8 [n_out, n_in] -> float32 [N, n_out]
    """x in 2 · 127² steps up to each row's largest, as two numbers of int8 each: products of int8 add up in
    int32 exactly and at the processor's full speed, and one int8 would be too coarse for activations."""
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    step = tf.where_v2(largest > 0, largest / 127 ** 2, 1.0)
    steps = tf.round(x / step)
    high = tf.round(steps / 127)
    parts = optimization_barrier(tf.cast(tf.concat([high, steps - 127 * high], axis=0), tf.int8))
    sums = optimization_barrier(tf.matmul(parts, values, transpose_b=True, output_type=tf.int32))
    high, low = tf.split(tf.cast(sums, tf.float32), 2)
    return (127 * high + low) * step
