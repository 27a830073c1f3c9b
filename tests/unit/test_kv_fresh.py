"""Logs that are refreshed behind their readers' back: answers never wait, and a disk that hangs only makes them old."""

from __future__ import annotations

import threading
from typing import Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv.fresh import FreshLog, Refresher


class Log:
    def __init__(self) -> None:
        self.refreshed, self.closed = threading.Event(), False
        self.hang: threading.Event | None = None
        self.error: Exception | None = None

    def refresh(self) -> None:
        if self.hang is not None:
            self.refreshed.set()
            self.hang.wait(30)
        if self.error is not None:
            self.refreshed.set()
            raise self.error
        self.refreshed.set()

    def close(self, timeout: float) -> None:
        self.closed = True


def pair() -> tuple[Any, Any]:
    return Log(), Log()


def test_the_reader_that_answers_is_never_the_one_that_is_being_refreshed() -> None:
    first, second = pair()
    log = FreshLog(first, second)
    log.refresh()
    assert (log.current, second.refreshed.is_set(), first.refreshed.is_set()) == (
        second,
        True,
        False,
    )
    log.refresh()
    assert log.current is first


def test_a_disk_that_hangs_leaves_the_last_answers_and_the_logs_open() -> None:
    first, second = pair()
    second.hang = threading.Event()
    log = FreshLog(first, second)
    refresher = Refresher([log], period_s=0.0)
    assert second.refreshed.wait(10)
    assert log.current is first
    refresher.close()
    assert not first.closed
    second.hang.set()


def test_a_log_that_fails_is_kept_and_the_others_stay_fresh() -> None:
    broken, healthy = pair(), pair()
    error = native.load().CoreError("gone")
    for log in broken:
        log.error = error
    refresher = Refresher([FreshLog(*broken), FreshLog(*healthy)], period_s=0.0)
    assert healthy[0].refreshed.wait(10)
    assert healthy[1].refreshed.wait(10)
    refresher.close()
    assert healthy[0].closed
