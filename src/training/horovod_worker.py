"""The part of one process among several that Horovod joins, by MPI or Gloo; no other file knows Horovod.

    with horovod_worker.started(compression='none', timeout=120) as worker:
        trainer.train(flags, worker)
"""
import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator

import horovod.tensorflow as hvd
import numpy as np
import tensorflow.compat.v1 as tf
from horovod.runner.util.network import get_local_host_addresses

from errors import InputError
from load_dataset import cores
from training import log
from training.worker import Worker

STATUS_LOST = 1  # of a process that ends because another one has
TICKS = 20  # of the timeout, in each of which every rank sends a sign
NAMED, ENDED = 10, 16  # ticks without a sign of a rank, after which it is named, and all begin to end
BROADCAST_TOGETHER = 24  # variables: all at once would be in memory twice
MIN_COMPRESSED = 1 << 12  # numbers; of fewer, the number of messages takes the time
SETTINGS = {
    'HOROVOD_FUSION_THRESHOLD': '0',  # no copies into a buffer, and the same order of sums at every run
    'HOROVOD_STALL_CHECK_TIME_SECONDS': '3600'}  # others may wait long while rank 0 encodes, samples or saves
SETTINGS_WITHOUT_GPU = {
    # Milliseconds between negotiations, in which a rank of MPI spins on the core that is to compute: at
    # Horovod's 1 ms this took a third of the time.
    'HOROVOD_CYCLE_TIME': '50', 'OMPI_MCA_mpi_yield_when_idle': '1'}


