"""What repetition means: the same code again on the same place of a GPU, flapping links, storms of corrected errors.

Between a reading and its entry: a repetition raises the verdict of the entry. Bounded tables; the answer depends on the set of
times, not on their order.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from dynamo_gpu_ft.health.incidents import Action, Unusable, Verdict
from dynamo_gpu_ft.health.names import Known
from dynamo_gpu_ft.health.readings import Reading, State
from dynamo_gpu_ft.health.rules import STORM
from dynamo_gpu_ft.health.settings import Settings
from dynamo_gpu_ft.health.windows import Bounded, Rate, Times

_PLACE = re.compile(r"GPC (\d+), TPC (\d+)")
_DEVICES = 64
_CORRECTED = ("corrected", "sbe", "volatile_corrected", "correctable")


class Repeats:
    """`verdict(...)` says what this reading means given all before it; None: no more than by itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._times: Bounded[tuple[Any, ...], Times] = Bounded(4096)
        self._last31: Bounded[int, float] = Bounded(_DEVICES)
        self._waiting: Bounded[int, float] = Bounded(_DEVICES)
        self._rates: Bounded[tuple[Any, ...], Rate] = Bounded(1024)

    def verdict(self, known: Known, reading: Reading, kind: str, single: Verdict) -> Verdict | None:
        if reading.probe == "ecc":
            return self._storm(known, reading)
        if reading.probe == "event" and reading.code == 1:
            times = self._count((known.number, "sbe"), reading.at)
            return STORM if times >= 10 * self._settings.repeat_count else None
        if reading.probe not in ("xid", "nvlink5", "sxid"):
            return None
        if kind == "UNKNOWN" or kind == "UNUSED":
            return self._unknown(known, reading)
        if reading.probe == "xid" and reading.code == 13:
            return self._same_place(known, reading)
        if reading.probe == "xid" and reading.code == 31:
            self._same_gpu(known, reading)
            return None
        if kind == "LINK_DEGRADED" and single.unusable is Unusable.NOTHING:
            return self._link(known, reading)
        return None

    def went_down(self, known: Known, reading: Reading) -> int:
        """How many separate times this link went down within the window of flapping."""
        key = (known.number, "down", reading.facts.get("link", ""))
        times = self._times.get(key) or Times(self._settings.repeat_gap_s)
        self._times[key] = times
        times.add(reading.at)
        return times.count(reading.at - self._settings.flap_window_s)

    def downs(self, known: Known, link: str, now: float) -> int:
        times = self._times.get((known.number, "down", link))
        return 0 if times is None else times.count(now - self._settings.flap_window_s)

    def _count(self, key: tuple[Any, ...], at: float) -> int:
        times = self._times.get(key)
        if times is None:
            times = self._times[key] = Times(self._settings.repeat_gap_s)
        times.add(at)
        return times.count(at - self._settings.repeat_window_s)

    def _unknown(self, known: Known, reading: Reading) -> Verdict | None:
        n = self._count((known.number, reading.probe, reading.code), reading.at)
        if n < self._settings.repeat_count:
            return None
        return _suspect(f"an unknown code came {self._often()}")

    def _same_place(self, known: Known, reading: Reading) -> Verdict | None:
        """XID 13 again on the same GPC and TPC: NVIDIA's workflow suspects the hardware; anywhere else, the application."""
        place = (reading.facts.get("gpc", ""), reading.facts.get("tpc", ""))
        if not all(place):
            match = _PLACE.search(reading.text)
            if match is None:
                return None
            place = (match[1], match[2])
        n = self._count((known.number, 13, reading.device.gi, place), reading.at)
        if n < self._settings.repeat_count:
            return None
        return _suspect(f"XID 13 came {self._often()} on GPC {place[0]}, TPC {place[1]}")

    def _same_gpu(self, known: Known, reading: Reading) -> None:
        """XID 31 again on the same GPU and on no other: the hardware; on several GPUs: the application.

        Said by `due` one window later, when the others have had their time to show it."""
        n = self._count((known.number, 31), reading.at)
        last = self._last31.get(known.number, reading.at)
        self._last31[known.number] = max(reading.at, last)
        if n >= self._settings.repeat_count and known.number not in self._waiting:
            self._waiting[known.number] = reading.at + self._settings.window_s

    def deadline(self) -> float | None:
        """When `due` will have something to decide; None: nothing waits."""
        return min(self._waiting.values(), default=None)

    def due(self, now: float) -> dict[int, Verdict]:
        """Devices by number whose XID 31 turned out to be theirs alone, with the verdict that follows."""
        ripe = [number for number, at in self._waiting.items() if at <= now]
        found = {}
        for number in ripe:
            since = self._waiting.pop(number) - self._settings.repeat_window_s
            if not any(at >= since for other, at in self._last31.items() if other != number):
                found[number] = _suspect(f"XID 31 came {self._often()} on this GPU and no other")
        return found

    def _link(self, known: Known, reading: Reading) -> Verdict | None:
        key = (known.number, reading.probe, reading.code, reading.facts.get("link", ""))
        n = self._count(key, reading.at)
        if n < self._settings.repeat_count:
            return None
        return Verdict(
            unusable=Unusable.NOTHING,
            action=Action.DRAIN_AND_RESET_GPU,
            lasting=True,
            reason=f"a survived link error came {self._often()}",
        )

    def _storm(self, known: Known, reading: Reading) -> Verdict | None:
        if reading.state is State.UNKNOWN:
            return None
        told = next((reading.facts[name] for name in _CORRECTED if name in reading.facts), None)
        if told is None or not told.isdigit() or len(told) > 20:
            return None
        key = (known.number, reading.source, reading.facts.get("where", ""))
        rate = self._rates.get(key)
        if rate is None:
            rate = self._rates[key] = Rate(self._settings.sbe_over_s)
        per_second = rate.add(reading.at, float(int(told)))
        if per_second is None or per_second < self._settings.sbe_per_s:
            return None
        # The rate itself is in the readings' facts: a verdict whose words changed with it would be a new version each time.
        return msgspec.structs.replace(
            STORM,
            reason=f"more than {self._settings.sbe_per_s:g} corrected memory errors per second: "
            "the memory is wearing out, reset the GPU when it is drained",
        )

    def _often(self) -> str:
        """Without the count: words that change with every reading would be a new version each time."""
        return (
            f"{self._settings.repeat_count} times or more "
            f"within {self._settings.repeat_window_s:g} s"
        )


def _suspect(what: str) -> Verdict:
    return Verdict(
        unusable=Unusable.GPU,
        action=Action.DRAIN_AND_RESET_GPU,
        lasting=True,
        certain=False,
        reason=f"{what}: the hardware is suspect, have it diagnosed before it is used again",
    )
