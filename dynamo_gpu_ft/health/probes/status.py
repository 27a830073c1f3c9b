"""Probes of what a GPU says of itself: slowed down, recovery action, lost. And the driver's version, which belongs to the machine.

The rest of the probes of `attach`; each amounts to one level at a time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from dynamo_gpu_ft.health.catalogue import lookup
from dynamo_gpu_ft.health.catalogue.verdicts import state_of
from dynamo_gpu_ft.health.probes.base import LevelProbe, Seen, reading, seen
from dynamo_gpu_ft.health.probes.nvml import LOST, RESET_REQUIRED, Answer, Gpu
from dynamo_gpu_ft.health.readings import Reading, State
from dynamo_gpu_ft.topology import Device

# The power cap set by software (0x4) and idling (0x1) are everyday and no sign of anything.
_SLOWED = {
    0x8: "hardware slowdown",
    0x20: "too hot (by software)",
    0x40: "too hot (by hardware)",
    0x80: "power brake",
}


class ThrottleProbe(LevelProbe):
    name = "throttle"

    def read(self, gpu: Gpu) -> Seen:
        reasons = gpu.ask("GetCurrentClocksEventReasons")
        if reasons.absent:
            reasons = gpu.ask("GetCurrentClocksThrottleReasons")
        return seen({"reasons": reasons})

    def level(self, values: Mapping[str, int]) -> tuple[State, str, int | None]:
        why = [text for bit, text in _SLOWED.items() if values["reasons"] & bit]
        if why:
            return State.DEGRADED, f"slowed down: {', '.join(why)}", None
        return State.HEALTHY, "not slowed down", None


class RecoveryActionProbe(LevelProbe):
    """Field 230. A value that the catalogue does not hold is a failure of an unknown kind, never "none"."""

    name = "recovery_action"

    def read(self, gpu: Gpu) -> Seen:
        return seen({"action": gpu.fields([230])[230]})

    def level(self, values: Mapping[str, int]) -> tuple[State, str, int | None]:
        found = lookup.recovery_action(values["action"])
        return state_of(found.class_name), found.title, values["action"]


class LostProbe(LevelProbe):
    """Whether any call said that the GPU is lost or must be reset. Looks last, when the others have asked."""

    name = "gpu_lost"

    def read(self, gpu: Gpu) -> Seen:
        asked = gpu.ask("GetPerformanceState")
        code = gpu.lost or (asked.code if asked.code in LOST else 0)
        return seen({"lost": Answer(code, 0)})

    def level(self, values: Mapping[str, int]) -> tuple[State, str, int | None]:
        code = values["lost"]
        if not code:
            return State.HEALTHY, "the GPU answers", None
        text = "the GPU must be reset" if code == RESET_REQUIRED else "the GPU is lost"
        return State.FAILED, text, code


class DriverVersion:
    """The version of the kernel module that is loaded. It changes when the driver is unloaded or replaced below the process,
    after which nothing of NVML in this process can be relied on."""

    def __init__(self, path: str = "/sys/module/nvidia/version") -> None:
        self._path = Path(path)

    def read(self) -> str:
        """ "" when no module is loaded, or it cannot be seen from here. Blocks for a file of the kernel's own."""
        try:
            return self._path.read_text().strip()
        except OSError:
            return ""

    def judge(self, before: str, now: str) -> list[Reading]:
        """Pure but for the clock."""
        if before == now or not before:
            return []
        event, text = ("bound", f"driver {now} is loaded, before it was {before}") if now else ("unloaded", f"driver {before} was unloaded")  # fmt: skip
        facts = {"event": event, "before": before, "version": now}
        return [reading("driver", Device(kind="node"), time.monotonic(), State.DEGRADED, text, facts=facts)]  # fmt: skip
