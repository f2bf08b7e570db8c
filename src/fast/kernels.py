"""Functions of tensors compiled into one kernel by XLA.

`fused` is for training. An expression such as the layer normalization is a dozen operations, each of which passes over
memory for little arithmetic; XLA makes one pass of them. Matrix products of many rows stay outside: TensorFlow's own
are faster on a CPU. `kernel` is for sampling, where products have few rows, and reading the weights is all the work.
"""
import functools
import inspect

import tensorflow as tf2
import tensorflow.compat.v1 as tf
from tensorflow.compiler.tf2xla.python import xla

MIN_FUSED_ELEMENTS = 1 << 14  # numbers in a row of the batch; to compile for less takes longer than it will save


def fused(function=None, *, gradient=None):
    """Decorates a function of tensors, with one tensor as result.

    It is compiled where that pays: where all sizes but the first of each argument are known when the graph is made
    (those of a prompt are not: each length would be compiled anew), and make at least SMALLEST numbers. It is not
    compiled for a GPU, nor after compile_nothing, nor in a loop of TensorFlow 1.

    The backward pass computes the function again from its arguments, so that these are all that is kept for it.
    gradient: instead, a function of the result's gradient, the result, and as many of the arguments as it takes; it
    returns the first argument's gradient, the only one, and what it takes is all that is kept.
    """
    if function is None:
        return functools.partial(fused, gradient=gradient)
    name = f'Fused{function.__module__}.{function.__qualname__}'

    def derived(dy, *args):
        found = iter(tf.gradients(function(*args), [x for x in args if x.dtype.is_floating], dy))
        return [next(found) if x.dtype.is_floating else None for x in args]

    n_kept = 0 if gradient is None else len(inspect.signature(gradient).parameters) - 1  # the result among them
    forward = tf2.function(function, jit_compile=True, autograph=False)
    backward = tf2.function(derived if gradient is None else gradient, jit_compile=True, autograph=False)

    # The gradient is given by name, and takes what it needs from the operation: so it also holds for operations that
    # memory_saving_gradients has copied. What tf.custom_gradient makes would keep to the tensors of the first.
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
    """Decorates a function of tensors (and of dicts, lists and named tuples of them) that no gradient is taken of.

    It is compiled as a whole, once for each set of shapes that it is run with; but not for a GPU, nor where the sizes
    known when the graph is made add up to less than SMALLEST, nor after compile_nothing, nor in a loop of TensorFlow 1.
    """
    def marked(*args):
        tf.add_to_collection('kernel', function)
        return function(*args)
    compiled = tf2.function(marked, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def call(*args):
        size = sum(x.shape.num_elements() or 0 for x in tf2.nest.flatten(args) if tf.is_tensor(x))
        return (function if in_kernel() or size < MIN_FUSED_ELEMENTS or without_kernels() else compiled)(*args)
    return call


def in_kernel():
    """Whether the graph that is being made is that of a kernel."""
    return bool(tf.get_collection('kernel'))


def disable_xla():
    """From here on, the default graph gets plain operations alone, for programs that have no XLA to run it."""
    tf.add_to_collection('plain', 1)


def without_kernels():
    # What is compiled does not enter the loops and conditions of TensorFlow 1, which tf.disable_v2_behavior() brings
    # back: its inputs would be "from different frames".
    in_old_loop = tf.get_default_graph()._get_control_flow_context() is not None
    return bool(tf.get_collection('plain')) or in_old_loop or on_gpu()


def optimization_barrier(x):
    """x; in a kernel, operations before it and after it are not joined as XLA simplifies them. Loops still may be."""
    return xla.optimization_barrier(x)[0] if in_kernel() else x


def materialized(x):  # floating, finite -> the same
    """x, for a kernel: it is stored, and not computed again by each turn of the loops of what uses it."""
    return x / (1 + 0 * x)  # XLA does not copy a division into loops, as it takes long, and cannot know that this is x


def write_cache(buffer, new, position):  # [B, H, S, D], [B, H, T, D], scalar -> [B, H, S, D]
    """The buffer with `new` from a position of axis 2 on. A kernel that assigns it to the buffer copies nothing."""
    if in_kernel():
        return xla.dynamic_update_slice(buffer, new, tf.stack([0, 0, position, 0]))
    end = position + tf.shape(new)[2]
    return tf.concat([buffer[:, :, :position], new, buffer[:, :, end:]], axis=2)


def on_gpu():
    return bool(tf2.config.list_physical_devices('GPU'))
