"""The threshold of nucleus sampling without sorting the vocabulary."""
import tensorflow.compat.v1 as tf

from fast.kernels import fused

ONE = 0x3f800000  # the bits of 1.0 in float32


@fused
def nucleus_threshold(probabilities, p):  # float32 [B, N], scalar -> int32 [B, 1]
    """The bits of the nucleus's least probability: the likelier ones add up to less than p.

    Found by bisection, as numbers from 0 up are in the order of their bits; sorting would take longer.
    """
    bits = tf.bitcast(probabilities, tf.int32)

    def halve(low, high):
        middle = (low + high) // 2
        likelier = tf.reduce_sum(tf.where_v2(bits > middle, probabilities, 0.0), axis=-1, keepdims=True)
        return tf.where_v2(likelier < p, low, middle + 1), tf.where_v2(likelier < p, middle, high)
    low = tf.zeros_like(bits[:, :1])
    return tf.while_loop(lambda *_: True, halve, (low, low + ONE), maximum_iterations=30, back_prop=False)[0]
