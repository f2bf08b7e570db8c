"""The KV cache of sampling: a list of L pairs of buffers for keys and values, [B, H, S, D].

Of the S positions n_past are filled. Rows end together: shorter ones are padded at their left with -1, and
`start`, int32 [B], is where each begins.
"""
import tensorflow as tf2
import tensorflow.compat.v1 as tf
from tensorflow.compiler.tf2xla.python import xla

from fast.kernels import in_kernel


def empty_cache(hparams, B, size):  # -> as the cache
    empty = tf.zeros([B, hparams.n_head, size, hparams.n_embd // hparams.n_head])
    return [(empty, empty)] * hparams.n_layer


def row_starts(context):  # int32 [B, T] -> int32 [B]
    return tf.reduce_sum(tf.cast(context < 0, tf.int32), axis=1)


def positions_and_mask(T, cache, n_past, start):  # -> int32 [B, T], bool [B, 1, T, S + T]
    """Of T new tokens: their positions in their rows, and the keys of cache and own that they see."""
    S = cache[0][0].shape.as_list()[2]
    slots, own = tf.range(tf.shape(cache[0][0])[2] if S is None else S), n_past + tf.range(T)
    filled = tf.where_v2(slots < n_past, slots, n_past + T)  # empty slots come after all queries
    keys = tf.concat([filled, own], axis=0)
    mask = (keys <= own[:, None]) & (keys >= start[:, None, None, None])
    return tf.maximum(own - start[:, None], 0), mask


def write_cache(cache, presents, position):  # presents: pairs of [B, H, T, D]
    """The cache with keys and values of T new tokens from a position on; in place if nothing else holds the
    buffers, as in a while_loop, or if a kernel assigns them to their variables."""
    def write(buffer, new):
        if in_kernel():
            return xla.dynamic_update_slice(buffer, new, tf.stack([0, 0, position, 0]))
        B, H, S, D = tf.unstack(tf.shape(buffer))
        indices = (tf.range(B * H) * S + position)[:, None] + tf.range(tf.shape(new)[2])
        flat = tf.tensor_scatter_nd_update(tf.reshape(buffer, [-1, D]), tf.reshape(indices, [-1, 1]),
                                           tf.reshape(new, [-1, D]))
        return tf.ensure_shape(tf.reshape(flat, [B, H, S, D]), buffer.shape)
    return tf2.nest.map_structure(write, cache, presents)
