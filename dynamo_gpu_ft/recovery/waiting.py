"""Waiting for descriptors, by poll: in a process with many files they have numbers that select refuses."""

from __future__ import annotations

import math
import select
from collections.abc import Iterable
from typing import Protocol


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def readable(descriptors: Iterable[int | HasFileno], timeout_s: float | None = None) -> set[int]:
    """Numbers of those that can be read without waiting, or whose other end is gone. Blocks until there is one, at most `timeout_s` (None: for
    ever)."""
    return _polled(descriptors, select.POLLIN, timeout_s)


def writable(descriptor: int | HasFileno, timeout_s: float | None = None) -> bool:
    """The same for writing to one."""
    return bool(_polled([descriptor], select.POLLOUT, timeout_s))


def _polled(
    descriptors: Iterable[int | HasFileno], events: int, timeout_s: float | None
) -> set[int]:
    poll = select.poll()
    for each in descriptors:
        poll.register(each, events)
    limit = None if timeout_s is None else math.ceil(max(0.0, timeout_s) * 1000)
    return {number for number, _ in poll.poll(limit)}
