"""From one placement to another while tokens flow: steps of one layer each, none of which takes an expert's last copy away.

Pure: adding or removing redundant experts, moving them, filling a rank that came back. Engines run each step in two phases on all ranks
(`decide`), `refill` brings the bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts.base import Placement
from dynamo_gpu_ft.experts.refill import Want


@dataclass(frozen=True, slots=True)
class Step:
    """Physical slot -> expert (-1: retire) of one layer, committed together on all ranks."""

    layer: int
    changes: dict[int, int]

    def wants(self, rank: int, slots: int, load: Mapping[int, int] | None = None) -> list[Want]:
        """What `rank` has to bring in for this step; `load` per expert decides the order."""
        return [
            Want(self.layer, p % slots, expert, (load or {}).get(expert, 0))
            for p, expert in self.changes.items()
            if p // slots == rank and expert >= 0
        ]

    def retired(self, rank: int, slots: int) -> list[int]:
        """Local slots of `rank` that become empty."""
        return [p % slots for p, e in self.changes.items() if p // slots == rank and e < 0]


def widened(placement: Placement, slots: int) -> Placement:
    """The same placement with `slots` allotted per rank, the new ones empty: the shape under which redundancy may grow."""
    if slots < placement.slots:
        raise PlacementError(
            "a placement cannot be narrowed", value=slots, rule=f"at least its {placement.slots} slots per rank",
            remedy="retire slots instead: they stay allotted",
        )  # fmt: skip
    rows = []
    for row in placement.rows():
        wide: list[int] = []
        for rank in range(placement.ranks):
            wide += row[rank * placement.slots : (rank + 1) * placement.slots]
            wide += [-1] * (slots - placement.slots)
        rows.append(wide)
    return Placement.of_rows(rows, experts=placement.experts, ranks=placement.ranks)


def steps(old: Placement, new: Placement, *, spare: int = 1) -> list[Step]:
    """Steps that lead from `old` to `new`. Per step and rank at most `spare` slots get a new expert over an old one (each needs a spare row;
    0: the slot is empty while its expert lands, so another copy of the former one must be left meanwhile). Filling empty slots and
    retiring need none. After every step, experts that both placements have keep a copy.

    Raises `PlacementError` where that cannot be (a circle of last copies without spare rows)."""
    shape = (old.layers, old.experts, old.ranks, old.slots)
    if shape != (new.layers, new.experts, new.ranks, new.slots):
        raise PlacementError("placements of two shapes", value=new, rule=str(shape), remedy="`widened` makes them equal")  # fmt: skip
    found = []
    for layer in range(old.layers):
        now, target = list(old.row(layer)), new.row(layer)
        while any(a != b for a, b in zip(now, target, strict=True)):
            changes = _batch(now, target, old.slots, spare)
            if not changes:
                raise PlacementError(
                    "experts cannot change places without a gap", where=f"layer {layer}",
                    value=[p for p, (a, b) in enumerate(zip(now, target, strict=True)) if a != b][:8],
                    rule="each of these slots holds a last copy", remedy="one spare row per rank and layer",
                )  # fmt: skip
            for slot, expert in changes.items():
                now[slot] = expert
            found.append(Step(layer, changes))
    return found


def _batch(now: list[int], target: tuple[int, ...], slots: int, spare: int) -> dict[int, int]:
    """What can be changed at once: empty slots first, then what leaves two copies elsewhere, so that a loss meanwhile is survived, then what
    leaves one, then (with spare rows) whole circles."""
    pending = [p for p, (a, b) in enumerate(zip(now, target, strict=True)) if a != b]
    filling = {p: target[p] for p in pending if now[p] < 0}
    if filling:
        return filling
    for kept in (2, 1):
        if batch := _over(now, target, slots, spare, pending, kept):
            return batch
    if not spare:
        return _whole(now, target, [p for p in pending if target[p] < 0])
    per_rank: dict[int, list[int]] = {}
    for p in pending:
        per_rank.setdefault(p // slots, []).append(p)
    if all(len(each) <= spare for each in per_rank.values()):
        return _whole(now, target, pending)
    return _circle(now, target, slots, spare, pending)


def _over(
    now: list[int], target: tuple[int, ...], slots: int, spare: int, pending: list[int], kept: int
) -> dict[int, int]:
    """Changes that leave at least `kept` copies of what they write over, at most `spare` landings on a rank."""
    left = Counter(e for e in now if e >= 0)
    used: dict[int, int] = {}
    batch: dict[int, int] = {}
    for p in pending:
        lands = target[p] >= 0
        full = lands and spare and used.get(p // slots, 0) >= spare
        if not full and left[now[p]] > kept:
            left[now[p]] -= 1
            batch[p] = target[p]
            used[p // slots] = used.get(p // slots, 0) + lands
    return batch


def _whole(now: list[int], target: tuple[int, ...], pending: list[int]) -> dict[int, int]:
    """`pending` at once, if nothing is lost that the target has."""
    after = [target[p] if p in pending else e for p, e in enumerate(now)]
    return {p: target[p] for p in pending} if set(target) <= set(after) | {-1} or not set(now) - set(after) else {}  # fmt: skip


def _circle(
    now: list[int], target: tuple[int, ...], slots: int, spare: int, pending: list[int]
) -> dict[int, int]:
    """Follows a last copy to the slot where it will be next, until a round closes that no rank takes part in more than `spare` times."""
    for begin in pending:
        chain, at = [begin], now[begin]
        while True:
            after = next((p for p in pending if target[p] == at), None)
            if after is None or after in chain:
                break
            chain.append(after)
            at = now[after]
        ranks = [p // slots for p in chain]
        if max(ranks.count(r) for r in ranks) <= spare and (found := _whole(now, target, chain)):
            return found
    return {}


def decide(
    members: Collection[int], ready: Collection[int], refused: Collection[int]
) -> Literal["wait", "commit", "abort"]:
    """What a step's coordinator does next: all living members have landed theirs, one could not, or some have not said yet. A member that
    died has no say: its slots are masked by the loss."""
    if any(rank in members for rank in refused):
        return "abort"
    return "commit" if all(rank in ready for rank in members) else "wait"


def assembled(
    slots_of: Mapping[int, Sequence[Sequence[int]]], like: Placement, alive: Collection[int]
) -> Placement:
    """The map that tokens may follow now: per rank what its store says is routable, [layers][slots]; a rank that is not in `alive`, or
    has not said anything, has nothing."""
    empty = [[-1] * like.slots] * like.layers
    ranks = [slots_of.get(r, empty) if r in alive else empty for r in range(like.ranks)]
    rows = [[e for each in ranks for e in each[layer]] for layer in range(like.layers)]
    return Placement.of_rows(rows, experts=like.experts, ranks=like.ranks)
