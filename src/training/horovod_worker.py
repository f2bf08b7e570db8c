"""The part of one process among several that Horovod joins, by MPI or by Gloo; the only file of src that knows Horovod.

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
from training import trainer

STATUS_LOST = 1  # of a process that ends because another one has, or does not answer
TICKS = 20  # of the timeout: in each, every rank gives the others a sign of life
TOLD, ENDED = 10, 16  # ticks without one from a rank, after which it is named, and all others begin to end
BROADCAST_TOGETHER = 24  # variables: all at once would be in memory twice
SMALLEST_COMPRESSED = 1 << 12  # numbers; of fewer, it is the number of messages that takes the time
SETTINGS = {
    # Gradients are reduced one by one: no copies into a buffer, and sums in an order that is the same at every run.
    'HOROVOD_FUSION_THRESHOLD': '0',
    'HOROVOD_STALL_CHECK_TIME_SECONDS': '3600'}  # others may wait long while rank 0 encodes, saves or samples
SETTINGS_WITHOUT_GPU = {
    # Milliseconds between the ranks' asking one another what is ready. Under MPI each spins until the others answer, on
    # the core that is to compute: at Horovod's own 1 ms this took a third of the time.
    'HOROVOD_CYCLE_TIME': '50', 'OMPI_MCA_mpi_yield_when_idle': '1'}


class HorovodWorker(trainer.Worker):
    """See trainer.Worker. Where another process has ended, its methods raise what `lost` recognizes."""

    def __init__(self, compression='none'):
        """compression: what gradients are sent as: none (float32), float16 or bfloat16."""
        gpus = tf.config.list_physical_devices('GPU')
        # Processes that the launcher has not bound to cores of their own share those that there are.
        threads = min(cores(), max(1, os.cpu_count() // hvd.local_size())) if hvd.local_size() > 1 else 0
        super().__init__(hvd.rank(), hvd.size(), hvd.local_rank() % len(gpus) if gpus else None, threads)
        self.compression = compression
        # Not the trainer's graph and session: these come and go, and may be on a GPU.
        with tf.Graph().as_default(), tf.device('/cpu:0'):
            self.line = tf.placeholder(tf.uint8, [None])
            self.lines = hvd.allgather(self.line, name='lines')
            self.session = tf.Session(config=tf.ConfigProto(device_count={'GPU': 0}))

    # Python values

    def gather(self, value) -> list:
        line = json.dumps(value, default=float).encode() + b'\n'
        lines = self.session.run(self.lines, {self.line: np.frombuffer(line, np.uint8)})
        return [json.loads(each) for each in lines.tobytes().splitlines()]

    def agree(self, function):
        result = error = None
        try:
            result = function()
        except InputError as raised:
            error = str(raised)
        for rank, message in enumerate(self.gather(error)):
            if message is not None:
                self.refuse(f'rank {rank}: {message}' if rank else message)
        return result

    def once(self, function):
        return self.gather(self.agree(function if self.rank == 0 else lambda: None))[0]

    def check_same(self, function):
        everyone = self.gather(self.agree(function))
        for name, first in everyone[0].items():
            others = {rank: each[name] for rank, each in enumerate(everyone) if each[name] != first}
            if others:
                told = ', '.join(f'{value!r} on rank {rank}' for rank, value in list(others.items())[:3])
                more = f' (and others on {len(others) - 3} more)' if len(others) > 3 else ''
                self.refuse(f'{name} is {first!r} on rank 0, but {told}{more}; start all with the same flags and files')

    def refuse(self, message: str):
        if self.rank == 0:
            raise InputError(message)
        sys.exit(2)  # which rank 0 tells

    # Tensors

    def broadcast(self, session, variables):
        for first in range(0, len(variables), BROADCAST_TOGETHER):
            some = variables[first:first + BROADCAST_TOGETHER]
            values = session.run(some) if self.rank == 0 else [np.zeros(v.shape, v.dtype.as_numpy_dtype) for v in some]
            sources = [tf.placeholder(v.dtype.base_dtype, v.shape) for v in some]
            # Fed, since on the other ranks the variables have no value yet.
            session.run([v.assign(hvd.broadcast(source, 0, name=f'broadcast_{v.op.name}'), read_value=False)
                         for v, source in zip(some, sources, strict=True)], dict(zip(sources, values, strict=True)))

    def reduce(self, gradients):
        return [self.mean(gradient, f'gradient_{i}') for i, gradient in enumerate(gradients)]

    def mean(self, gradient, name):  # a tensor -> the mean of all ranks' tensors
        # A sparse gradient, as an embedding alone has, would be gathered from all ranks in place of being added up.
        gradient = tf.convert_to_tensor(gradient)
        size = gradient.shape.num_elements()
        if self.compression == 'none' or size < SMALLEST_COMPRESSED:
            return hvd.allreduce(gradient, op=hvd.Average, name=name)
        # Each rank gets its part of the tensor from all others, adds it up in float32, and sends the mean to all: as
        # many bytes as when adding up on the way, which would round at each rank, and which bfloat16 is not known to.
        padded = tf.pad(tf.reshape(gradient, [-1]), [[0, -size % self.size]])
        parts = self.unpacked(hvd.alltoall(self.packed(padded), name=f'{name}_parts'))
        part = tf.reduce_mean(tf.reshape(parts, [self.size, -1]), axis=0)
        whole = self.unpacked(hvd.allgather(self.packed(part), name=name))
        return tf.reshape(whole[:size], gradient.shape)

    def packed(self, x):  # float32 -> float16, or bfloat16 as float16, which is how it can be sent
        return tf.bitcast(tf.cast(x, self.compression), tf.float16)

    def unpacked(self, x):
        return tf.cast(tf.bitcast(x, self.compression), tf.float32)

    # The end

    def lost(self, error: BaseException) -> bool:
        return isinstance(error, tf.errors.OpError) and bool(error.op) and error.op.type.startswith('Horovod')

    def wait_for_rank_0(self):
        """A launcher ends all processes once one has ended with an error: rank 0 has its say, and its save, first."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow reports the operation that fails
        with contextlib.suppress(tf.errors.OpError):
            self.gather(None)  # which rank 0 does not join, but ends


