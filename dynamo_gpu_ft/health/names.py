"""Which descriptions of devices mean the same device: every source names it in its own way, and names are learnt as they come.

Between a reading and the fusion's tables. Holds a bounded number of devices; contradictory descriptions get a place of their own,
so that one lying line cannot join two GPUs.
"""

from __future__ import annotations

import msgspec

from dynamo_gpu_ft.health.windows import Bounded
from dynamo_gpu_ft.topology import Device

_LONGEST = 96  # characters of all names together; real ones have 52
_WHOLE = {"gi": None, "ci": None}


class Known:
    """One device with all names known by now. `became` leads on when two turned out to be one."""

    __slots__ = ("became", "device", "doubtful", "number")

    def __init__(self, number: int, device: Device, doubtful: bool = False) -> None:
        self.number = number
        self.device = device
        self.doubtful = doubtful
        self.became: Known | None = None

    def now(self) -> Known:
        known = self
        while known.became is not None:
            known = known.became
        return known


class Names:
    """`resolve` finds or makes the device; `joined` is true after a call that made two devices one, until it is set back."""

    def __init__(self, room: int = 4096) -> None:
        self._by: Bounded[tuple[str, object], Known] = Bounded(room)
        self._seen: Bounded[Device, Known] = Bounded(
            room
        )  # answers; learning a name makes none of them wrong
        self._next = 0
        self.joined = False

    def resolve(self, named: Device) -> Known:
        known = self._seen.get(named)
        if known is None or known.became is not None:
            known = self._seen[named] = self._find(named)
        return known

    def _find(self, named: Device) -> Known:
        device = msgspec.structs.replace(named, **_WHOLE) if named.gi is not None else named
        if len(device.uuid) + len(device.bdf) > _LONGEST:
            device = msgspec.structs.replace(device, uuid=device.uuid[:64], bdf=device.bdf[:32])
        names = _names(device)
        found: list[Known] = []
        for name in names:
            known = self._by.get(name)
            if known is not None and known.now() not in found:
                found.append(known.now())
        if len(found) == 1 and found[0].device == device:
            return found[0]
        if not found:
            return self._enter(device, names)
        if len(found) > 1 and device.index is not None:
            # A device that was found by its index alone is another one by now, if a better name says so.
            by_index = self._by.get((device.kind + " index", device.index))
            better = [known for known in found if by_index is None or known is not by_index.now()]
            found = found if _all_agree(found) else better
        agreeing = [known for known in found if _agree(known.device, device)]
        if not agreeing and _weak(device, found):
            return self._enter(device, names)
        if len(agreeing) < len(found) or not _all_agree(agreeing):
            return self._contradiction(device)
        agreeing.sort(key=lambda known: known.number)
        kept = agreeing[0]
        for other in agreeing[1:]:
            other.became = kept
            kept.device = kept.device.merged(other.device)
            self.joined = True
        kept.device = kept.device.merged(device)
        for name in _names(kept.device):
            self._by[name] = kept
        return kept

    def devices(self) -> tuple[Device, ...]:
        """Every device of which at least a name is known, in the order they were learnt."""
        all_known = {known.now().number: known.now() for known in self._by.values()}
        return tuple(all_known[n].device for n in sorted(all_known) if all_known[n].device.known)

    def _enter(self, device: Device, names: list[tuple[str, object]]) -> Known:
        known = Known(self._next, device)
        self._next += 1
        for name in names:
            self._by[name] = known
        return known

    def _contradiction(self, device: Device) -> Known:
        """Names that belong to different devices: this combination is kept apart and marked."""
        key = ("contradiction", (device.uuid, device.bdf, device.index))
        known = self._by.get(key)
        if known is None:
            known = self._enter(device, [key])
            known.doubtful = True
        return known


def _names(device: Device) -> list[tuple[str, object]]:
    if device.kind == "node":
        return [("node", "")]
    names: list[tuple[str, object]] = []
    if device.uuid:
        names.append((device.kind + " uuid", device.uuid))
    if device.bdf:
        names.append((device.kind + " bdf", device.bdf))
    if device.index is not None:
        names.append((device.kind + " index", device.index))
    return names or [(device.kind + " unnamed", "")]


def _agree(a: Device, b: Device) -> bool:
    """Whether both may be one device. An index is the weakest name: the driver renumbers when a GPU is lost."""
    if (a.uuid and b.uuid and a.uuid != b.uuid) or (a.bdf and b.bdf and a.bdf != b.bdf):
        return False
    if (a.uuid and a.uuid == b.uuid) or (a.bdf and a.bdf == b.bdf):
        return True
    return a.index is None or b.index is None or a.index == b.index


def _all_agree(all_known: list[Known]) -> bool:
    return all(
        _agree(a.device, b.device) for i, a in enumerate(all_known) for b in all_known[i + 1 :]
    )


def _weak(device: Device, found: list[Known]) -> bool:
    """Whether only the index led to what was found: no better name of the device is known yet."""
    return not any(
        (device.uuid and device.uuid == known.device.uuid)
        or (device.bdf and device.bdf == known.device.bdf)
        for known in found
    )
