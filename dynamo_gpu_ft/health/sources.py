"""Where readings come from, as the monitor sees it: a thing that starts, calls back with readings, and stops.

The contract, and the one for probes that are asked now and then. Sources with native threads go through a `WatchQueue` instead.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from dynamo_gpu_ft.health.readings import Reading

_log = logging.getLogger("dynamo_gpu_ft.health")


class SourceOfReadings(Protocol):
    """`name` is unique in a monitor. `start` and `stop` are called once each, in this order, by one thread."""

    @property
    def name(self) -> str: ...

    def start(self, add: Callable[[Reading], None]) -> None:
        """Begins to call `add`, from whatever thread; `add` neither blocks nor raises. An exception here means that this
        source is not available, and is its reason."""

    def stop(self) -> None:
        """Calls `add` no more after this. Blocks for a bounded time."""


class Polled:
    """Asks `look` every `every_s` seconds on a thread of its own, so that a slow answer delays nobody else.

    A look that raises is told once and asked again: the cause may pass."""

    def __init__(
        self,
        name: str,
        look: Callable[[], Iterable[Reading]],
        every_s: float,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self._look, self._every_s, self._close = look, every_s, close
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._reported = False

    def start(self, add: Callable[[Reading], None]) -> None:
        self._thread = threading.Thread(
            target=self._run, args=(add,), name=f"gpu-ft-{self.name}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Waits five seconds at most: a look that is stuck in the driver is left alone."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(5.0)
            if self._close is not None and not self._thread.is_alive():
                self._close()

    def _run(self, add: Callable[[Reading], None]) -> None:
        while not self._over.is_set():
            try:
                for reading in self._look():
                    if not self._over.is_set():
                        add(reading)
            except Exception:
                if not self._reported:
                    self._reported = True
                    _log.exception("source %s: a look failed; later failures are not repeated", self.name)  # fmt: skip
            self._over.wait(self._every_s)
