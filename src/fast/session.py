"""Sessions: their devices and precisions."""
import os
import platform

import tensorflow.compat.v1 as tf


def cores() -> int:  # that this process may use
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def device(gpu: int = 0) -> str:  # of sessions, in words: this GPU, or the CPU if there is none
    gpus = tf.config.list_physical_devices('GPU')
    if not gpus:
        return f'CPU, {cores()} cores'
    name = tf.config.experimental.get_device_details(gpus[gpu]).get('device_name', 'unknown')
    return f'GPU {gpu}, {name}'


def session_config(gpu=None, threads=0):  # -> tf.ConfigProto: takes a GPU's memory as needed
    """gpu: the only one to use. threads: of an operation; 0: one a core."""
    config = tf.ConfigProto(gpu_options={'allow_growth': True}, intra_op_parallelism_threads=threads)
    if gpu is not None:
        config.gpu_options.visible_device_list = str(gpu)
    # Optimizing graphs takes longer than it saves, and keeps an optimizer's zeros in memory.
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = tf.OptimizerOptions.L0
    return config


def rounds_products() -> bool:  # of float32, to TF32
    return bool(tf.config.list_physical_devices('GPU')
                and tf.config.experimental.tensor_float_32_execution_enabled())


def set_precision(precision: str):  # -> the type of the products' factors
    """Switches TF32 for the whole process. Call with int8 before XLA first compiles."""
    tf.config.experimental.enable_tensor_float_32_execution(precision == 'tf32')  # on by default
    if precision == 'int8' and platform.machine() in ('x86_64', 'AMD64'):
        # XLA's loops for AVX-512 read int8 at half AVX2's speed.
        os.environ.setdefault('XLA_FLAGS', '--xla_cpu_max_isa=AVX2')
    return tf.as_dtype('float32' if precision == 'tf32' else precision)
