"""What others do, to compare plans with: the public EPLB algorithm written from its description, and what engines do with the slots of a
lost rank. Nothing here is used to place anything.

EPLB: every expert has one copy, each further slot goes to the expert whose copies have most to do; then copies are packed, heaviest
first, onto the lightest rank that has room. Hierarchical: groups of experts are packed onto nodes first, the rest happens inside each.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

Row = list[int]


def copied(loads: Sequence[float], slots: int) -> Row:
    """The expert of each copy: one each, then always one more of the busiest."""
    copies = [1] * len(loads)
    heap = [(-load, expert) for expert, load in enumerate(loads)]
    heapq.heapify(heap)
    found = list(range(len(loads)))
    for _ in range(slots - len(loads)):
        expert = heap[0][1]
        copies[expert] += 1
        heapq.heapreplace(heap, (-loads[expert] / copies[expert], expert))
        found.append(expert)
    return found


def packed(weights: Sequence[float], bins: int) -> list[Row]:
    """Items of each bin, as many in each: heaviest first, into the lightest bin that is not full."""
    room = len(weights) // bins
    heap = [(0.0, number) for number in range(bins)]
    found: list[Row] = [[] for _ in range(bins)]
    for item in sorted(range(len(weights)), key=lambda i: -weights[i]):
        weight, number = heapq.heappop(heap)
        found[number].append(item)
        if len(found[number]) < room:
            heapq.heappush(heap, (weight + weights[item], number))
    return found


def layer(loads: Sequence[float], slots: int, ranks: int) -> Row:
    """Expert of each of `ranks * slots` physical slots: the global policy."""
    experts = copied(loads, slots * ranks)
    count = [0] * len(loads)
    for expert in experts:
        count[expert] += 1
    weights = [loads[expert] / count[expert] for expert in experts]
    return [experts[item] for members in packed(weights, ranks) for item in members]


def rebalanced(
    loads: Sequence[Sequence[float]], slots: int, ranks: int, *, groups: int = 1, nodes: int = 1
) -> list[Row]:
    """Physical to logical of every layer; hierarchical where `groups` are given and divide into `nodes`."""
    if groups == 1 or groups % nodes:
        return [layer(row, slots, ranks) for row in loads]
    size = len(loads[0]) // groups
    rows = []
    for row in loads:
        sums = [sum(row[g * size : (g + 1) * size]) for g in range(groups)]
        out: Row = []
        for members in packed(sums, nodes):
            experts = [g * size + i for g in members for i in range(size)]
            inside = layer([row[e] for e in experts], slots, ranks // nodes)
            out += [experts[i] for i in inside]
        rows.append(out)
    return rows


def first_duplicate(row: Row, dead: set[int], slots: int) -> Row:
    """Refill as SGLang shrinks: orphans in order of their number, each into the first slot whose expert has another live copy."""
    now, copies, orphans = _after(row, dead, slots)
    for orphan in orphans:
        slot = next(s for s, e in enumerate(now) if e >= 0 and copies[e] > 1)
        copies[now[slot]] -= 1
        now[slot], copies[orphan] = orphan, 1
    return now


def most_redundant(row: Row, dead: set[int], slots: int) -> Row:
    """Refill as vLLM's fault tolerance does: orphans round the live ranks, each into the slot of the rank's most redundant expert."""
    now, copies, orphans = _after(row, dead, slots)
    ranks = [rank for rank in range(len(row) // slots) if rank not in dead]
    turn = 0
    for orphan in orphans:
        for _ in ranks:
            begin = ranks[turn % len(ranks)] * slots
            turn += 1
            slot = max(range(begin, begin + slots), key=lambda s: (copies.get(now[s], 0), -s))
            if copies.get(now[slot], 0) > 1:
                break
        else:
            raise ValueError("too few slots are left")
        copies[now[slot]] -= 1
        now[slot], copies[orphan] = orphan, 1
    return now


def _after(row: Row, dead: set[int], slots: int) -> tuple[Row, dict[int, int], Row]:
    """A row without its dead ranks, the copies of each expert that has any, and those that have none, in order."""
    now = [-1 if slot // slots in dead else expert for slot, expert in enumerate(row)]
    copies: dict[int, int] = {}
    for expert in now:
        if expert >= 0:
            copies[expert] = copies.get(expert, 0) + 1
    return now, copies, sorted(set(row) - set(copies) - {-1})
