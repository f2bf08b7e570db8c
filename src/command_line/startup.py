"""The start of a script: missing packages are told, Ctrl-C ends the imports, TensorFlow is loaded quietly."""
import glob
import logging
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile

from command_line import interrupts

USUAL = ('All log messages before absl::InitializeLog', ' port.cc:', ' cpu_feature_guard.cc:',
         'rebuild TensorFlow with the appropriate', 'TF-TRT Warning')
ABOUT_CUDA = (' cudart_stub.cc:', ' cuda_platform.cc:')
NO_GPU = '''TensorFlow finds no GPU, though this machine has one or its driver: see that nvidia-smi lists it \
(a container needs --gpus all), and pip install 'tensorflow[and-cuda]'; CUDA_VISIBLE_DEVICES=-1 is for the CPU
'''
PROJECT = pathlib.Path(__file__).resolve().parents[2]


def is_script() -> bool:
    """Whether this process runs one of the project's scripts, and does not only import it."""
    main = getattr(sys.modules['__main__'], '__file__', None)
    return bool(main) and pathlib.Path(main or '').resolve().parent in (PROJECT, PROJECT / 'src')


def fail(script: str, error: object):
    """Ends the process with status 2 after one line on stderr."""
    print(f'{script}: error: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)


def report_error(kind, error, traceback):
    """Reports an uncaught error as Python does, but a missing package of requirements.txt in one line."""
    required, venv = (os.path.relpath(PROJECT / name) for name in ('requirements.txt', '.venv'))
    packages = re.findall(r'^[\w-]+', pathlib.Path(required).read_text('utf-8'), re.MULTILINE)
    if isinstance(error, ModuleNotFoundError) and error.name in packages:
        activate = os.path.join(venv, 'bin', 'activate')
        inactive = os.path.exists(activate) and not os.path.samefile(venv, sys.prefix)
        remedy = f'. {activate}' if inactive else f'pip install -r {required}'
        fail(os.path.basename(sys.argv[0]), f'{sys.executable} has no package {error.name}; run: {remedy}')
    sys.__excepthook__(kind, error, traceback)


if is_script():  # during the imports that follow, Ctrl-C would print a traceback
    sys.excepthook = report_error
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def load_tensorflow(computes: bool = True):
    """Imports TensorFlow and has it find its devices. Prints the unusual lines of its start; lines about CUDA
    are unusual if the script computes and TensorFlow misses a GPU that is there."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '1')  # no I lines; warnings remain
    logging.getLogger('tensorflow').addFilter(lambda record: 'deprecated' not in record.getMessage())
    with interrupts.default_signal_handlers():
        lines = capture_stderr(devices)
    gpu_missed = computes and gpu_is_visible() and not devices('GPU')
    usual = USUAL if gpu_missed else USUAL + ABOUT_CUDA
    lines = [line for line in lines if not any(text in line for text in usual)]
    print(*lines, NO_GPU if gpu_missed else '', sep='', end='', file=sys.stderr)


def devices(kind=None):
    import tensorflow as tf
    return tf.config.list_physical_devices(kind)


def gpu_is_visible() -> bool:
    """Whether this machine has a GPU of NVIDIA or its driver, which CUDA_VISIBLE_DEVICES does not hide."""
    return os.environ.get('CUDA_VISIBLE_DEVICES') not in ('', '-1') and bool(
        glob.glob('/dev/nvidia*') or os.path.exists('/proc/driver/nvidia') or
        (sys.platform == 'linux' and shutil.which('nvidia-smi')))  # TensorFlow for Windows uses no GPU


def capture_stderr(function):  # -> lines
    """Calls the function while file descriptor 2, to which C++ writes, leads to a file; returns its lines."""
    terminal = os.dup(2)
    with tempfile.TemporaryFile('w+', encoding='utf-8', errors='replace') as file:
        os.dup2(file.fileno(), 2)
        try:
            function()
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
        file.seek(0)
        return file.readlines()
