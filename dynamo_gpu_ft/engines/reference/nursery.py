"""The nursery: a process that has imported everything and forks a rank when asked, which takes milliseconds instead of seconds.

It computes nothing, starts no thread and touches no device, so its forks are clean. It ends with the driver, and takes with it the ranks
that cannot end by themselves then, because they are stopped; its own death hurts nobody: the driver starts another one.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

import msgspec

from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.recovery import processes, waiting

_MODULE = "dynamo_gpu_ft.engines.reference.nursery"
_WARD = b"ward"  # instead of options: here is the descriptor of a rank that another nursery made


class Nursery:
    """The driver's side. `wards` are process descriptors of ranks that a former nursery made."""

    def __init__(
        self,
        options: Options,
        tag: str,
        environment: Mapping[str, str] = {},
        wards: Iterable[int] = (),
    ) -> None:
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
        self.born = time.monotonic()
        with suppress(OSError):
            for ward in wards:
                socket.send_fds(ours, [_WARD], [ward])

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def stopped(self) -> bool:
        return processes.is_stopped(self.process.pid)

    def fileno(self) -> int:
        """Becomes readable when the nursery is gone."""
        return self._sock.fileno()

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

    def end(self) -> None:
        """Ends it alone: its ranks live on."""
        self.process.kill()
        self.process.wait(5.0)
        self._sock.close()

    def close(self) -> None:
        """Ends it, and with it every rank that is left."""
        self._sock.close()
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:  # it is stopped, or in the middle of its imports
            self.process.kill()
            self.process.wait(5.0)


def serve(asked: socket.socket, driver: int) -> None:
    """Forks one rank for each message, until the driver (a process descriptor) is gone; then ends the ranks."""
    from dynamo_gpu_ft.engines.reference import rank
    from dynamo_gpu_ft.engines.reference.experts import rank as expert_rank

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    wards: list[int] = []
    while True:
        if driver in waiting.readable([asked, driver]):
            return _end(wards)
        message, descriptors, _, _ = socket.recv_fds(asked, 1 << 20, 1)
        if not message:
            return _end(wards)
        wards = _living(wards)
        if message == _WARD:
            wards += descriptors
        elif pid := os.fork():
            os.close(descriptors[0])
            with suppress(OSError):  # it is gone already
                wards.append(os.pidfd_open(pid))
        else:
            status = 1
            try:
                asked.close()
                for descriptor in (driver, *wards):
                    os.close(descriptor)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                options = msgspec.msgpack.decode(message, type=Options)
                with socket.socket(fileno=descriptors[0]) as channel:
                    serving = expert_rank.main if options.ep else rank.main
                    status = serving(channel, options)
            finally:
                os._exit(status)


def _living(wards: list[int]) -> list[int]:
    gone = waiting.readable(wards, 0)
    for descriptor in gone:
        os.close(descriptor)
    return [descriptor for descriptor in wards if descriptor not in gone]


def _end(wards: list[int]) -> None:
    for descriptor in wards:
        with suppress(OSError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def main(argv: list[str]) -> int:
    # A nursery that is stopped when its driver dies has to go on, to end its ranks.
    processes.told_at_parents_end(signal.SIGCONT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    driver = os.pidfd_open(
        os.getppid()
    )  # if that is no longer the driver, our end of the channel says so
    with socket.socket(fileno=int(argv[1])) as asked:
        serve(asked, driver)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
