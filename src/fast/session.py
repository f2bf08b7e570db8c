"""Sessions and the devices that they compute on."""
import os


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def device(gpu: int = 0) -> str:
    """The device of sessions in words: the GPU of this number, or the CPU if there is none."""
    import tensorflow.compat.v1 as tf
    gpus = tf.config.list_physical_devices('GPU')
    if not gpus:
        return f'CPU, {cores()} cores'
    details = tf.config.experimental.get_device_details(gpus[gpu])
    name = f'GPU {gpu}, {details.get("device_name", "unknown")}'
    capability = details.get('compute_capability')  # CUDA alone has one
    return f'{name}, compute capability {".".join(map(str, capability))}' if capability else name


def session_config():
    """A tf.ConfigProto: memory of a GPU is taken as it is needed, not all of it at once."""
    import tensorflow.compat.v1 as tf
    config = tf.ConfigProto()
    config.gpu_options.allow_growth = True
    return config
