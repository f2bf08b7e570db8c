"""The precisions of products and weights."""
import os
import platform

PRECISIONS = ('float32', 'tf32', 'bfloat16')  # of matrix products
WEIGHT_PRECISIONS = (*PRECISIONS, 'int8')  # of weights, for sampling


def set_precision(precision: str):  # -> the type of the products' factors
    """Switches TF32 for the whole process. Call with int8 before XLA first compiles."""
    import tensorflow as tf
    tf.config.experimental.enable_tensor_float_32_execution(precision == 'tf32')  # on by default
    if precision == 'int8' and platform.machine() in ('x86_64', 'AMD64'):
        # XLA's loops for AVX-512 read int8 at half AVX2's speed.
        os.environ.setdefault('XLA_FLAGS', '--xla_cpu_max_isa=AVX2')
    return tf.as_dtype('float32' if precision == 'tf32' else precision)
