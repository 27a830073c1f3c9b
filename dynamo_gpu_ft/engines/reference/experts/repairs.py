"""Which slots experts go to, in the engine's terms: the planner's answers as (shard, layer, slot) -> expert.

Pure. Only what is uncovered moves after a loss; the rest goes home once all ranks are back.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_gpu_ft.engines.reference.experts.routes import Map
from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts import planner
from dynamo_gpu_ft.experts.base import Aim, Placement


def homes(layers: int, experts: int, ranks: int, slots: int) -> list[tuple[int, ...]]:
    """Rows of the placement that an engine starts with, before it knows any load: one that survives the loss of any rank where there is
    room for that, else experts in turn."""
    even = [[1] * experts] * layers
    try:
        return planner.plan(even, ranks=ranks, slots=slots, aim=Aim()).placement.rows()
    except PlacementError:
        return [tuple(p % experts for p in range(ranks * slots))] * layers


def orphans(
    routes: Map, alive: Sequence[int], loads: Sequence[Sequence[int]]
) -> dict[tuple[int, int, int], int]:
    """What is to be brought for everything that is uncovered, as far as there is room: the most asked-for first."""
    ranks = len(routes.table[0]) // routes.slots
    now = Placement.of_rows(routes.table, experts=routes.experts, ranks=ranks)
    living = [rank in set(alive) for rank in range(ranks)]
    found = planner.repair(now, loads, alive=living, partial=True)
    return {
        (move.slot // routes.slots, move.layer, move.slot % routes.slots): move.expert
        for move in found.moves
    }


def homeward(routes: Map, homes: Map, alive: Sequence[int]) -> dict[tuple[int, int, int], int]:
    """The same for slots that hold something else than at the start, where what they hold has another copy: so that the copies that a repair
    used up are there again for the next loss."""
    found: dict[tuple[int, int, int], int] = {}
    for layer, (row, wanted) in enumerate(zip(routes.table, homes.table, strict=True)):
        now = list(row)
        for physical, expert in enumerate(wanted):
            shard, slot = divmod(physical, routes.slots)
            held = now[physical]
            if shard in alive and held != expert >= 0 and (held < 0 or now.count(held) > 1):
                now[physical] = expert
                found[shard, layer, slot] = expert
    return found
