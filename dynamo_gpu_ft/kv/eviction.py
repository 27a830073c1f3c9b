"""Which blocks leave the arena first: the rules that csrc/arena/policy.cpp applies, written a second time and to be read.

Open requests' blocks go last, blocks that were used by more than one request before them, the rest first; pinned blocks stay.
Pure functions over what an arena's scan shows; the tests hold the native decisions against them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resident:
    """A sealed block as the policy sees it. `stamp` grows with use and falls with depth inside one use."""

    slot: int
    stamp: int
    namespace: int
    held: bool = False
    protected: bool = False
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Caps:
    """Thousandths of the slots."""

    protected: int = 800
    pinned: int = 250


def classes(residents: Sequence[Resident], slots: int, caps: Caps) -> dict[int, str]:
    """Slot -> "pinned", "open", "protected" or "probation". A cap is kept by its newest blocks; the others count as if
    they had never been marked, so that forged or forgotten marks cannot keep the arena."""
    newest = sorted(residents, key=lambda r: (r.stamp, r.slot), reverse=True)
    pinned = {r.slot for r in [r for r in newest if r.pinned][: slots * caps.pinned // 1000]}
    guarded = [r for r in newest if r.protected and not r.held and r.slot not in pinned]
    protected = {r.slot for r in guarded[: (slots - len(pinned)) * caps.protected // 1000]}

    def of(resident: Resident) -> str:
        if resident.slot in pinned:
            return "pinned"
        if resident.held:
            return "open"
        return "protected" if resident.slot in protected else "probation"

    return {r.slot: of(r) for r in residents}


_SOONER = {"probation": 0, "protected": 1, "open": 2}


def eviction_order(
    residents: Sequence[Resident],
    *,
    slots: int,
    caps: Caps,
    used: Mapping[int, int],
    quotas: Mapping[int, int],
) -> list[int]:
    """Slots in the order in which they go; pinned ones are not among them. What a namespace has above its quota comes first.

    `used` counts the slots of each namespace, those being written and the one that is wanted included."""
    of = classes(residents, slots, caps)

    def key(resident: Resident) -> tuple[int, int, int]:
        return _SOONER[of[resident.slot]], resident.stamp, resident.slot

    order = sorted((r for r in residents if of[r.slot] != "pinned"), key=key)
    excess = Counter({n: used.get(n, 0) - quota for n, quota in quotas.items() if quota})
    first = []
    for resident in order:
        if excess[resident.namespace] > 0:
            excess[resident.namespace] -= 1
            first.append(resident)
    return [r.slot for r in [*first, *(r for r in order if r not in first)]]


def victim(
    residents: Sequence[Resident],
    *,
    namespace: int,
    slots: int,
    empty: int,
    caps: Caps,
    used: Mapping[int, int],
    quotas: Mapping[int, int],
) -> int | None:
    """The slot whose block makes room for a new one of `namespace`, None when an empty slot does (or nothing can go).

    `used` is as it is before. A namespace at its quota takes its own block, even beside empty slots; when none of its own can
    go, it takes what others can spare, which puts it above the quota by the blocks it is writing."""
    then = {**used, namespace: used.get(namespace, 0) + 1}
    at_quota = bool(quotas.get(namespace)) and then[namespace] > quotas[namespace]
    order = eviction_order(residents, slots=slots, caps=caps, used=then, quotas=quotas)
    if at_quota:
        own = {r.slot for r in residents if r.namespace == namespace}
        mine = eviction_order(residents, slots=slots, caps=caps, used={}, quotas={})
        for slot in mine:
            if slot in own:
                return slot
    return None if empty or not order else order[0]
