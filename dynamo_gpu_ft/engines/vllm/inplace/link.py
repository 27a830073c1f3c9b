"""EngineCore's end of the line to the serving process: tells it what a recovery does, hears its verdicts and wishes.

The serving process listens under the tag of the engine it starts; without one (plain `vllm serve`) there is no line, and recovery
works from what EngineCore sees by itself.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection

from dynamo_gpu_ft.events import Event, encode
from dynamo_gpu_ft.recovery import processes

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")


def address(tag: str) -> str:
    """Where the serving process listens for the engine it started under `tag`; in no file system."""
    return f"\0gpu-ft-front-{tag}"


@dataclass(frozen=True, slots=True)
class Armed:
    """From EngineCore: losses are recovered in place from now on. `members`: shard -> pid, in `epoch`; `standbys` of them are ready."""

    members: Mapping[int, int]
    standbys: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """From EngineCore: an event, encoded."""

    event: bytes


@dataclass(frozen=True, slots=True)
class Noticed:
    """From EngineCore: a worker is lost, and perhaps no step is under way that would find out. Ask the engine something."""

    shard: int


@dataclass(frozen=True, slots=True)
class Condemn:
    """To EngineCore: these workers must go. `members`: shard -> pid, so that nobody else is meant; `environment` is what their
    replacements get in addition (other devices)."""

    members: Mapping[int, int]
    reason: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Suspect:
    """To EngineCore: no step ends, and it cannot be told from outside who holds it up."""

    reason: str


@dataclass(frozen=True, slots=True)
class Undecided:
    """From EngineCore, in answer: neither can it be told from inside."""

    reason: str


class Link:
    """`on_order` is called on the link's thread."""

    def __init__(self, on_order: Callable[[Condemn | Suspect], None]) -> None:
        self._on_order = on_order
        self._connection: Connection | None = None
        self._sending = threading.Lock()
        tag = os.environ.get(processes.TAG_VARIABLE, "")
        if not tag:
            return
        try:
            key = bytes(multiprocessing.current_process().authkey)
            self._connection = Client(address(tag), "AF_UNIX", authkey=key)
        except (OSError, EOFError, multiprocessing.AuthenticationError) as error:
            _log.info("no serving process listens to this engine's recoveries: %r", error)
            return
        threading.Thread(target=self._listen, daemon=True, name="gpu-ft-link").start()

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def send(self, message: object) -> None:
        """Never raises; without a line, nothing happens."""
        connection = self._connection
        if connection is None:
            return
        with self._sending:
            try:
                connection.send(message)
            except OSError:
                self._connection = None

    def tell(self, event: Event) -> None:
        """Listener of an event stream."""
        self.send(Told(encode(event)))

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _listen(self) -> None:
        connection = self._connection
        while connection is not None and self._connection is connection:
            try:
                order = connection.recv()
            except (EOFError, OSError):
                self._connection = None
                return
            if isinstance(order, (Condemn, Suspect)):
                self._on_order(order)
