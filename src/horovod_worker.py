"""The part of one process among several that Horovod joins, by MPI or by Gloo; the only file of src that knows Horovod.

    with horovod_worker.started(compression='none') as worker:
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

import trainer
from errors import InputError
from load_dataset import cores

STATUS_LOST = 1  # of a process that ends because another one has
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


@contextlib.contextmanager
def started(compression: str = 'none') -> Iterator[HorovodWorker]:
    """Joins the processes that the launcher has started, for the block, which is given this one's worker.

    A process that raises leaves, and the others with it; where another one is lost, this one ends, status 1, and rank 0
    says so in one line.
    """
    computes_here = not tf.config.list_physical_devices('GPU')
    for name, value in {**SETTINGS, **(SETTINGS_WITHOUT_GPU if computes_here else {})}.items():
        os.environ.setdefault(name, value)
    hvd.init()
    worker = HorovodWorker(compression)
    try:
        yield worker
    except SystemExit:  # all ranks' decision
        if worker.rank:
            worker.wait_for_rank_0()
        raise
    except tf.errors.OpError as error:
        if not worker.lost(error):
            raise
        if worker.rank == 0:
            print(f'{os.path.basename(sys.argv[0])}: error: another of the {worker.size} processes was lost; the same '
                  'command continues from the last save', file=sys.stderr)
        sys.exit(STATUS_LOST)
