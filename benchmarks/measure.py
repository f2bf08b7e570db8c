"""Processes that measure: nothing but the work counts into their memory, and they can take turns.

A measured function is a generator, in a file of this folder: each of its steps is one measurement, and yields
what came of it, a JSON value. A Child runs one in a process of its own and takes a step when asked to; where
children alternate, the machine's noise hits all of them alike.

    with measure.children((ours, {'size': '124M'}), (peer, {'size': '124M'})) as both:
        for seconds_of_ours, seconds_of_peer in measure.in_turn(both, 5): …

Importing this also makes the project's own modules importable.
"""
import contextlib
import glob
import importlib
import inspect
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = os.path.join(ROOT, 'src'), ROOT
SERVE = 'import sys, measure; measure.serve(*sys.argv[1:])'


class Child:
    """A process that runs function(**arguments). peak: its most memory, in GB. log: a file for its stderr."""

    def __init__(self, function, arguments, log):
        self.name = [os.path.splitext(os.path.basename(inspect.getfile(function)))[0], function.__name__]
        self.log, self.peak = log, None
        # The first import of TensorFlow or torch is in the child: this process stays small, for what it has
        # in memory at a fork counts as a child's peak.
        self.process = subprocess.Popen(
            [sys.executable, '-c', SERVE, *self.name, json.dumps(arguments)], text=True, stderr=log,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': HERE})

    def step(self):
        """The next value of the function. Raises RuntimeError, with the end of stderr, if the process
        ended."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write('\n')
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            raise RuntimeError(f'{".".join(self.name)} ended with status {self.process.returncode}:\n'
                               + ''.join(self.log.readlines()[-20:]))
        value, self.peak = json.loads(line)
        return value

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def children(*calls):
    """Children for pairs of function and arguments; they end with the block."""
    with contextlib.ExitStack() as stack:
        processes = []
        for function, arguments in calls:
            log = stack.enter_context(tempfile.TemporaryFile('w+', errors='replace'))
            processes.append(Child(function, arguments, log))
            stack.callback(processes[-1].close)
        yield processes


def in_turn(processes, times):  # -> as many lists as times, of a value a child
    return [[child.step() for child in processes] for _ in range(times)]


def serve(module, function, arguments):
    """The other side of a Child."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print is no answer
    steps = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    for _ in sys.stdin:
        value = next(steps)
        unit = 1 if sys.platform == 'darwin' else 1024  # bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
        print(json.dumps([value, peak]), file=answers, flush=True)


def seconds(function, warm_up=3):
    """Yields, without end, how long a call of the function takes; the first calls are not counted."""
    for _ in range(warm_up):
        function()
    while True:
        start = time.perf_counter()
        function()
        yield time.perf_counter() - start


def run_script(*words):  # -> seconds, peak memory in GB of the script and its children, or None
    """Runs a script of the project as a user does, from its start to its end."""
    peak = 0
    with tempfile.TemporaryFile('w+', errors='replace') as log:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f'{" ".join(words)} ended with status {process.returncode}:\n{log.read()}')
    return seconds, peak / 1e9 or None


def tree_memory(pid):
    """The bytes of a process and its children, shared ones counted once; 0 where the system does not tell."""
    total = 0
    with contextlib.suppress(OSError):  # it has ended, or this is not Linux
        with open(f'/proc/{pid}/smaps_rollup', encoding='ascii') as file:
            total = next((int(line.split()[1]) * 1024 for line in file if line.startswith('Pss:')), 0)
        for path in glob.glob(f'/proc/{pid}/task/*/children'):
            with open(path, encoding='ascii') as file:
                total += sum(map(tree_memory, map(int, file.read().split())))
    return total
