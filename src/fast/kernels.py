"""Functions of tensors compiled into one kernel by XLA: `fused` for training, `kernel` for sampling.

In training, XLA passes over memory once where the operations of a normalization pass a dozen times; products
of many rows stay outside, as TensorFlow's own are faster on a CPU. In sampling, products have few rows,
reading the weights is all the work, and whole layers are kernels. Nothing is compiled for a GPU.
"""
import functools
import inspect

import tensorflow as tf2
import tensorflow.compat.v1 as tf
from tensorflow.compiler.tf2xla.python import xla

MIN_FUSED_ELEMENTS = 1 << 14  # numbers in a row of the batch; compiling for fewer takes longer than it saves


def fused(function=None, *, gradient=None):
    """Decorates a function of tensors with one tensor as result.

    It is compiled if all sizes but the first are known when the graph is made (a prompt's length is not:
    each would be compiled anew) and are large enough. The backward pass computes the function again.
    gradient: instead, a function of the result's gradient, the result, and as many of the arguments as it
    takes, to the first argument's gradient; only these tensors are kept for it.
    """
    if function is None:
        return functools.partial(fused, gradient=gradient)
    name = f'Fused{function.__module__}.{function.__qualname__}'

    def recomputed(dy, *args):
        gradients = iter(tf.gradients(function(*args), [x for x in args if x.dtype.is_floating], dy))
        return [next(gradients) if x.dtype.is_floating else None for x in args]

    n_kept = len(inspect.signature(gradient).parameters) - 1 if gradient else 0  # the result among them
    forward = tf2.function(function, jit_compile=True, autograph=False)
    backward = tf2.function(gradient or recomputed, jit_compile=True, autograph=False)

    # The gradient goes by name and reads the operation's inputs, so it holds for operations that
    # memory_saving_gradients has copied; tf.custom_gradient would keep the first operation's tensors.
    @tf.RegisterGradient(name)
    def registered(op, dy, *_):
        if gradient is None:
            return [None, *backward(dy, *op.inputs[1:])]
        return [None, backward(dy, *op.inputs[:n_kept])] + [None] * (len(op.inputs) - 2)

    @functools.wraps(function)
    def call(*args):
        sizes = [x.shape[1:].num_elements() for x in args]
        if in_kernel() or None in sizes or max(sizes) < MIN_FUSED_ELEMENTS or without_kernels():
            return function(*args)
        result = forward(*args)
        with tf.get_default_graph().gradient_override_map({'IdentityN': name}):
            return tf.identity_n([result, *args])[0]  # nothing flows back through the result itself
    return call


def kernel(function):
    """Decorates a function of tensors, or of nests of them, of which no gradient is taken. It is compiled as
    a whole, once for each set of shapes, if the known sizes are large enough."""
    def marked(*args):
        tf.add_to_collection('kernel', function)
        return function(*args)
    compiled = tf2.function(marked, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def call(*args):
        size = sum(x.shape.num_elements() or 0 for x in tf2.nest.flatten(args) if tf.is_tensor(x))
        if in_kernel() or size < MIN_FUSED_ELEMENTS or without_kernels():
            return function(*args)
        return compiled(*args)
    return call


def in_kernel():
    """Whether the graph that is being made is a kernel's."""
    return bool(tf.get_collection('kernel'))


def disable_xla():
    """From here on the default graph gets plain operations alone, for programs that have no XLA."""
    tf.add_to_collection('disable_xla', True)


def without_kernels():
    # In TensorFlow 1's loops and conditions (tf.disable_v2_behavior) the inputs of compiled functions would
    # be "from different frames".
    in_old_loop = tf.get_default_graph()._get_control_flow_context() is not None
    return bool(tf.get_collection('disable_xla') or in_old_loop or tf.config.list_physical_devices('GPU'))


def optimization_barrier(x):
    """x; keeps a kernel from fusing operations before it with loops after it, which would repeat them."""
    return xla.optimization_barrier(x)[0] if in_kernel() else x


def materialized(x):  # floating, finite -> the same
    """x, stored in a kernel, not computed again by each turn of the loops that use it."""
    return x / (1 + 0 * x)  # XLA copies no division into loops, as it is slow, and cannot see that this is x
