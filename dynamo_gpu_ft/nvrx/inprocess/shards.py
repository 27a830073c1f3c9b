"""Which rank of NVRx's wrapper holds which shard, before and after ranks were terminated: pure, the same on every rank.

NVRx numbers its ranks anew after each loss; a shard is for ever. A survivor keeps its shard, and its number wherever numbers without a gap
allow it; a spare rank takes a lost shard; what no spare takes stays lost.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seating:
    """`holders[i]` is the shard that NVRx's rank i holds, None for a spare; `shards`: how many the engine was built with.

    The ranks with a shard come first, so that a number below `active` is a comm rank too."""

    shards: int
    holders: tuple[int | None, ...]

    @classmethod
    def first(cls, shards: int, ranks: int) -> Seating:
        """Rank i holds shard i, ranks beyond are spares. `ValueError` if there are fewer ranks than shards."""
        if not 1 <= shards <= ranks:
            raise ValueError(f"{shards} shards cannot be held by {ranks} ranks")
        return cls(shards, tuple(i if i < shards else None for i in range(ranks)))

    @property
    def active(self) -> int:
        return sum(1 for shard in self.holders if shard is not None)

    @property
    def lost(self) -> tuple[int, ...]:
        return tuple(sorted(set(range(self.shards)) - set(self.holders)))

    def without(self, terminated: Set[int]) -> tuple[Seating, dict[int, int]]:
        """(the seating of the ranks that are left, their old numbers -> new ones)."""
        left = [rank for rank in range(len(self.holders)) if rank not in terminated]
        spares = [rank for rank in left if self.holders[rank] is None]
        held = {rank: shard for rank in left if (shard := self.holders[rank]) is not None}
        gone = sorted(set(range(self.shards)) - set(held.values()))
        held |= dict(zip(spares, gone, strict=False))
        # Numbers without a gap: a shard below the count has its own number, those beyond fill the holes in order.
        count = len(held)
        holes = iter(sorted(set(range(count)) - set(held.values())))
        by_shard = sorted(held, key=lambda rank: held[rank])
        numbers = {rank: held[rank] if held[rank] < count else next(holes) for rank in by_shard}
        for rank in left:
            if rank not in numbers:
                numbers[rank] = len(numbers)
        holders: list[int | None] = [None] * len(left)
        for rank, shard in held.items():
            holders[numbers[rank]] = shard
        return Seating(self.shards, tuple(holders)), numbers
