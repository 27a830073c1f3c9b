"""All probes on all GPUs of this process: a baseline at attach, then looks, each GPU in the thread of its own guard.

Called by the monitor, from one thread; the readings go to fusion. A stuck GPU costs one reading and is left alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial

import msgspec

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.health.guard import Outcome
from dynamo_gpu_ft.health.probes.base import Look, Probe, Seen, reading, why_not
from dynamo_gpu_ft.health.probes.fabric import FabricProbe
from dynamo_gpu_ft.health.probes.memory import EccProbe, RowsProbe
from dynamo_gpu_ft.health.probes.nvlink import NvlinkProbe
from dynamo_gpu_ft.health.probes.nvml import Gpu, Nvml, open_nvml
from dynamo_gpu_ft.health.probes.pcie import PcieProbe
from dynamo_gpu_ft.health.probes.status import (
    DriverVersion,
    LostProbe,
    RecoveryActionProbe,
    ThrottleProbe,
)
from dynamo_gpu_ft.health.readings import Reading, State

# The lost GPU is asked for last, so that it hears what the others were told.
PROBES: tuple[Probe, ...] = (
    RecoveryActionProbe(), EccProbe(), RowsProbe(), NvlinkProbe(), FabricProbe(), PcieProbe(), ThrottleProbe(), LostProbe(),
)  # fmt: skip

_MARGIN_S = 0.05


class Attached:
    """Mutable; used by one thread. `look` blocks for `deadline_s` and 50 ms at most: what takes longer is taken along by the next look."""

    def __init__(
        self,
        nvml: Nvml,
        gpus: Sequence[Gpu],
        deadline_s: float,
        probes: Sequence[Probe] = PROBES,
        driver_version: DriverVersion | None = None,
    ) -> None:
        self.driver = nvml.driver
        self._nvml = nvml
        self._gpus = list(gpus)
        self._deadline_s = deadline_s
        self._probes = tuple(probes)
        self._version = driver_version or DriverVersion()
        self._loaded = self._version.read()
        self._before: dict[tuple[int, str], Seen] = {}
        self._why_not: dict[tuple[int, str], str] = {}
        self._told: set[int] = set()
        self._under_way: set[int] = set()

    def look(self) -> list[Reading]:
        """What is new on every GPU since the look before; the first look of a GPU is its baseline."""
        for number, gpu in enumerate(self._gpus):
            if number not in self._under_way and gpu.guard.begin(partial(self._ask, number, gpu)):
                self._under_way.add(number)
        # A little more than the deadline, so that a call that began last is told in this look and not in the next.
        until = time.monotonic() + self._deadline_s + _MARGIN_S
        found: list[Reading] = []
        for number, gpu in enumerate(self._gpus):
            found += self._collect(number, gpu, until)
        loaded = self._version.read()
        found += self._version.judge(self._loaded, loaded)
        self._loaded = loaded or self._loaded
        return found

    def support(self) -> list[dict[str, str]]:
        """Per GPU and probe: "" or why it cannot be seen; as of the first look."""
        return [
            {p.name: self._why_not.get((number, p.name), gpu.guard.stuck or "not asked yet") for p in self._probes}
            for number, gpu in enumerate(self._gpus)
        ]  # fmt: skip

    def close(self) -> None:
        """Blocks for NVML's own shutdown, a deadline at most; not at all where a GPU is stuck: NVML must not be closed then."""
        for gpu in self._gpus:
            gpu.guard.close()
        if not any(gpu.guard.stuck for gpu in self._gpus) and not self._under_way:
            self._nvml.close()

    def _collect(self, number: int, gpu: Gpu, until: float) -> list[Reading]:
        outcome = Outcome.STUCK
        if number in self._under_way:
            outcome, looks = gpu.guard.wait(until)
            if outcome is Outcome.RUNNING:
                return []
            self._under_way.discard(number)
            if outcome is Outcome.DONE:
                return self._keep(number, looks)
        if number in self._told:
            return []
        self._told.add(number)
        facts = {"call": gpu.guard.stuck, "deadline_s": f"{self._deadline_s:g}", "name": "driver_unresponsive"}  # fmt: skip
        text = f"driver_unresponsive: {gpu.guard.stuck or 'a call'} did not return within {self._deadline_s:g} s"  # fmt: skip
        return [reading("driver", gpu.device, time.monotonic(), State.FAILED, text, facts=facts)]

    def _keep(self, number: int, looks: list[tuple[Probe, Look]]) -> list[Reading]:
        found = []
        for probe, look in looks:
            self._before[number, probe.name] = look.now
            found += look.readings
        return found

    def _ask(self, number: int, gpu: Gpu) -> list[tuple[Probe, Look]]:
        """In the guard's thread: every probe. One that raises is told as unknown, the others go on; a lost GPU is told once."""
        gpu.lost = 0
        looks: list[tuple[Probe, Look]] = []
        for probe in self._probes:
            last = isinstance(probe, LostProbe)
            if gpu.lost and not last:
                continue
            try:
                look = self._one(number, gpu, probe)
            except Exception as error:
                look = self._failed(number, gpu, probe, error)
            if last or not gpu.lost:
                looks.append((probe, look))
        return looks

    def _one(self, number: int, gpu: Gpu, probe: Probe) -> Look:
        key = (number, probe.name)
        before = self._before.get(key)
        if before is not None:
            return probe.look(gpu, before)
        look = probe.baseline(gpu)
        self._why_not[key] = why_not(look.now)
        return look

    def _failed(self, number: int, gpu: Gpu, probe: Probe, error: Exception) -> Look:
        """A probe that raised: one unknown reading, and the values of before are kept."""
        at = time.monotonic()
        before = self._before.get((number, probe.name), Seen(at=at))
        text = f"the probe failed: {type(error).__name__}: {error}"
        told = [reading(probe.name, gpu.device, at, State.UNKNOWN, text)]
        kept = msgspec.structs.replace(before, unread={**before.unread, "probe": -1})
        return Look([] if "probe" in before.unread else told, kept)


def attach(
    config: Config, indexes: Iterable[int] | None = None, library: str = ""
) -> tuple[Attached, list[Reading]]:
    """Opens NVML and takes the baseline of the GPUs of these indexes (None: all): the probes, and what was there already.

    Blocks for a few deadlines (`health_call_deadline_s`) at most. Raises `NotProtected` when NVML cannot be opened.
    """
    deadline = config.health_call_deadline_s
    nvml = open_nvml(deadline, library)
    attached = Attached(nvml, nvml.gpus(indexes), deadline)
    return attached, attached.look()
