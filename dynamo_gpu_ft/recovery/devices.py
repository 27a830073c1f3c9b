"""Which GPUs the next engine start may use: pure choice among the ones named, without those that a verdict has fenced.

`Fence` remembers; the engine adapter turns the choice into the environment of its processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dynamo_gpu_ft.topology import Device, bdf_of

#: How engine processes are told their devices: names in the order of local ranks. Wins over the setting `health_devices`.
DEVICES_VARIABLE = "GPU_FT_ENGINE_DEVICES"


def names_in(text: str) -> tuple[str, ...]:
    """ "0, GPU-5f,0000:3b:00" -> its parts."""
    return tuple(part for part in (each.strip() for each in text.split(",")) if part)


def named_by(name: str) -> Device:
    """A device as users name it: NVML index, UUID, or PCI address."""
    if name.isdigit():
        return Device(index=int(name))
    return Device(bdf=bdf_of(name)) if bdf_of(name) else Device(uuid=name)


@dataclass
class Fence:
    """Devices that no rank may be put on, each with the reason; a later clearing takes one out again."""

    reasons: dict[str, tuple[Device, str]] = field(default_factory=dict)

    def add(self, incident: str, device: Device, reason: str) -> None:
        self.reasons[f"{incident}/{device}"] = (device, reason)

    def clear(self, incident: str) -> None:
        for key in [key for key in self.reasons if key.startswith(f"{incident}/")]:
            del self.reasons[key]

    def against(self, device: Device) -> str | None:
        """Why this device is fenced, None if it is not. A fenced node takes every device with it."""
        for fenced, why in self.reasons.values():
            if fenced.kind == "node" or fenced.same(device):
                return why
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """`devices` for the ranks in order; `missing` says why there are too few, "" when there are enough."""

    devices: tuple[str, ...]
    missing: str = ""


def choose(
    names: Sequence[str], known: Mapping[str, Device], fence: Fence, *, count: int
) -> Choice:
    """The first `count` of `names` that are not fenced. Without names nothing is chosen, and only a fenced node is missing.

    `known` holds what else is known of a named device, so that a verdict that names it otherwise finds it."""
    if not names:
        why = fence.against(Device(kind="node"))
        return Choice((), f"this node cannot be used ({why})" if why else "")
    refused = {}
    healthy = []
    for name in names:
        why = fence.against(known.get(name, named_by(name)))
        if why is None:
            healthy.append(name)
        else:
            refused[name] = why
    if len(healthy) >= count:
        return Choice(tuple(healthy[:count]))
    reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
    return Choice(
        tuple(healthy),
        f"{len(healthy)} of {len(names)} GPUs can be used, {count} are needed ({reasons})",
    )
