"""Gradients of fused functions from their results: one pass over memory, and little is kept for it."""
import tensorflow.compat.v1 as tf


def softmax_gradient(dp, p):  # [..., S], [..., S] -> [..., S]
    """The gradient of a softmax's argument, from that of its result p."""
    dtype, p, dp = p.dtype, tf.cast(p, tf.float32), tf.cast(dp, tf.float32)
    return tf.cast(p * (dp - tf.reduce_sum(p * dp, axis=-1, keepdims=True)), dtype)


def cross_entropy_gradient(upstream, losses, logits, labels):  # [N], [N], [N, V], [N] -> [N, V]
    """The logits' gradient: probability minus 1 for the label, minus 0 for the others; 0 without a label."""
    x, label = tf.cast(logits, tf.float32), tf.maximum(labels, 0)
    log_sum = losses + tf.gather(x, label, batch_dims=1)  # of the logits' exponentials
    gradients = tf.exp(x - log_sum[:, None]) - tf.one_hot(label, logits.shape[-1])
    return tf.cast(tf.where_v2(labels[:, None] >= 0, gradients * upstream[:, None], 0.0), logits.dtype)
