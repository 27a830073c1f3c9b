"""Counting in time windows: separate occurrences of a thing, and rates of counters. Bounded and indifferent to arrival order.

Used by the rules that ask "again?": repeated codes, flapping links, storms of corrected errors.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Bounded(OrderedDict[K, V], Generic[K, V]):
    """A dict of at most `room` keys: setting one more forgets the one that was set the longest ago."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.forgotten = 0

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self.room:
            self.popitem(last=False)
            self.forgotten += 1


class Times:
    """How many separate times something happened: times closer than `gap` to a neighbour are one.

    The answer depends on the set of times alone, not on the order in which they came; at most `room` separate ones are kept,
    the latest."""

    __slots__ = ("gap", "room", "spans")

    def __init__(self, gap: float, room: int = 64) -> None:
        self.gap = gap
        self.room = room
        self.spans: list[tuple[float, float]] = []

    def add(self, at: float) -> None:
        spans = self.spans
        i = bisect_left(spans, (at, at))
        lo, hi = at, at
        first, last = i, i
        if i > 0 and at - spans[i - 1][1] <= self.gap:
            first, lo, hi = i - 1, spans[i - 1][0], max(at, spans[i - 1][1])
        if i < len(spans) and spans[i][0] - at <= self.gap:
            last, hi = i + 1, max(hi, spans[i][1])
        spans[first:last] = [(lo, hi)]
        if len(spans) > self.room:
            del spans[0]

    def count(self, since: float) -> int:
        """Separate times of which the last moment is `since` or later."""
        spans = self.spans
        i = bisect_left(spans, (since, -math.inf))
        # Spans do not overlap: of those that began before, only the last can reach beyond.
        return len(spans) - i + (i > 0 and spans[i - 1][1] >= since)


class Rate:
    """The rate of a counter that only grows, between the oldest sample kept and the newest; a fall is a reset."""

    __slots__ = ("over", "samples")

    def __init__(self, over: float) -> None:
        self.over = over
        self.samples: list[tuple[float, float]] = []

    def add(self, at: float, value: float) -> float | None:
        """Counts per second over at least `over` seconds, None while there is not enough to say."""
        samples = self.samples
        if samples and (value < samples[-1][1] or at < samples[-1][0]):
            samples.clear()
        samples.append((at, value))
        # Keep one sample that is old enough to measure from, and nothing older.
        while len(samples) > 2 and at - samples[1][0] >= self.over:
            del samples[0]
        if len(samples) > 64:
            del samples[1::2]
        elapsed = at - samples[0][0]
        return (value - samples[0][1]) / elapsed if elapsed >= self.over else None
