"""Tokens per rank and layer under a placement, what of them has no live expert, and how even that is: what tables and plots show.

Pure; each copy of an expert takes an equal share, as the engines' dispatch does.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dynamo_gpu_ft.experts.base import Placement

Grid = tuple[tuple[float, ...], ...]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """tokens  [layers][ranks]
    lost    [layers]: tokens whose expert has no copy
    alive   ranks that count, ascending"""

    tokens: Grid
    lost: tuple[int, ...]
    alive: tuple[int, ...]

    @property
    def balance(self) -> tuple[float, ...]:
        """mean / max over the live ranks, per layer; 1 where a layer has no tokens."""
        found = []
        for row in self.tokens:
            live = [row[rank] for rank in self.alive]
            found.append(sum(live) / len(live) / max(live) if max(live) else 1.0)
        return tuple(found)

    @property
    def lost_share(self) -> float:
        """Of all tokens."""
        whole = sum(map(sum, self.tokens)) + sum(self.lost)
        return sum(self.lost) / whole if whole else 0.0


def spread(
    placement: Placement, loads: Sequence[Sequence[int]], dead: Sequence[int] = ()
) -> Spread:
    """Of `placement` with the slots of the ranks `dead` gone; `loads` are tokens [layers][experts]."""
    left = placement.without(dead) if dead else placement
    tokens, lost = [], []
    for layer, row in enumerate(loads):
        ranks = [0.0] * placement.ranks
        missing = 0
        for load, slots in zip(row, left.copies(layer), strict=True):
            for slot in slots:
                ranks[slot // placement.slots] += load / len(slots)
            missing += 0 if slots else load
        tokens.append(tuple(ranks))
        lost.append(missing)
    alive = tuple(rank for rank in range(placement.ranks) if rank not in set(dead))
    return Spread(tokens=tuple(tokens), lost=tuple(lost), alive=alive)
