"""Small placements by brute force, and loads with a seed: what the planner's and the checker's tests are compared with."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from fractions import Fraction

from dynamo_gpu_ft.experts.base import Domains, Placement

Loads = list[list[int]]


def loads_of(seed: int, layers: int, experts: int, most: int = 1000) -> Loads:
    draw = random.Random(seed)
    return [[draw.randrange(most) for _ in range(experts)] for _ in range(layers)]


def zipf(layers: int, experts: int, alpha: float, seed: int = 7) -> Loads:
    """Layers of the same shape, each in an order of its own."""
    draw = random.Random(seed)
    rows = []
    for _ in range(layers):
        row = [int(1e6 / (i + 1) ** alpha) for i in range(experts)]
        draw.shuffle(row)
        rows.append(row)
    return rows


def holders(placement: Placement, alive: Sequence[bool]) -> list[list[set[int]]]:
    """Live ranks of each expert, per layer."""
    found = []
    for layer in range(placement.layers):
        ranks: list[set[int]] = [set() for _ in range(placement.experts)]
        for slot, expert in enumerate(placement.row(layer)):
            if expert >= 0 and alive[slot // placement.slots]:
                ranks[expert].add(slot // placement.slots)
        found.append(ranks)
    return found


def survives(placement: Placement, lost: set[int], alive: Sequence[bool]) -> bool:
    """Whether every expert of every layer has a copy when these ranks are gone: by looking."""
    return all(ranks - lost for layer in holders(placement, alive) for ranks in layer)


def counted(placement: Placement, alive: Sequence[bool], size: int) -> tuple[int, int]:
    """(survived, all) losses of `size` live ranks."""
    living = [rank for rank, lives in enumerate(alive) if lives]
    losses = list(itertools.combinations(living, size))
    return sum(survives(placement, set(lost), alive) for lost in losses), len(losses)


def counted_domains(
    placement: Placement, alive: Sequence[bool], domains: Domains, level: str
) -> tuple[int, int]:
    every = [
        {rank for rank in members if alive[rank]}
        for members in domains.members(level).values()  # type: ignore[arg-type]
    ]
    every = [members for members in every if members]
    return sum(survives(placement, lost, alive) for lost in every), len(every)


def balance(placement: Placement, loads: Loads, alive: Sequence[bool], layer: int) -> Fraction:
    """Mean / max of the live ranks' loads, exactly."""
    row = placement.row(layer)
    live = [(s, e) for s, e in enumerate(row) if e >= 0 and alive[s // placement.slots]]
    copies = [0] * placement.experts
    for _, expert in live:
        copies[expert] += 1
    load = [Fraction(0)] * placement.ranks
    for slot, expert in live:
        load[slot // placement.slots] += Fraction(loads[layer][expert], copies[expert])
    most = max(load)
    return Fraction(1) if most == 0 else sum(load) / sum(alive) / most


def least_peak(loads: Sequence[int], ranks: int, slots: int, floor: int) -> Fraction:
    """Smallest load of the busiest rank over all placements of one layer with `floor` copies of each expert on distinct ranks: by trying
    all of them."""
    experts = len(loads)
    best = Fraction(sum(loads))
    subsets = [
        s for size in range(floor, ranks + 1) for s in itertools.combinations(range(ranks), size)
    ]

    def go(expert: int, load: list[Fraction], free: list[int]) -> None:
        nonlocal best
        if max(load) >= best:
            return
        if expert == experts:
            best = max(load)
            return
        for where in subsets:
            if all(free[rank] for rank in where):
                share = Fraction(loads[expert], len(where))
                go(
                    expert + 1,
                    [x + share * (r in where) for r, x in enumerate(load)],
                    [x - (r in where) for r, x in enumerate(free)],
                )

    go(0, [Fraction(0)] * ranks, [slots] * ranks)
    return best
