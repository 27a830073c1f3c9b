"""What goes where, in the engine's terms: the placement at the start, the aim that it meets, and the next moves on the way to another one.

Pure. Moves are (shard, layer, slot) -> expert; the planner says what is to be reached, `change` in which order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts import change, planner
from dynamo_gpu_ft.experts.base import EMPTY, Aim, Domains, Move, Placement, Recovery

#: (shard, layer, slot) -> expert that it is to hold.
Wanted = dict[tuple[int, int, int], int]


def domains(ranks: int) -> Domains:
    """Every rank may be lost alone; which of them share a machine, this engine does not know."""
    return Domains.regular(ranks, per_tray=1, per_node=1)


def homes(layers: int, experts: int, ranks: int, slots: int) -> list[tuple[int, ...]]:
    """Rows of the placement that an engine starts with, before it knows any load: one that survives the loss of any rank where there is
    room for that, else experts in turn."""
    even = [[1] * experts] * layers
    try:
        found = planner.plan(even, ranks=ranks, slots=slots, domains=domains(ranks), aim=Aim())
        return found.placement.rows()
    except PlacementError:
        return [tuple(p % experts for p in range(ranks * slots))] * layers


def aim_of(placement: Placement) -> Aim:
    """The strongest aim that `placement` meets with all ranks there: what is to be kept up."""
    even, where = [[1] * placement.experts] * placement.layers, domains(placement.ranks)
    survived, every = planner.certify(placement, even, domains=where).one
    if survived == every:
        return Aim()
    roomy = placement.slots * (placement.ranks - 1) >= placement.experts
    return Aim(mode="refill", losses=int(roomy))


def wanted(moves: Iterable[Move], slots: int) -> Wanted:
    return {(m.slot // slots, m.layer, m.slot % slots): m.expert for m in moves}


def wave(now: Placement, goal: Placement) -> Wanted:
    """The next moves towards `goal`, all of which may be under way at once: one step of each layer. Slots that `goal` leaves empty keep
    what they have. A layer that cannot be walked, a circle of last copies, stays as it is."""
    found: Wanted = {}
    for layer in range(now.layers):
        row = now.row(layer)
        target = [new if new >= 0 else old for old, new in zip(row, goal.row(layer), strict=True)]
        if tuple(target) == row:
            continue
        old, new = (
            Placement.of_rows([each], experts=now.experts, ranks=now.ranks)
            for each in (row, target)
        )
        try:
            first = change.steps(old, new)[0]
        except PlacementError:
            continue
        for physical, expert in first.changes.items():
            found[physical // now.slots, layer, physical % now.slots] = expert
    return found


def unfinished(round_: Recovery) -> bool:
    """Whether another round of the same budget has more to do: this one moves something, and leaves copies missing or, of slots of living
    ranks that were empty, only some in use."""
    plan, alive = round_.rebalanced, round_.rebalanced.certificate.alive

    def empty(placement: Placement) -> int:
        rows = (row[s * placement.slots : (s + 1) * placement.slots] for row in placement.rows() for s in alive)  # fmt: skip
        return sum(row.count(EMPTY) for row in rows)

    before, after = empty(round_.repaired.placement), empty(plan.placement)
    return bool(plan.moves) and (round_.missing > 0 or 0 < after < before)


def keeps(row: Sequence[int], changes: Mapping[int, int]) -> bool:
    """Whether each expert of `row` still has a slot once `changes` (physical slot -> expert) are made, and no others."""
    after = {changes.get(physical, expert) for physical, expert in enumerate(row)}
    return set(row) - {-1} <= after
