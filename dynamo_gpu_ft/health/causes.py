"""What explains what: families of faults from cause to effect, and whether one piece of evidence may be the effect of another.

The order in here is the root-cause ordering: of the readings of one incident, the one of the earliest family, and there the
earliest in its list, is the root. Pure functions; fusion groups by them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from dynamo_gpu_ft.health.incidents import Unusable, Verdict
from dynamo_gpu_ft.health.readings import Reading

if TYPE_CHECKING:
    from dynamo_gpu_ft.health.entries import Entry


class Family(IntEnum):
    """Kinds of evidence, cause before effect."""

    BUS = 0  # the GPU is gone from the bus
    QUALIFIER = 1  # the driver's own detail on a memory error, printed before it
    MEMORY = 2
    DEVICE = 3  # the GPU or its firmware does not work
    DRIVER = 4  # a driver call does not return
    SWITCH = 5
    LINK = 6
    UNKNOWN = 7  # a code that no table holds
    APP = 8  # a context died
    RECOVERY = 9  # what the driver says must be done; carries no cause
    ENGINE = 10  # what the engine got to see of it
    NOISE = 11  # channels being torn down, for whatever reason
    GROUP = 12  # a communicator or a step that fails because somebody else did
    INFO = 13  # stands alone


QUALIFIERS = (172, 171)
MEMORY = (48, 95, 64, 140, 94, 63, 92, 160, 161)
LINK = (74, 155, 136, 149, 150, 148, 147, 146, 145, 144, 173, 166, 170)
FIRMWARE = (175, 120, 119)
APP = (31, 13)
NOISE = (45,)
BUS = (79,)
UNKNOWN_TO_NVML = (999, -1)  # an XID that NVML cannot name: some other source may

# NVML event bits that repeat what an XID or the poll says as well.
EVENTS = {
    0x2: (Family.MEMORY, 20),
    0x200: (Family.MEMORY, 23),
    0x400: (Family.MEMORY, 22),
    0x800: (Family.MEMORY, 21),
    0x1000: (Family.MEMORY, 25),
    0x2000: (Family.MEMORY, 24),
    0x4000: (Family.RECOVERY, 3),
}

_BY_CODE: dict[int, tuple[Family, int]] = {
    code: (family, order)
    for family, codes in (
        (Family.BUS, BUS),
        (Family.QUALIFIER, QUALIFIERS),
        (Family.MEMORY, MEMORY),
        (Family.DEVICE, FIRMWARE),
        (Family.LINK, LINK),
        (Family.APP, APP),
        (Family.NOISE, NOISE),
    )
    for order, code in enumerate(codes)
} | {43: (Family.APP, 99), 154: (Family.RECOVERY, 0)}  # 43 follows what killed the context

_BY_PROBE: dict[str, tuple[Family, int]] = {
    "gpu_lost": (Family.BUS, 5),
    "driver": (Family.DRIVER, 0),
    "sxid": (Family.SWITCH, 0),
    "nvlink": (Family.LINK, 60),
    "fabric": (Family.LINK, 50),
    "rows": (Family.MEMORY, 26),
    "ecc": (Family.MEMORY, 27),
    "recovery_action": (Family.RECOVERY, 1),
    "cuda": (Family.ENGINE, 0),
    "crash": (Family.ENGINE, 2),
    "nccl": (Family.GROUP, 0),
    "step": (Family.GROUP, 5),
    "process": (Family.GROUP, 4),
}


def family_of(reading: Reading, verdict: Verdict, kind: str) -> tuple[Family, int]:
    """Family and place in it, the smaller the closer to the cause. `kind` is the catalogue's class of the code."""
    code, probe = reading.code, reading.probe
    if probe in ("xid", "nvlink5") and code is not None:
        # The decoded form of a code says more than the bare number.
        less = 0 if probe == "nvlink5" else 1
        if code in _BY_CODE:
            family, order = _BY_CODE[code]
            return family, 2 * order + less
        if code in UNKNOWN_TO_NVML:
            return Family.ENGINE, 9
        if kind.startswith("UNKNOWN"):
            return Family.UNKNOWN, 0
        if verdict.unusable in (Unusable.GPU, Unusable.NODE):
            return Family.DEVICE, 20
        if verdict.unusable is Unusable.LINK:
            return Family.LINK, 40
        if verdict.unusable is Unusable.CONTEXT:
            return Family.APP, 50
        return Family.INFO, 0
    if probe == "event":
        return EVENTS.get(code or 0, (Family.INFO, 1))
    return _BY_PROBE.get(probe, (Family.INFO, 2))


