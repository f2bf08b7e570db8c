"""A thread that finds processes that hang, which calls of Horovod would wait for."""
import contextlib
import os
import secrets
import socket
import sys
import threading
import time

from training import log

STATUS_LOST = 1  # of a process that ends because another one has
TICKS = 20  # of the timeout, in each of which every rank sends a sign
NAMED, ENDED = 10, 16  # ticks without a sign of a rank, after which it is named, and all begin to end


class Watch(threading.Thread):
    """Sends signs of life between all ranks, by UDP. Where one gives none, another names it, and all end.

    Where a rank is stopped or a cable is pulled, calls of Horovod do not come back. timeout: seconds after
    the last sign of a rank in which all have ended.
    """

    def __init__(self, worker, timeout, addresses):
        super().__init__(daemon=True)
        self.rank, self.tick = worker.rank, timeout / TICKS
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(('', 0))
        self.sign = secrets.token_hex(16)
        everyone = worker.gather([self.sign, socket.gethostname(), self.socket.getsockname()[1],
                                  list(addresses)])
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


def script() -> str:
    """The name of the script that runs."""
    return os.path.basename(sys.argv[0])
