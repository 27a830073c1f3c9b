"""Load or compute again: which leading blocks of a prefix are worth loading, by what both have cost so far.

The scheduler asks `choose` per request with measured rates; `patience` is how long the load may then take before computing
wins after all. Losing that race costs time, never the answer: whatever was not loaded is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: Where blocks of a prefix come from, the quickest first.
SOURCES = ("arena", "convert", "disk")

#: Weight of the newest measurement.
_NEWEST = 0.3
#: A refused source is believed to be this much better every time, so that it is tried again some day.
_FORGIVE = 0.97
#: A load may take this many times what computing the same tokens would, and never less than the floor.
_PATIENCE, _PATIENCE_FLOOR_S = 1.5, 1.0


@dataclass(slots=True)
class Rate:
    """Seconds per unit (byte or token) as an exponential average, weighted by units; None before the first measurement."""

    seconds_per_unit: float | None = None

    def observe(self, units: float, seconds: float) -> None:
        if units <= 0 or seconds < 0:
            return
        new, old = seconds / units, self.seconds_per_unit
        self.seconds_per_unit = new if old is None else old + _NEWEST * (new - old)

    def forgive(self) -> None:
        if self.seconds_per_unit is not None:
            self.seconds_per_unit *= _FORGIVE

    def seconds(self, units: float) -> float | None:
        return None if self.seconds_per_unit is None else self.seconds_per_unit * units


@dataclass(slots=True)
class Costs:
    """What was measured: loading one byte from each source, computing one token of a prompt."""

    load: Mapping[str, Rate] = field(default_factory=lambda: {name: Rate() for name in SOURCES})
    compute: Rate = field(default_factory=Rate)


@dataclass(frozen=True, slots=True)
class Choice:
    """Load the first `blocks`; give up after `timeout_s` (None: no limit of ours) and compute."""

    blocks: int
    timeout_s: float | None
    refused: str = ""  # the source that was not worth it, "" when everything is loaded


def choose(
    segments: Sequence[tuple[str, int]], *, block_bytes: int, block_tokens: int, costs: Costs
) -> Choice:
    """`segments` are (source, blocks) in prefix order, beyond what the engine has. Picks the cut with the least total time.

    A source that was never measured is taken as free, computing that was never measured as endless: the first requests of
    an engine load, and thereby measure."""
    total = sum(count for _, count in segments)
    compute = costs.compute.seconds(block_tokens)
    best, best_time, blocks, time = 0, None, 0, 0.0
    cuts = [("", 0), *segments]
    for source, count in cuts:
        if source:
            time += (costs.load[source].seconds(block_bytes) or 0.0) * count
        blocks += count
        whole = time + (0.0 if compute is None else compute * (total - blocks))
        if best_time is None or whole < best_time or compute is None:
            best, best_time = blocks, whole
    refused = _source_after(segments, best)
    timeout = None
    if compute is not None and best:
        timeout = max(_PATIENCE_FLOOR_S, _PATIENCE * compute * best)
    return Choice(best, timeout, refused)


def _source_after(segments: Sequence[tuple[str, int]], blocks: int) -> str:
    for source, count in segments:
        if blocks < count:
            return source
        blocks -= count
    return ""
