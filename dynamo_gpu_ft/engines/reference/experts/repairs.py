"""Which slots uncovered experts go to, in the engine's terms: only they move, into empty slots or those of a copy that is one too many.

Pure. The most asked-for expert first, onto the rank that computes the least.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_gpu_ft.engines.reference.experts.routes import Map


def orphans(
    routes: Map, alive: Sequence[int], loads: Sequence[Sequence[int]]
) -> dict[tuple[int, int, int], int]:
    """(shard, layer, slot) -> expert to bring there, for everything that is uncovered as far as there is room."""
    found: dict[tuple[int, int, int], int] = {}
    slots = routes.slots
    for layer, row in enumerate(routes.table):
        now = list(row)
        missing = sorted(set(range(routes.experts)) - set(row), key=lambda e: (-loads[layer][e], e))
        for expert in missing:
            spare = [
                physical
                for shard in alive
                for physical in range(shard * slots, (shard + 1) * slots)
                if now[physical] < 0 or now.count(now[physical]) > 1
            ]
            if not spare:
                break
            chosen = min(spare, key=lambda p: (_load(now, p // slots, slots, loads[layer]), p))
            now[chosen] = expert
            shard, slot = divmod(chosen, slots)
            found[shard, layer, slot] = expert
    return found


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


def _load(row: Sequence[int], shard: int, slots: int, loads: Sequence[int]) -> float:
    held = [e for e in row[shard * slots : (shard + 1) * slots] if e >= 0]
    return sum(loads[e] / row.count(e) for e in held)
