"""The serving process's side of the arena: opening it once an engine has made it, and keeping the request ledger there.

An engine of another geometry makes another arena; the ledger then moves there with every open request. Without an arena (not
configured, or it could not be made) requests are still recovered from this process's memory.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from dynamo_gpu_ft import __version__, native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm.streams import Streams
from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.events import EventStream, NotProtectedEvent
from dynamo_gpu_ft.kv import arena
from dynamo_gpu_ft.metrics import metrics
from dynamo_gpu_ft.recovery.ledger import LedgerWriter

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")


class Shelter:
    """Opened at the first ready engine; stays open over all later ones."""

    def __init__(self, config: Config, events: EventStream) -> None:
        self._config, self._events = config, events
        self._arena: native._core.Arena | None = None
        self._file: tuple[int, int] | None = None
        self._tried = False

    def enter(self, streams: Streams) -> int:
        """The arena's epoch, 0 without an arena. The first success also starts the ledger. Never raises."""
        if not self._tried:
            self._tried = True
            try:
                self._open(streams)
            except (GpuFtError, RuntimeError) as error:
                self._events.emit(
                    NotProtectedEvent(
                        reason=f"no request ledger and no KV to restore from: {error}. After a fault, open "
                        "requests go on from this process's memory, by computing their prompts again"
                    )
                )
        elif self._arena is not None and self._file != _identity(self._config):
            try:
                self._move(streams)
            except (GpuFtError, RuntimeError) as error:
                self._events.emit(
                    NotProtectedEvent(
                        reason=f"the request ledger could not follow the engine to its new arena: {error}"
                    )
                )
        metrics().set("protected", 1 if self._arena is not None else 0)
        return self._arena.epoch if self._arena is not None else 0

    def _open(self, streams: Streams) -> None:
        opened = self._open_file()
        metrics().set("info", 1, version=__version__, digest=opened.digest_name)
        streams.ledger = LedgerWriter(opened, takeover=self._config.takeover)
        if streams.ledger.abandoned:
            _log.warning(
                "a former server left %d open requests in %s; their clients are gone, their KV is kept",
                len(streams.ledger.abandoned),
                opened.path,
            )

    def _open_file(self) -> native._core.Arena:
        identity = _identity(self._config)
        self._arena = arena.open_existing(Path(self._config.arena_path))
        self._file = identity
        return self._arena

    def _move(self, streams: Streams) -> None:
        """Another file lies where the arena was: an engine of another geometry made it."""
        former = self._arena
        opened = self._open_file()
        if streams.ledger is not None:
            streams.ledger = streams.ledger.move_to(opened, takeover=self._config.takeover)
        if former is not None:
            former.close()

    def close(self) -> None:
        """Closes the mapping; the file stays for whoever comes next."""
        if self._arena is not None:
            opened, self._arena = self._arena, None
            opened.close()


def _identity(config: Config) -> tuple[int, int] | None:
    """Device and inode of the arena's file; None when there is none."""
    try:
        found = os.stat(config.arena_path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
