"""One kind of evidence while it is being gathered: equal readings of one source about one device, folded together.

Fusion's working memory; what leaves it is frozen `Evidence`. Folding does not depend on the order of arrival.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from dynamo_gpu_ft.health.causes import Family
from dynamo_gpu_ft.health.incidents import Evidence, Verdict
from dynamo_gpu_ft.health.names import Known
from dynamo_gpu_ft.health.readings import Reading, State
from dynamo_gpu_ft.health.settings import Settings


class Entry:
    """Mutable. `single` is the verdict of one occurrence, `raised` that of repetition; `case` is what it is part of by now."""

    __slots__ = (
        "case",
        "ci",
        "code",
        "count",
        "family",
        "first",
        "foreign",
        "frozen",
        "gi",
        "key",
        "kind",
        "known",
        "last",
        "name",
        "order",
        "pid",
        "plain",
        "probe",
        "raised",
        "severity",
        "shard",
        "single",
        "verdict",
    )

    def __init__(
        self,
        key: tuple[Any, ...],
        known: Known,
        reading: Reading,
        family: tuple[Family, int],
        verdict: Verdict,
        kind: str,
    ) -> None:
        self.key = key
        self.known = known
        self.gi, self.ci = reading.device.gi, reading.device.ci
        self.probe, self.code = reading.probe, reading.code
        self.family, self.order = family
        self.kind, self.name = kind, name_of(reading)
        self.pid = None if reading.pid is None else (reading.pid_space, reading.pid)
        self.shard = reading.shard
        self.plain: bytes | None = None
        self.foreign = False
        self.first = self.last = reading
        self.count = max(1, reading.count)
        self.frozen = False
        self.case: Any = None
        self.single = self.verdict = verdict
        self.severity = verdict.unusable.severity
        self.raised: Verdict | None = None

    def rise(self, verdict: Verdict) -> bool:
        """Repetition makes it mean more; whether that is news."""
        if verdict == self.raised:
            return False
        self.raised = self.verdict = verdict
        self.severity = verdict.unusable.severity
        return True

    def fold(self, reading: Reading) -> bool:
        """One more; whether it is the earliest by now."""
        self.count += max(1, reading.count)
        if before(reading, self.first):
            self.first, self.plain = reading, None
            return True
        if before(self.last, reading):
            self.last = reading
        return False

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sorts causes before effects; total, so that equal sets of entries are always sorted alike."""
        if self.plain is None:
            self.plain = _plain(self.first)
        return (self.family, self.order, self.first.at, self.plain)

    def evidence(self) -> Evidence:
        return Evidence(first=self.first, last=self.last, count=self.count)


def before(a: Reading, b: Reading) -> bool:
    if a.at != b.at:
        return a.at < b.at
    return a is not b and _plain(a) < _plain(b)


def _plain(reading: Reading) -> bytes:
    return msgspec.msgpack.encode(reading)


def name_of(reading: Reading) -> str:
    """A fault in a word or two, for people and for tables."""
    if reading.probe == "driver":
        return "driver_" + (reading.facts.get("event", "")[:16] or "unresponsive")
    if reading.probe == "step":
        failed = "gone" if reading.facts.get("kind") == "gone" else "hang"
        return failed if reading.state is State.FAILED else "slow"
    if reading.probe == "event":
        return f"nvml event {reading.code or 0:#x}"
    if reading.code is None or reading.probe in ("gpu_lost", "nvlink", "fabric", "ecc", "rows"):
        return reading.probe[:32]
    return f"{reading.probe[:32]} {reading.code}"


def bounded(reading: Reading, settings: Settings) -> Reading:
    """The reading as it may be kept: text and facts of limited length, numbers that can be written down."""
    changes: dict[str, Any] = {}
    if not math.isfinite(reading.time):
        changes["time"] = 0.0
    if len(reading.text) > settings.text:
        changes["text"] = reading.text[: settings.text - 4] + " ..."
    facts = reading.facts
    limit = settings.text // 2
    if len(facts) > settings.facts or any(len(k) + len(v) > limit for k, v in facts.items()):
        kept = sorted(facts.items())[: settings.facts]
        changes["facts"] = {k[:limit]: v[: max(0, limit - len(k))] for k, v in kept}
    if len(reading.serial) > 64:
        changes["serial"] = reading.serial[:64]
    for name in ("code", "pid", "shard", "count"):
        if not _fits(getattr(reading, name)):
            changes[name] = 1 if name == "count" else None
    if len(reading.probe) > 32:
        changes["probe"] = reading.probe[:32]
    device = reading.device
    if not (_fits(device.index) and _fits(device.gi) and _fits(device.ci)):
        changes["device"] = msgspec.structs.replace(device, index=None, gi=None, ci=None)
    return msgspec.structs.replace(reading, **changes) if changes else reading


def _fits(number: int | None) -> bool:
    """Whether a number can be written down: no source has any of more than 64 bits."""
    return number is None or -(1 << 63) <= number < 1 << 63
