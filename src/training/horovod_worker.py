"""A Worker among several, which Horovod joins by MPI or Gloo."""
import json
import os
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress

import horovod.tensorflow as hvd
import numpy as np
import tensorflow.compat.v1 as tf
from horovod.runner.util.network import get_local_host_addresses

from fast.session import cores
from storage import checkpoint
from training import log
from training.worker import Worker

NAMED, ENDED = 10, 16  # ticks without a sign until a rank is named, and all end


class HorovodWorker(Worker):
    def __init__(self, compression):
        gpus = len(tf.config.list_physical_devices('GPU'))
        super().__init__(hvd.rank(), hvd.size(), hvd.local_rank() % gpus if gpus else None)
        if hvd.local_size() > 1:  # the launcher may not bind processes to cores
            self.threads = min(cores(), max(1, os.cpu_count() // hvd.local_size()))
        self.compression = compression
        with tf.Graph().as_default(), tf.device('/cpu:0'):
            self.line = tf.placeholder(tf.uint8, [None])
            self.lines = hvd.allgather(self.line, name='lines')
            self.session = tf.Session(config=tf.ConfigProto(device_count={'GPU': 0}))

    def gather(self, value):
        line = json.dumps(value, default=float).encode() + b'\n'
        lines = self.session.run(self.lines, {self.line: np.frombuffer(line, np.uint8)})
        return list(map(json.loads, lines.tobytes().splitlines()))

    def broadcast(self, session, variables):
        for first in range(0, len(variables), 24):  # all at once would be in memory twice
            part = variables[first:first + 24]
            # Fed, as other ranks' variables have no values yet.
            sources = [tf.placeholder(v.dtype.base_dtype, v.shape) for v in part]
            values = session.run(part) if self.rank == 0 else [np.zeros(v.shape) for v in part]
            received = [hvd.broadcast(source, 0, name=f'broadcast_{v.op.name}')
                        for v, source in zip(part, sources, strict=True)]
            assigned = [checkpoint.assign_copy(v, value) for v, value in zip(part, received, strict=True)]
            session.run(assigned, dict(zip(sources, values, strict=True)))

    def reduce(self, grads):
        return [self.mean(grad, f'gradient_{i}') for i, grad in enumerate(grads)]

    def mean(self, grad, name):
        grad = tf.convert_to_tensor(grad)  # sparse ones would be gathered, not added up
        size = grad.shape.num_elements()
        if self.compression == 'none' or size < 4096:  # below, messages take the time
            return hvd.allreduce(grad, op=hvd.Average, name=name)
        # An all-reduce would round at each rank; here each gets a part of all, and sends the mean.
        padded = tf.pad(tf.reshape(grad, [-1]), [[0, -size % self.size]])
        parts = self.send(hvd.alltoall, padded, f'{name}_parts')
        part = tf.reduce_mean(tf.reshape(parts, [self.size, -1]), 0)
        return tf.reshape(self.send(hvd.allgather, part, name)[:size], grad.shape)

    def send(self, function, x, name):
        bits = tf.bitcast(tf.cast(x, self.compression), tf.float16)  # Horovod has no bfloat16
        return tf.cast(tf.bitcast(function(bits, name=name), self.compression), tf.float32)

    def is_of_peer(self, error):
        return isinstance(error, tf.errors.OpError) and error.op and error.op.type.startswith('Horovod')


class Watch(threading.Thread):
    """Sends signs of life by UDP, as Horovod waits for ever: docs/decisions/signs-of-life.md."""

    def __init__(self, worker, timeout):
        super().__init__(daemon=True)
        self.rank, self.tick, self.sign = worker.rank, timeout / 20, os.urandom(16).hex()
        self.socket = socket.socket(type=socket.SOCK_DGRAM)
        self.socket.bind(('', 0))
        own = [self.sign, socket.gethostname(), self.socket.getsockname()[1], [*get_local_host_addresses()]]
        self.hosts, self.ranks, self.places = [], {}, []
        for rank, (sign, host, port, addresses) in enumerate(worker.gather(own)):
            self.hosts.append(host)
            if rank != self.rank:
                self.ranks[sign.encode()] = rank
                self.places += [(address, port) for address in addresses]

    def run(self):
        last = {}  # rank: tick of its last sign; none counts while this process is stopped
        tick = longest = 0
        while longest < ENDED + 2 * (self.rank > 0):  # rank 0 first, or it would report a loss
            tick += 1
            for place in self.places:
                with suppress(OSError):
                    self.socket.sendto(self.sign.encode(), place)
            last.update(dict.fromkeys(self.heard(), tick))
            longest = tick - min(last.values(), default=tick)
            missing = {rank for rank in last if tick - last[rank] > NAMED // 2}
            if longest == NAMED and self.rank == min({*range(len(self.hosts))} - missing):
                self.warn(missing, f'has not answered for {NAMED * self.tick:.0f} seconds; soon all end')
            unknown = {*self.ranks.values()} - last.keys()
            if tick == NAMED and unknown and self.rank == 0:
                self.warn(unknown, 'sends no UDP: if it hangs, others wait for ever')
        os._exit(1)

    def heard(self):  # within a tick -> ranks
        ranks, end = set(), time.monotonic() + self.tick
        while (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            with suppress(OSError):
                ranks.add(self.ranks.get(self.socket.recv(64)))
        return ranks - {None}

    def warn(self, ranks, text):
        names = ', '.join(f'rank {rank} on {self.hosts[rank]}' for rank in sorted(ranks))
        threading.Thread(target=log.warn, args=[f'{names} {text}'], daemon=True).start()  # stderr may block


@contextmanager
def started(compression='none', timeout=0):  # -> HorovodWorker
    """Joins the launcher's processes. If one raises, is lost, or silent for `timeout` seconds (0: never), the
    others end with status 1, and rank 0 says so."""
    settings = {
        'HOROVOD_FUSION_THRESHOLD': '0',  # docs/decisions/horovod-settings.md
        'HOROVOD_STALL_CHECK_TIME_SECONDS': '3600',  # rank 0 may work alone for long
        'HOROVOD_GLOO_TIMEOUT_SECONDS': str(max(30, timeout))}  # else Gloo ends all first
    if not tf.config.list_physical_devices('GPU'):
        settings |= {'HOROVOD_CYCLE_TIME': '50', 'OMPI_MCA_mpi_yield_when_idle': '1'}
    os.environ.update(settings | os.environ)
    hvd.init()
    worker = HorovodWorker(compression)
    if timeout:
        Watch(worker, timeout).start()
    try:
        yield worker
        worker.gather(None)  # none falls silent while rank 0 still saves
    except SystemExit:  # of all ranks; at the first end the launcher ends all: rank 0 first
        if worker.rank:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow would report rank 0's end
            with suppress(tf.errors.OpError):
                worker.gather(None)
        raise
    except tf.errors.OpError as error:
        if not worker.is_of_peer(error):
            raise
        lost = f'error: another of the {worker.size} processes was lost; the same command goes on'
        sys.exit(1 if worker.rank else lost)
