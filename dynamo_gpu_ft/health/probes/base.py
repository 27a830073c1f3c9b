"""The contract of a probe, and what all of them share: read values, compare them with those before, say what changed.

Reading is the effect (driver calls, in the thread of the GPU's guard); judging is a pure function of two readings of values.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import msgspec

from dynamo_gpu_ft.health.probes.nvml import NOT_SUPPORTED, Answer, Gpu
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.topology import Device


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """Values of one moment.

    values  by name, "recovery.3" for link 3; what a device does not have is not in it
    unread  names that could not be read now, with NVML's code
    past    (at, values) of moments before, for windows; newest last, bounded
    """

    at: float
    values: Mapping[str, int] = {}
    unread: Mapping[str, int] = {}
    past: tuple[tuple[float, Mapping[str, int]], ...] = ()


class Look(NamedTuple):
    """What a look gave: readings, and what the next look compares with."""

    readings: list[Reading]
    now: Seen


class Probe(ABC):
    """One subject of one GPU.

    `supported`, `read`, `baseline` and `look` make driver calls through `gpu`, so they belong into the work of its guard: they
    block for the guard's deadline per call at most, change nothing on the device, keep no state of their own, and raise nothing.
    """

    name: ClassVar[str]

    @abstractmethod
    def read(self, gpu: Gpu) -> Seen:
        """The values of now."""

    @abstractmethod
    def judge(self, device: Device, before: Seen | None, now: Seen) -> list[Reading]:
        """What is worth a reading. `before` None: the baseline, what was there already. Pure."""

    def supported(self, gpu: Gpu) -> str:
        """ "" when this GPU and driver have the subject, else why it cannot be seen."""
        return why_not(self.read(gpu))

    def baseline(self, gpu: Gpu) -> Look:
        """The first look: its readings are marked as what was there already."""
        now = self.read(gpu)
        found = self.blind(gpu.device, Seen(at=now.at), now) + self.judge(gpu.device, None, now)
        return Look([msgspec.structs.replace(each, baseline=True) for each in found], now)

    def look(self, gpu: Gpu, before: Seen) -> Look:
        """A later look, compared with the one before."""
        now = self.remember(before, self.read(gpu))
        return Look(self.blind(gpu.device, before, now) + self.judge(gpu.device, before, now), now)

    def remember(self, before: Seen, now: Seen) -> Seen:
        """What this look is judged by and the next compares with: what cannot be read now is taken to be as it was."""
        if not now.unread:
            return now
        return msgspec.structs.replace(now, values={**before.values, **now.values})

    def blind(self, device: Device, before: Seen, now: Seen) -> list[Reading]:
        """One unknown reading when something cannot be read, told once."""
        fresh = {name: code for name, code in now.unread.items() if name not in before.unread}
        if not fresh:
            return []
        shown = ", ".join(f"{n} (NVML code {c})" for n, c in sorted(fresh.items())[:4])
        return [reading(self.name, device, now.at, State.UNKNOWN, f"cannot be read: {shown}")]


class LevelProbe(Probe):
    """A probe whose values amount to one level at a time: a reading whenever that changes, and at the baseline if it is no good."""

    def remember(self, before: Seen, now: Seen) -> Seen:
        # What was there and is not supported all at once is not healthy: it is unread.
        gone = before.values.keys() - now.values.keys()
        unread = now.unread or dict.fromkeys(gone, NOT_SUPPORTED)
        return super().remember(before, msgspec.structs.replace(now, unread=unread))

    @abstractmethod
    def level(self, values: Mapping[str, int]) -> tuple[State, str, int | None]:
        """State, words and code that these values amount to. Pure."""

    def judge(self, device: Device, before: Seen | None, now: Seen) -> list[Reading]:
        if not now.values:
            return []
        state, text, code = self.level(now.values)
        if before is None or not before.values:
            if state is State.HEALTHY:
                return []
        elif (state, text, code) == self.level(before.values):
            return []
        facts = {name: str(value) for name, value in sorted(now.values.items())[:16]}
        return [reading(self.name, device, now.at, state, text, code, facts)]


def reading(
    probe: str,
    device: Device,
    at: float,
    state: State,
    text: str,
    code: int | None = None,
    facts: dict[str, str] | None = None,
) -> Reading:
    return Reading(
        at=at, time=time.time(), source=Source.NVML_COUNTER, probe=probe, state=state, device=device,
        code=code, text=text, facts=facts or {},
    )  # fmt: skip


def seen(answers: Mapping[str, Answer], at: float | None = None) -> Seen:
    """Values and failures of some answers by name; what is not supported is neither."""
    values = {name: int(a.value) for name, a in answers.items() if a.code == 0}
    unread = {name: a.code for name, a in answers.items() if a.code and not a.absent}
    return Seen(at=time.monotonic() if at is None else at, values=values, unread=unread)


def why_not(now: Seen) -> str:
    if now.values:
        return ""
    if now.unread:
        return f"cannot be read: NVML code {next(iter(now.unread.values()))}"
    return "not supported by this GPU or driver"


def grown(before: Seen, now: Seen, name: str) -> int:
    """By how much a counter grew; a counter that fell was reset and begins anew; 0 where either value is missing."""
    if name not in before.values or name not in now.values:
        return 0
    rise = now.values[name] - before.values[name]
    return rise if rise >= 0 else now.values[name]