_DEVICE_LEVEL = (Family.BUS, Family.QUALIFIER, Family.MEMORY, Family.DEVICE, Family.DRIVER)
_EFFECTS = (Family.UNKNOWN, Family.APP, Family.RECOVERY, Family.ENGINE, Family.NOISE)


_REACHING = (Family.SWITCH, Family.LINK, Family.GROUP, Family.NOISE)


def reaches(entry: Entry) -> bool:
    """Whether `explains` may join it, as root or as effect, with what is on another device."""
    return entry.family in _REACHING or entry.known.device.kind == "node"


def explains(root: Entry, involved: set[int], effect: Entry, window: float) -> bool:
    """Whether `effect` may be a consequence, or another view, of the fault of which `root` is the root.

    involved  numbers of the devices that the fault touches so far
    Both may have come in any order; the times compared are when each was seen first.
    """
    if effect.family < root.family:
        return False
    here = effect.known.number in involved or root.known.device.kind == "node"
    if not _in_time(root, effect, window, here):
        return False
    if effect.family is Family.INFO or root.family is Family.INFO:
        return here and (effect.probe, effect.code) == (root.probe, root.code)
    harmful = root.verdict.unusable is not Unusable.NOTHING
    if effect.family is Family.GROUP:
        hurt = effect.verdict.unusable is not Unusable.NOTHING
        return (
            (harmful and hurt and not root.foreign)
            or (root.family is Family.GROUP and effect.shard == root.shard)
            or (root.probe, root.verdict) == (effect.probe, effect.verdict)
        )
    if root.family in _DEVICE_LEVEL:
        if root.family is Family.BUS and effect.family is Family.LINK:
            return True
        return here and (harmful or effect.family in (Family.MEMORY, Family.RECOVERY))
    if root.family is Family.SWITCH:
        if effect.family is Family.SWITCH and here:
            return True
        return harmful
    if root.family is Family.LINK:
        if effect.family is Family.LINK:
            return harmful or here
        return harmful and (here or effect.family is Family.NOISE)
    if root.family in (Family.UNKNOWN, Family.APP):
        return here and _same_context(root, effect) and effect.family in _EFFECTS
    if root.family is Family.RECOVERY:
        return here and effect.family in (Family.RECOVERY, Family.NOISE, Family.ENGINE)
    if root.family is Family.ENGINE:
        return here and _same_context(root, effect)
    return here and effect.family is Family.NOISE


def same_fault(root: Entry, effect: Entry) -> bool:
    """The same code, seen by another source: the closest relation there is."""
    return root.code == effect.code and root.known is effect.known and root.family == effect.family


def _in_time(root: Entry, effect: Entry, window: float, here: bool) -> bool:
    seen = effect.first.at
    if seen < root.first.at - window:
        return False
    lasting = root.verdict.lasting and root.severity >= Unusable.LINK.severity
    if lasting and here and effect.severity <= root.severity:
        # What happens on a GPU that is unusable already is no news.
        return root.severity >= Unusable.GPU.severity or effect.family is Family.LINK
    return seen <= root.last.at + window


def _same_context(root: Entry, effect: Entry) -> bool:
    """Whether both may be one process on one part of a GPU; what a source does not tell is no difference.

    Another process's context on the same GPU is another fault."""
    if root.shard is not None and effect.shard is not None:
        if root.shard != effect.shard:
            return False
    elif root.pid is not None and effect.pid is not None and root.pid[0] == effect.pid[0]:
        if root.pid != effect.pid:
            return False
    elif (root.shard is not None and effect.foreign) or (effect.shard is not None and root.foreign):
        return False
    return all(
        a is None or b is None or a == b for a, b in ((root.gi, effect.gi), (root.ci, effect.ci))
    )
