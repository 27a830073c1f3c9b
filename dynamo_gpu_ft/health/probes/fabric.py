"""The fabric probe: whether a GPU is registered with the NVLink fabric, and what the fabric says of its health.

One of the probes of `attach`. NOTE: the registration does not fall back when the fabric manager dies; where the driver tells the
manager's own state (since 615), that is read too.
"""

from __future__ import annotations

from collections.abc import Mapping

from dynamo_gpu_ft.health.probes.base import LevelProbe, Seen, seen
from dynamo_gpu_ft.health.probes.nvml import NOT_SUPPORTED, Answer, Gpu
from dynamo_gpu_ft.health.readings import Reading, State
from dynamo_gpu_ft.topology import Device

_STATES = {1: "registration has not begun", 2: "registration is under way", 3: "registered"}
COMPLETED = 3
# Two bits each: 1 yes, 2 no. What a yes means.
_YES = {
    0: (State.DEGRADED, "bandwidth is reduced"),
    2: (State.DEGRADED, "routes are being recovered"),
    4: (State.FAILED, "a route is unhealthy"),
    6: (State.DEGRADED, "recovering from an access timeout"),
}
# ... and what a no means.
_NO = {
    12: (State.FAILED, "no partition is assigned"),
    14: (State.DEGRADED, "the fabric manager is disconnected"),
}
_WRONG = {
    2: "wrong system id", 3: "wrong chassis", 4: "no partition", 5: "too few links", 6: "GPU firmware does not fit",
    7: "wrong location", 8: "the GPU's state is invalid",
}  # fmt: skip
_KNOWN_BITS = 0xFFFF
_ORDER = (State.HEALTHY, State.UNKNOWN, State.DEGRADED, State.FAILED)


class FabricProbe(LevelProbe):
    """A GPU that is not registered yet is "degraded"; one that was and is no more is "failed"."""

    name = "fabric"

    def read(self, gpu: Gpu) -> Seen:
        found = gpu.fill("GetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v3_t")
        if found.absent:
            found = gpu.fill("GetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v2_t")
        if found.code != 0:
            return seen({"fabric": found})
        info = found.value
        if info.state == 0:
            return seen({"fabric": Answer(None, NOT_SUPPORTED)})
        answers = {name: Answer(getattr(info, name), 0) for name in ("state", "status", "cliqueId", "healthMask")}  # fmt: skip
        if hasattr(info, "healthSummary"):
            answers["healthSummary"] = Answer(info.healthSummary, 0)
        return seen(answers)

    def level(self, values: Mapping[str, int]) -> tuple[State, str, int | None]:
        parts: list[tuple[State, str]] = []
        state = values["state"]
        if state != COMPLETED:
            known = State.DEGRADED if state in _STATES else State.UNKNOWN
            parts.append((known, _STATES.get(state, f"registration state {state}")))
        elif values["status"]:
            parts.append((State.FAILED, f"registration failed with NVML code {values['status']}"))
        mask = values["healthMask"]
        parts += [sign for shift, sign in _YES.items() if mask >> shift & 3 == 1]
        parts += [sign for shift, sign in _NO.items() if mask >> shift & 3 == 2]
        wrong = mask >> 8 & 0xF
        if wrong > 1:
            parts.append((State.FAILED, f"configured wrongly: {_WRONG.get(wrong, wrong)}"))
        if mask & ~_KNOWN_BITS:
            parts.append((State.UNKNOWN, f"health mask 0x{mask:x} has bits without a meaning here"))
        summary = values.get("healthSummary", 0)
        if summary == 2:
            parts.append((State.FAILED, "unhealthy in sum"))
        elif summary == 3:
            parts.append((State.DEGRADED, "limited in capacity"))
        elif summary > 3:
            parts.append((State.UNKNOWN, f"health summary {summary}"))
        if not parts:
            return State.HEALTHY, _STATES[COMPLETED], None
        worst = max((s for s, _ in parts), key=_ORDER.index)
        return worst, "; ".join(text for _, text in parts), None

    def judge(self, device: Device, before: Seen | None, now: Seen) -> list[Reading]:
        found = super().judge(device, before, now)
        was = None if before is None else before.values.get("state")
        if was == COMPLETED and now.values.get("state", COMPLETED) != COMPLETED:
            return [_failed(each) for each in found]
        return found


def _failed(found: Reading) -> Reading:
    text = f"registered no more: {found.text}"
    return Reading(
        at=found.at, time=found.time, source=found.source, probe=found.probe, state=State.FAILED,
        device=found.device, text=text, facts=found.facts,
    )  # fmt: skip
