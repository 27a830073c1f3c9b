"""An incident: one real fault, fused from readings of several sources, with its evidence and exactly one verdict.

Frozen data on its way out of the health room: to recovery, to the HTTP endpoint, to the command line and to NVSentinel's shape.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from dynamo_gpu_ft.health.readings import Reading
from dynamo_gpu_ft.topology import Device


class Unusable(str, Enum):
    """What must not be used any more, from least to most; `severity` orders them."""

    NOTHING = "nothing"
    CONTEXT = "context"  # this process's CUDA context: restart the worker, the GPU is fine
    LINK = "link"  # an NVLink or the fabric: the group of ranks cannot go on as it is
    GPU = "gpu"  # do not put a rank on this GPU again until it was reset
    NODE = "node"  # nothing on this machine can be relied on

    @property
    def severity(self) -> int:
        return _SEVERITY[self]


_SEVERITY = {each: place for place, each in enumerate(Unusable)}


class Action(str, Enum):
    """What an operator or the recovery should do about it, least first."""

    NONE = "none"
    REPORT = "report"  # tell people; nothing has to stop
    RESTART_CONTEXT = "restart_context"
    REBUILD_GROUP = "rebuild_group"  # new communicators, without the link
    DRAIN_AND_RESET_GPU = "drain_and_reset_gpu"  # works on, reset when convenient
    RESET_GPU = "reset_gpu"
    RESET_FABRIC = "reset_fabric"
    REBOOT_NODE = "reboot_node"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What an incident means.

    lasting   the fault stays until somebody repairs it (persistent); false: it may be over by itself (transient)
    certain   false where the code is unknown or the evidence contradicts itself; the verdict is then the careful one
    reason    one sentence a person understands, with the rule it follows
    """

    unusable: Unusable
    action: Action
    lasting: bool
    reason: str
    certain: bool = True


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Readings of one kind that an incident rests on: the first and the last of them and how many there were."""

    first: Reading
    last: Reading
    count: int = 1


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """One fault. A later version of the same incident has the same `id` and a higher `version`.

    id        unique in this process: "<pid>-<number>"
    name      what it is in one word: "xid 79", "hang", "driver_unresponsive", "nvlink5 149", "ecc", ...
    probe,code  of the root cause
    devices   what is affected; the first is where the root cause is
    shards    ranks of the engine whose device or process it is; empty when it concerns none of them
    opened, updated  CLOCK_MONOTONIC seconds;  time: wall clock of the first reading
    evidence  bounded; readings beyond the bound are counted in `dropped`
    cleared   it is over; `ended` says how: "recovered" (a sign of recovery), "quiet" (nothing more was seen), "merged" (it turned
              out to be part of the incident `merged_into`), "forgotten" (more faults than there is room for)
    """

    id: str
    version: int
    name: str
    probe: str
    code: int | None
    devices: tuple[Device, ...]
    shards: tuple[int, ...]
    verdict: Verdict
    opened: float
    updated: float
    time: float
    evidence: tuple[Evidence, ...]
    dropped: int = 0
    cleared: bool = False
    ended: str = ""
    merged_into: str = ""
