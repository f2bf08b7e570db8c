"""Sessions and their devices."""
import os


def cores() -> int:  # that this process may use
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def device(gpu: int = 0) -> str:  # of sessions, in words: this GPU, or the CPU if there is none
    import tensorflow.compat.v1 as tf
    gpus = tf.config.list_physical_devices('GPU')
    if not gpus:
        return f'CPU, {cores()} cores'
    name = tf.config.experimental.get_device_details(gpus[gpu]).get('device_name', 'unknown')
    return f'GPU {gpu}, {name}'


def session_config():  # -> tf.ConfigProto: takes a GPU's memory as needed
    import tensorflow.compat.v1 as tf
    return tf.ConfigProto(gpu_options={'allow_growth': True})
