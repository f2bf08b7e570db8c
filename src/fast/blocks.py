"""Attention a block of queries at a time, for training; layers a few at a time in a kernel, for sampling."""
import functools

import tensorflow as tf2
import tensorflow.compat.v1 as tf

from fast.kernels import kernel

ATTENTION_BLOCK = 256  # queries
LAYERS_IN_KERNEL = 4  # each kernel costs 0.3 ms to start, but a larger one takes longer to compile


def in_query_blocks(attention):
    """Decorates causal attention of [B, H, T, D] x 3: keys that no query of a block sees cost nothing."""
    @functools.wraps(attention)
    def call(q, k, v):
        T = q.shape.as_list()[2]
        if T is None or T <= ATTENTION_BLOCK:
            return attention(q, k, v)
        results = []
        for start in range(0, T, ATTENTION_BLOCK):
            end = min(start + ATTENTION_BLOCK, T)
            # tf.slice, since the gradient of q[:, :, start:end] is slow.
            queries = tf.slice(q, [0, 0, start, 0], [-1, -1, end - start, -1])
            keys, values = (tf.slice(x, [0, 0, 0, 0], [-1, -1, end, -1]) for x in (k, v))
            results.append(attention(queries, keys, values))
        return tf.concat(results, axis=2)
    return call


def in_layer_kernels(blocks):
    """Decorates model.blocks: kernels of a few layers, which are alike and so compiled once."""
    compiled = kernel(blocks)

    def without_first_axis(weight):  # [1, n_in, n_out] -> [n_in, n_out]
        # Reshaped within the kernel, it would make products slow.
        return tf.squeeze(weight, 0) if weight.shape.rank == 3 else weight

    @functools.wraps(blocks)
    def call(x, layers, n_head, pasts, mask):
        layers, presents = tf2.nest.map_structure(without_first_axis, layers), []
        for first in range(0, len(layers), LAYERS_IN_KERNEL):
            part = slice(first, first + LAYERS_IN_KERNEL)
            x, new = compiled(x, layers[part], n_head, pasts[part], mask)
            presents += new
        return x, presents
    return call
