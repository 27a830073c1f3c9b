"""What the health room says of an engine's ranks, heard on the monitor's thread and answered on the driver's: incidents in, sentences out.

The driver asks whenever it looks at its ranks, in a recovery too, and is woken from its waits; it decides what a sentence means.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from dynamo_gpu_ft.health.incidents import Incident
from dynamo_gpu_ft.health.monitor import Monitor
from dynamo_gpu_ft.recovery.verdicts import Sentence, Verdicts


class Hearing:
    """`since` says when a shard's process began to hold it, in monotonic seconds: a context that died before is not its own."""

    def __init__(self, monitor: Monitor, since: Callable[[int], float]) -> None:
        self._since, self._verdicts = since, Verdicts()
        self._heard: deque[Incident] = deque(maxlen=1000)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._end = monitor.listen(self._hear)

    def fileno(self) -> int:
        """Readable while something was heard and not taken."""
        return self._wake

    def _hear(self, incident: Incident) -> None:
        self._heard.append(incident)
        with suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def take(self) -> list[Sentence]:
        """What is to be answered since the last call; one sentence for each fault and severity. Never blocks."""
        if not self._heard:
            return []
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        found = []
        while self._heard:
            incident = self._heard.popleft()
            began = max((self._since(shard) for shard in incident.shards), default=0.0)
            if sentence := self._verdicts.weigh(incident, started=began):
                found.append(sentence)
        return found

    def close(self) -> None:
        self._end()
        os.close(self._wake)
