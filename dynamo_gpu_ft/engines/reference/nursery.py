"""The nursery: a process that has imported everything and forks a rank when asked, which takes milliseconds instead of seconds.

It computes nothing, starts no thread and touches no device, so its forks are clean. Ranks end with it and it ends with the driver; its
own death is that of all ranks.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

import msgspec

from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.recovery import processes

_MODULE = "dynamo_gpu_ft.engines.reference.nursery"


class Nursery:
    """The driver's side. Start it on a thread that lives as long as the engine: it ends with that thread."""

    def __init__(self, options: Options, tag: str, environment: Mapping[str, str] = {}) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        threads = {"OMP_NUM_THREADS": str(options.threads)}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **threads, **environment, processes.TAG_VARIABLE: tag},
            )
        self._sock = ours
        self._sock.settimeout(5.0)
        self._options = msgspec.msgpack.encode(options)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def fork(self) -> socket.socket:
        """Asks for a rank and returns the driver's end of its channel, on which it says hello. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._sock, [self._options], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """Ends it, and with it every rank that is left."""
        self._sock.close()
        self.process.kill()
        self.process.wait(5.0)


def serve(asked: socket.socket) -> None:
    """Forks one rank for each message, until the driver is gone."""
    from dynamo_gpu_ft.engines.reference import rank

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, 1 << 20, 1)
        if not message:
            return
        if os.fork() == 0:
            status = 1
            try:
                asked.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                processes.die_with_parent()
                options = msgspec.msgpack.decode(message, type=Options)
                with socket.socket(fileno=descriptors[0]) as channel:
                    status = rank.main(channel, options)
            finally:
                os._exit(status)
        os.close(descriptors[0])


def main(argv: list[str]) -> int:
    processes.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    with socket.socket(fileno=int(argv[1])) as asked:
        serve(asked)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
