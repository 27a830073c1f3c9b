"""Readers of disk logs that stay fresh in the background, so that asking what is on disk never waits for a disk.

Each log is open twice: one reader answers while the other takes in what was committed since, then they change places. A disk
that hangs holds up the refreshing thread alone; answers then grow old, which costs loads and never their correctness.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynamo_gpu_ft import native

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

_log = logging.getLogger("dynamo_gpu_ft.kv")

PERIOD_S = 0.1
_JOIN_S = 1.0


class FreshLog:
    """`current` is the reader to ask; take it anew for every question."""

    def __init__(self, first: _core.DiskLog, second: _core.DiskLog) -> None:
        self.current, self._spare = first, second

    def refresh(self) -> None:
        """Blocks for the disk; called from one thread."""
        self._spare.refresh()
        self.current, self._spare = self._spare, self.current

    def close(self) -> None:
        self.current.close(1.0)
        self._spare.close(1.0)


class Refresher:
    """One thread that keeps logs fresh until it is closed."""

    def __init__(self, logs: Sequence[FreshLog], period_s: float = PERIOD_S) -> None:
        self._logs, self._period_s = list(logs), period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-ft-refresh", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Closes the logs as well; leaves them alone when the disk holds the thread up."""
        self._stop.set()
        self._thread.join(_JOIN_S)
        if not self._thread.is_alive():
            for log in self._logs:
                log.close()

    def _run(self) -> None:
        failed: set[int] = set()
        while not self._stop.wait(self._period_s):
            for number, log in enumerate(self._logs):
                try:
                    log.refresh()
                except native.load().CoreError as error:
                    if number not in failed:
                        failed.add(number)
                        _log.warning(
                            "a disk log cannot be followed, its new blocks are unknown: %s", error
                        )