class HorovodWorker(Worker):
    """See Worker. Where another process has ended, its methods raise what is_peer_failure recognizes."""

    def __init__(self, compression='none'):
        """compression: the type that gradients are sent as: none (float32), float16 or bfloat16."""
        gpus = tf.config.list_physical_devices('GPU')
        threads = 0
        if hvd.local_size() > 1:  # the launcher need not have bound them to cores
            threads = min(cores(), max(1, os.cpu_count() // hvd.local_size()))
        super().__init__(hvd.rank(), hvd.size(), hvd.local_rank() % len(gpus) if gpus else None, threads)
        self.compression = compression
        with tf.Graph().as_default(), tf.device('/cpu:0'):  # the trainer's graph ends earlier
            self.line = tf.placeholder(tf.uint8, [None])
            self.lines = hvd.allgather(self.line, name='lines')
            self.session = tf.Session(config=tf.ConfigProto(device_count={'GPU': 0}))

    def gather(self, value) -> list:
        line = json.dumps(value, default=float).encode() + b'\n'
        lines = self.session.run(self.lines, {self.line: np.frombuffer(line, np.uint8)})
        return [json.loads(line) for line in lines.tobytes().splitlines()]

    def run_everywhere(self, function):
        result = error = None
        try:
            result = function()
        except InputError as raised:
            error = str(raised)
        for rank, message in enumerate(self.gather(error)):
            if message is not None:
                self.abort(f'rank {rank}: {message}' if rank else message)
        return result

    def run_on_rank0(self, function):
        return self.gather(self.run_everywhere(function if self.rank == 0 else lambda: None))[0]

    def check_same(self, function):
        first, *others = self.gather(self.run_everywhere(function))
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    self.abort(f'{name} is {value!r} on rank 0, but {other[name]!r} on rank {rank}; start '
                               'all with the same flags and files')

    def abort(self, message: str):
        if self.rank == 0:
            raise InputError(message)
        sys.exit(2)  # rank 0 prints the message

    def broadcast(self, session, variables):
        for first in range(0, len(variables), BROADCAST_TOGETHER):
            part = variables[first:first + BROADCAST_TOGETHER]
            inputs = [tf.placeholder(v.dtype.base_dtype, v.shape) for v in part]
            values = [np.zeros(v.shape, v.dtype.as_numpy_dtype) for v in part]  # elsewhere they have none yet
            if self.rank == 0:
                values = session.run(part)
            assigned = [v.assign(hvd.broadcast(x, 0, name=f'broadcast_{v.op.name}'), read_value=False)
                        for v, x in zip(part, inputs, strict=True)]
            session.run(assigned, dict(zip(inputs, values, strict=True)))

    def reduce(self, gradients):
        return [self.mean(gradient, f'gradient_{i}') for i, gradient in enumerate(gradients)]

    def mean(self, gradient, name):  # a tensor -> the mean of all ranks' tensors
        gradient = tf.convert_to_tensor(gradient)  # a sparse one would be gathered in place of being added up
        size = gradient.shape.num_elements()
        if self.compression == 'none' or size < MIN_COMPRESSED:
            return hvd.allreduce(gradient, op=hvd.Average, name=name)
        # Each rank gets its part of all tensors, and sends the mean to all: as many bytes as an all-reduce,
        # which would round at each rank, and which Horovod has not for bfloat16.
        padded = tf.pad(tf.reshape(gradient, [-1]), [[0, -size % self.size]])
        parts = self.decompressed(hvd.alltoall(self.compressed(padded), name=f'{name}_parts'))
        part = tf.reduce_mean(tf.reshape(parts, [self.size, -1]), axis=0)
        whole = self.decompressed(hvd.allgather(self.compressed(part), name=name))
        return tf.reshape(whole[:size], gradient.shape)

    def compressed(self, x):  # float32 -> float16, or bfloat16 in the bits of float16, which Horovod can send
        return tf.bitcast(tf.cast(x, self.compression), tf.float16)

    def decompressed(self, x):
        return tf.cast(tf.bitcast(x, self.compression), tf.float32)

    def is_peer_failure(self, error: BaseException) -> bool:
        return isinstance(error, tf.errors.OpError) and bool(error.op) and error.op.type.startswith('Horovod')

    def wait_for_rank_0(self):
        """Lets rank 0 print and save, before the launcher sees the end of this process and ends all."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow reports the operation that fails
        with contextlib.suppress(tf.errors.OpError):
            self.gather(None)  # rank 0 does not join in, but ends


class Watch(threading.Thread):
    """Sends signs of life between all ranks, by UDP. Where one gives none, another names it, and all end.

    Where a rank is stopped or a cable is pulled, calls of Horovod do not come back. timeout: seconds after
    the last sign of a rank in which all have ended.
    """

    def __init__(self, worker, timeout):
        super().__init__(daemon=True)
        self.rank, self.tick = worker.rank, timeout / TICKS
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(('', 0))
        self.sign = secrets.token_hex(16)
        everyone = worker.gather([self.sign, socket.gethostname(), self.socket.getsockname()[1],
                                  list(get_local_host_addresses())])
        self.hosts = [host for _, host, _, _ in everyone]
        self.ranks, self.places = {}, []
        for rank, (sign, _, port, addresses) in enumerate(everyone):
            if rank != self.rank:
                self.ranks[sign.encode()] = rank
                self.places += [(address, port) for address in addresses]  # nobody knows which is reached

    def run(self):
        silent = {}  # rank: ticks since its last sign, without those in which this process was stopped itself
        ticks = longest = 0
        while longest < ENDED + 2 * bool(self.rank):  # rank 0 first, which would print that another was lost
            for place in self.places:
                with contextlib.suppress(OSError):
                    self.socket.sendto(self.sign.encode(), place)
            silent = {rank: count + 1 for rank, count in silent.items()} | dict.fromkeys(self.heard(), 0)
            ticks, longest = ticks + 1, max(silent.values(), default=0)
            if longest == NAMED:
                self.report({rank for rank, count in silent.items() if count > NAMED // 2})
            unknown = set(self.ranks.values()) - silent.keys()
            if ticks == NAMED and unknown and self.rank == 0:
                log.warn(f'No UDP comes from {self.names(unknown)}: if it hangs, the others wait for ever')
        os._exit(STATUS_LOST)

    def report(self, missing):  # by the first rank that is there
        if self.rank < min(set(self.ranks.values()) - missing, default=len(self.hosts)):
            passed, left = NAMED * self.tick, (ENDED - NAMED) * self.tick
            line = (f'{script()}: {self.names(missing)} has not answered for {passed:.0f} seconds; after '
                    f'{left:.0f} more all end, and the same command continues from the last save')
            threading.Thread(target=log.warn, args=[line], daemon=True).start()  # stderr may block

    def heard(self):  # -> the ranks whose signs come within a tick
        ranks, end = set(), time.monotonic() + self.tick
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            with contextlib.suppress(OSError):
                ranks.add(self.ranks.get(self.socket.recv(64)))
        return ranks - {None}

    def names(self, ranks):
        return ', '.join(f'rank {rank} on {self.hosts[rank]}' for rank in sorted(ranks))


def script():
    return os.path.basename(sys.argv[0])


@contextlib.contextmanager
def started(compression: str = 'none', timeout: int = 0) -> Iterator[HorovodWorker]:
    """Joins the processes that the launcher has started, and gives this one's worker.

    Where one raises, is lost, or gives no sign for `timeout` seconds (0: for ever), all end: those that did
    not raise with status 1, and rank 0 says so in one line.
    """
    settings = SETTINGS | ({} if tf.config.list_physical_devices('GPU') else SETTINGS_WITHOUT_GPU)
    settings['HOROVOD_GLOO_TIMEOUT_SECONDS'] = str(max(30, timeout))  # else Gloo ends all first
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    hvd.init()
    worker = HorovodWorker(compression)
    if timeout:
        Watch(worker, timeout).start()
    try:
        yield worker
        worker.gather(None)  # none ends, and falls silent, while rank 0 still saves
    except SystemExit:  # a decision of all ranks
        if worker.rank:
            worker.wait_for_rank_0()
        raise
    except tf.errors.OpError as error:
        if not worker.is_peer_failure(error):
            raise
        if worker.rank == 0:
            print(f'{script()}: error: another of the {worker.size} processes was lost; the same command '
                  'continues from the last save', file=sys.stderr)
        sys.exit(STATUS_LOST)
