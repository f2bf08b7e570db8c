"""The part of one process among several that Horovod joins, by MPI or Gloo; no other file knows Horovod.

    with horovod_worker.started(compression='none', timeout=120) as worker:
        trainer.train(flags, worker)
"""
import contextlib
import json
import os
import sys
from collections.abc import Iterator

import horovod.tensorflow as hvd
import numpy as np
import tensorflow.compat.v1 as tf
from horovod.runner.util.network import get_local_host_addresses

from errors import InputError
from fast.session import cores
from training.watch import STATUS_LOST, Watch, script
from training.worker import Worker

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
        Watch(worker, timeout, get_local_host_addresses()).start()
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
