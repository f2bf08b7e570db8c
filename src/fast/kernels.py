"""Functions of tensors made fast: kernels of XLA (docs/decisions/kernels.md), attention in blocks."""
import functools
import inspect

import tensorflow.compat.v1 as tf
from tensorflow.compiler.tf2xla.python import xla

MIN_FUSED_ELEMENTS = 1 << 14  # in a row (fused), in all (kernel); fewer cost more than they save
ATTENTION_BLOCK = 256  # queries: docs/decisions/attention-blocks.md


def fused(function=None, *, gradient=None):
    """Compiles a function, for training, if sizes are known but for first axes. Backward, the function is
    computed again. Or gradient(dy, result, first arguments…) gives the gradient of argument 1 alone."""
    if function is None:
        return functools.partial(fused, gradient=gradient)
    name = f'Fused{function.__module__}.{function.__qualname__}'

    def recomputed(dy, *args):
        return tf.gradients(function(*args), args, dy)
    forward, backward = compiled(function), compiled(gradient or recomputed)

    @tf.RegisterGradient(name)  # for copies of the operation, too
    def registered(op, dy, *_):
        if gradient is None:
            return [None, *backward(dy, *op.inputs[1:])]
        used = op.inputs[:len(inspect.signature(gradient).parameters) - 1]
        return [None, backward(dy, *used)] + [None] * (len(op.inputs) - 2)

    def call(*args):
        sizes = [x.shape[1:].num_elements() for x in args]
        if None in sizes or is_plain(max(sizes)):
            return function(*args)
        result = forward(*args)
        with tf.get_default_graph().gradient_override_map({'IdentityN': name}):
            return tf.identity_n([result, *args])[0]  # no gradient through the result itself
    return call


def kernel(function):  # of nests of tensors -> compiled, for sampling, for each set of large shapes
    in_xla = compiled(function)

    def call(*args):
        size = sum(x.shape.num_elements() or 0 for x in tf.nest.flatten(args) if tf.is_tensor(x))
        return function(*args) if is_plain(size) else in_xla(*args)
    return call


def traced(function):  # as a function of TensorFlow: calls of equal shapes take its operations from the first
    in_graph = tf.function(function, autograph=False)

    def call(*args):  # TensorFlow does not load a SavedModel with the function
        return function(*args) if tf.get_collection('disable_xla') else in_graph(*args)
    return call


def compiled(function):
    def marked(*args):
        tf.add_to_collection('kernel', True)
        return function(*args)
    return tf.function(marked, jit_compile=True, autograph=False)


def in_kernel():  # whether the default graph is a kernel's
    return tf.get_collection('kernel')


def disable_xla():  # for later operations of the default graph
    tf.add_to_collection('disable_xla', True)


def is_plain(size):  # whether not to compile a function of so many numbers
    return (size < MIN_FUSED_ELEMENTS or in_kernel() or tf.get_collection('disable_xla')
            # A loop of TensorFlow 1 cannot hold compiled functions.
            or tf.get_default_graph()._get_control_flow_context()
            or tf.config.list_physical_devices('GPU'))


def optimization_barrier(x):  # -> x; loops after it do not repeat the operations before it
    return xla.optimization_barrier(x)[0] if in_kernel() else x


def materialized(x):  # finite -> the same; loops do not compute it again
    return x / (1 + 0 * x)  # XLA copies no division into loops, nor sees that this is x


def in_blocks(attention, q, k, v):  # of queries; a block gets no keys after its end
    T = q.shape.as_list()[2]
    if T is None:
        return attention(q, k, v)
    results = []
    for start in range(0, T, ATTENTION_BLOCK):
        end = min(start + ATTENTION_BLOCK, T)
        # tf.slice, as x[:, :, start:end] has a slow gradient.
        block = tf.slice(q, [0, 0, start, 0], [-1, -1, end - start, -1])
        seen = [tf.slice(x, [0] * 4, [-1, -1, end, -1]) for x in (k, v)]
        results.append(attention(block, *seen))
    return tf.concat(results, 2)


def float32(x):  # -> x in this type
    return tf.cast(x, tf.float32)


# Gradients from results, in one pass over memory

def softmax_grad(dp, p):  # [..., S], [..., S] -> [..., S]
    dtype, p, dp = p.dtype, float32(p), float32(dp)
    return tf.cast(p * (dp - tf.reduce_sum(p * dp, -1, keepdims=True)), dtype)


def cross_entropy_grad(dy, losses, logits, labels):  # [N], [N], [N, V], [N] -> [N, V]
    # The softmax, less 1 at the label; all 0 for padding.
    x, label = float32(logits), tf.maximum(labels, 0)
    log_sum = losses + tf.gather(x, label, batch_dims=1)  # of the logits' exponentials
    gradients = tf.exp(x - log_sum[:, None]) - tf.one_hot(label, logits.shape[-1])
    return tf.cast(tf.where_v2(labels[:, None] >= 0, gradients * dy[:, None], 0.0), logits.dtype)
