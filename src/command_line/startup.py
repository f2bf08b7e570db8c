"""A script's start: missing packages are told, Ctrl-C ends imports, TensorFlow loads quietly."""
import gc
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

USUAL = re.compile('InitializeLog|rebuild TensorFlow|TF-TRT|'
                   ' (port|cpu_feature_guard|cudart_stub|cuda_platform).cc:')
NO_GPU = ("TensorFlow finds no GPU: see nvidia-smi; pip install 'tensorflow[and-cuda]', or set "
          'CUDA_VISIBLE_DEVICES=-1\n')
PROJECT = pathlib.Path(__file__).resolve().parents[2]


def is_script():  # not a program that imports the project
    main = pathlib.Path(getattr(sys.modules['__main__'], '__file__', None) or '/')
    return main.resolve().parent in (PROJECT, PROJECT / 'src')


def fail(script, error):  # ends with status 2, after a line on stderr
    print(f'{script}: error: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)


def report_error(kind, error, traceback):  # a missing package in one line
    packages = re.findall(r'^[\w-]+', (PROJECT / 'requirements.txt').read_text('utf-8'), re.MULTILINE)
    if isinstance(error, ModuleNotFoundError) and error.name in packages:
        fail(os.path.basename(sys.argv[0]), f'{sys.executable} has no package {error.name}; run: '
             f'pip install -r {os.path.relpath(PROJECT)}/requirements.txt')
    sys.__excepthook__(kind, error, traceback)


if is_script():  # Ctrl-C would print a traceback of later imports
    sys.excepthook = report_error
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def load_tensorflow(computes=True):
    """Imports TensorFlow; shows USUAL lines only if a script that computes misses a visible GPU. Returns
    default_signal_handlers(), for a block of more imports."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '1')
    logging.getLogger('tensorflow').addFilter(lambda record: 'deprecated' not in record.getMessage())
    gc.disable()  # a second of imports, and of a script's end, would be spent looking for garbage in them
    with interrupts.default_signal_handlers():
        lines = capture_stderr(devices)
    gc.freeze()
    gc.enable()
    if computes and gpu_is_visible() and not devices('GPU'):
        lines.append(NO_GPU)
    else:
        lines = [line for line in lines if not USUAL.search(line)]
    sys.stderr.writelines(lines)
    return interrupts.default_signal_handlers()


def devices(kind=None):
    import tensorflow as tf
    return tf.config.list_physical_devices(kind)


def gpu_is_visible():  # of NVIDIA; TensorFlow for Windows uses none
    return os.environ.get('CUDA_VISIBLE_DEVICES') not in ('', '-1') and (
        glob.glob('/dev/nvidia*') or os.path.exists('/proc/driver/nvidia')
        or (sys.platform == 'linux' and shutil.which('nvidia-smi')))


def capture_stderr(function):  # -> lines of it or its C++
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
