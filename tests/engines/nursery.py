"""Where the offline engines of the tests are born: one process that has vLLM's imports behind it and forks a child for each engine.

The imports are two thirds of an engine's start. Nothing but imports happens before the fork: no thread of ours, no tensor, no engine.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

#: What an engine of these tests loads anyhow; none of it starts a thread of its own.
IMPORTS = (
    "vllm.entrypoints.llm",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "dynamo_gpu_ft.engines.vllm.connector",
)
IMPORTS_S, BIRTH_S = 120.0, 30.0
_MOST = 256 << 10


class Born:
    """A child of the nursery, with as much of `subprocess.Popen` as its users need."""

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str]) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self._handle = -1
        with contextlib.suppress(
            ProcessLookupError
        ):  # it has ended: the nursery does not keep its dead
            self._handle = os.pidfd_open(pid)

    def send_signal(self, number: int) -> None:
        if self._handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        if self._handle < 0:
            return
        if not select.select([self._handle], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"engine {self.pid}", timeout)
        os.close(self._handle)
        self._handle = -1


class Nursery:
    """The asking side. Starts on construction, without waiting for the imports."""

    def __init__(self, program: Path, environment: dict[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(program), "--nursery", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        self._socket.settimeout(IMPORTS_S)

    def bear(self, orders: dict[str, Any], environment: dict[str, str], log: IO[bytes]) -> Born:
        """A new process that does what the program does with `orders`. Raises `OSError` when the nursery does not answer."""
        down, stdin = os.pipe2(os.O_CLOEXEC)
        stdout, up = os.pipe2(os.O_CLOEXEC)
        said = json.dumps({"orders": orders, "environment": environment}).encode()
        try:
            socket.send_fds(self._socket, [said], [down, up, log.fileno()])
        finally:
            os.close(down)
            os.close(up)
        pid = int(self._socket.recv(64) or 0)
        self._socket.settimeout(BIRTH_S)
        if not pid:
            raise OSError("the nursery of engines has ended")
        return Born(pid, os.fdopen(stdin, "w"), os.fdopen(stdout))

    def close(self) -> None:
        """Its children live on."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def serve(descriptor: int) -> dict[str, Any]:
    """The other side, after the imports: returns in each child, with its orders; ends with the process that asked."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as asked:
        while True:
            said, files, _, _ = socket.recv_fds(asked, _MOST, 3)
            if not said:
                sys.exit(0)
            pid = os.fork()
            if pid == 0:
                break
            for file in files:
                os.close(file)
            asked.send(str(pid).encode())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    order = json.loads(said)
    os.environ.clear()
    os.environ.update(order["environment"])
    return dict(order["orders"])
