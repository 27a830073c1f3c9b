"""The line between the executor and each of its workers beside vLLM's queues: orders that must arrive while those are stuck.

The executor's process listens on a socket without a name in the file system; every worker, first ones, replacements and standbys,
calls it when it is made. Both ends know each other by multiprocessing's key, which only one family of processes has.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")

#: Where a worker finds its executor.
ADDRESS_VARIABLE = "GPU_FT_IN_PLACE"

#: Before a name that is in no file system; the environment cannot hold it.
_ABSTRACT = "\0"


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker's first message."""

    rank: int
    pid: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """The executor's answer. A replacement waits `at_door` for `Go` before it enters a communicator."""

    at_door: bool


@dataclass(frozen=True, slots=True)
class Release:
    """To a survivor: leave whatever you are in, without the ranks `gone`, and wait for orders. Answer: "paused"."""

    gone: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Join:
    """To a paused survivor: enter the communicators found at `init_method`, read orders from `queue`. Answer: "joined"."""

    init_method: str
    queue: Any  # vLLM's handle of a broadcast queue
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Go:
    """To a replacement at the door."""


@dataclass(frozen=True, slots=True)
class Take:
    """To a standby: you are `rank` of the group at `init_method`, and read orders from `queue`. Answer: "at_door". `cpus`: where its
    threads may run."""

    rank: int
    init_method: str
    queue: Any
    timeout_s: float
    cpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Where:
    """What is your main thread doing? Answer: "where", with its innermost frames."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`kind`: "paused", "joined", "failed" (a Join; with why), "at_door", "where", "ready", "rehearsed" (a
    standby: from now on it can take a place)."""

    kind: str
    detail: str = ""


class Line:
    """The executor's end of one worker's connection."""

    def __init__(self, hello: Hello, connection: Connection) -> None:
        self.rank, self.pid = hello.rank, hello.pid
        self.connection = connection
        self.closed = False
        self._reading = threading.Lock()

    def send(self, order: Any) -> bool:
        """False when the worker is gone."""
        try:
            self.connection.send(order)
            return True
        except OSError:
            self.closed = True
            return False

    def answers(self) -> list[Answer]:
        """What has arrived. Never blocks."""
        found = []
        with self._reading:
            try:
                while self.connection.poll():
                    found.append(self.connection.recv())
            except (EOFError, OSError):
                self.closed = True
        return found

    def close(self) -> None:
        self.closed = True
        self.connection.close()


class Switchboard:
    """The executor's listener. `lines` by pid; filled by a thread of its own as workers call."""

    def __init__(self) -> None:
        self.address = f"gpu-ft-{os.getpid()}-{uuid.uuid4().hex}"
        self._listener = Listener(
            _ABSTRACT + self.address,
            "AF_UNIX",
            authkey=bytes(multiprocessing.current_process().authkey),
        )
        self._lock = threading.Condition()
        self._lines: dict[int, Line] = {}
        self._doors: set[int] = set()  # ranks whose next caller waits at the door
        self._closed = False
        threading.Thread(target=self._accept, daemon=True, name="gpu-ft-switchboard").start()

    def expect(self, ranks: Iterable[int]) -> None:
        """From now on, workers of these ranks that call are replacements."""
        with self._lock:
            self._doors.update(ranks)

    def line(self, pid: int, timeout_s: float = 0.0) -> Line | None:
        """The line of the worker `pid`, waiting for its call up to `timeout_s`."""
        with self._lock:
            self._lock.wait_for(lambda: pid in self._lines, timeout_s)
            return self._lines.get(pid)

    def drop(self, pid: int) -> None:
        with self._lock:
            line = self._lines.pop(pid, None)
        if line is not None:
            line.close()

    def close(self) -> None:
        self._closed = True
        with self._lock:
            lines, self._lines = list(self._lines.values()), {}
        for line in lines:
            line.close()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
                hello = connection.recv() if connection.poll(5.0) else None
            except (OSError, EOFError, multiprocessing.AuthenticationError) as error:
                if not self._closed:
                    _log.debug("a call of a worker failed: %r", error)
                continue
            if not isinstance(hello, Hello):
                connection.close()
                continue
            with self._lock:
                at_door = hello.rank in self._doors
                connection.send(Welcome(at_door))
                self._lines[hello.pid] = Line(hello, connection)
                self._lock.notify_all()


def call(address: str, rank: int) -> tuple[Connection, Welcome]:
    """A worker's call. Raises OSError when nobody listens."""
    key = bytes(multiprocessing.current_process().authkey)
    connection = Client(_ABSTRACT + address, "AF_UNIX", authkey=key)
    connection.send(Hello(rank, os.getpid()))
    return connection, connection.recv()


def wait_any(things: Iterable[Any], timeout_s: float) -> list[Any]:
    """Connections and sentinels that are readable now, or within `timeout_s`."""
    return list(wait(list(things), timeout=max(0.0, timeout_s)))