def script():
    return os.path.basename(sys.argv[0])


class Watch(threading.Thread):
    """Signs of life of all ranks to one another, by UDP; where one gives none, one names it and all the others end.

    Where a rank is stopped or a cable is pulled, calls of Horovod do not come back: not those of the trainer, and with
    MPI not those of Horovod's own thread, which would look for stalled operations. A rank that works for long while
    the others wait for it goes on giving signs.
    """

    def __init__(self, worker, timeout):
        """timeout: seconds after the last sign of a rank in which all have ended."""
        super().__init__(daemon=True)
        self.rank, self.tick = worker.rank, timeout / TICKS
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(('', 0))
        self.sign = secrets.token_hex(16)
        everyone = worker.gather([self.sign, socket.gethostname(), self.socket.getsockname()[1],
                                  list(get_local_host_addresses())])
        self.hosts = [host for _, host, _, _ in everyone]
        others = {rank: places for rank, places in enumerate(everyone) if rank != self.rank}
        self.ranks = {sign.encode(): rank for rank, (sign, *_) in others.items()}
        # Which of a host's addresses another one reaches, nobody knows: a sign goes to all, and means one rank alone.
        self.places = [(address, port) for _, _, port, addresses in others.values() for address in addresses]

    def run(self):
        silent = {}  # rank: ticks since its last sign. Ticks are not counted while this process itself is stopped.
        ticks = longest = 0
        while longest < ENDED + 2 * bool(self.rank):  # first ends rank 0, which would tell that another was lost
            for place in self.places:
                with contextlib.suppress(OSError):
                    self.socket.sendto(self.sign.encode(), place)
            silent = {rank: count + 1 for rank, count in silent.items()} | dict.fromkeys(self.heard(), 0)
            ticks, longest = ticks + 1, max(silent.values(), default=0)
            if longest == TOLD:
                self.tell({rank for rank, count in silent.items() if count > TOLD // 2})
            unknown = set(self.ranks.values()) - silent.keys()
            if ticks == TOLD and unknown and self.rank == 0:
                trainer.warn(f'No UDP comes from {self.names(unknown)}: if it hangs, the others wait for ever')
        os._exit(STATUS_LOST)

    def tell(self, missing):
        if self.rank < min(set(self.ranks.values()) - missing, default=len(self.hosts)):
            line = (f'{script()}: {self.names(missing)} has not answered for {TOLD * self.tick:.0f} seconds; after '
                    f'{(ENDED - TOLD) * self.tick:.0f} more all end, and the same command continues from the last save')
            threading.Thread(target=trainer.warn, args=[line], daemon=True).start()  # it may be that nobody reads it

    def heard(self):  # -> the ranks whose signs come within a tick
        ranks, end = set(), time.monotonic() + self.tick
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            with contextlib.suppress(OSError):
                ranks.add(self.ranks.get(self.socket.recv(64)))
        return ranks - {None}

    def names(self, ranks):
        hosts = {}
        for rank in sorted(ranks):
            hosts.setdefault(self.hosts[rank], []).append(str(rank))
        return ', '.join(f'rank {", ".join(numbers)} on {host}' for host, numbers in hosts.items())


@contextlib.contextmanager
def started(compression: str = 'none', timeout: int = 0) -> Iterator[HorovodWorker]:
    """Joins the processes that the launcher has started, for the block, which is given this one's worker.

    A process that raises leaves, and the others with it; where another one is lost, this one ends, status 1, and rank 0
    says so in one line. The same where one does not answer for the timeout, in seconds, or 0 for never; see Watch.
    """
    computes_here = not tf.config.list_physical_devices('GPU')
    for name, value in {**SETTINGS, **(SETTINGS_WITHOUT_GPU if computes_here else {})}.items():
        os.environ.setdefault(name, value)
    # Gloo would end all first, without a name.
    os.environ.setdefault('HOROVOD_GLOO_TIMEOUT_SECONDS', str(max(30, timeout)))
    hvd.init()
    worker = HorovodWorker(compression)
    if timeout:
        Watch(worker, timeout).start()  # until the process ends, as Horovod itself
    try:
        yield worker
        worker.gather(None)  # none ends, and falls silent, while rank 0 still saves
    except SystemExit:  # all ranks' decision
        if worker.rank:
            worker.wait_for_rank_0()
        raise
    except tf.errors.OpError as error:
        if not worker.lost(error):
            raise
        if worker.rank == 0:
            print(f'{script()}: error: another of the {worker.size} processes was lost; the same command continues '
                  'from the last save', file=sys.stderr)
        sys.exit(STATUS_LOST)
