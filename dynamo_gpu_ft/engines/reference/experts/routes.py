"""Which slots rows may go to: the driver's map of one moment, as data. Pure; ranks get it as a `Placement` and route by their tables of it.

Any live copy of an expert gives the same bits, so the choice among copies is free: rows take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dynamo_gpu_ft.experts.base import Placement


class Map:
    """`table`: physical slot -> expert, [layers][ranks x slots], -1 where nothing may be sent. Mutable on the driver, which owns it."""

    def __init__(self, experts: int, slots: int, table: Iterable[Sequence[int]]) -> None:
        self.experts, self.slots = experts, slots
        self.table = [list(row) for row in table]

    @property
    def placement(self) -> Placement:
        """As it is now."""
        return Placement.of_rows(
            self.table, experts=self.experts, ranks=len(self.table[0]) // self.slots
        )

    def uncovered(self) -> tuple[tuple[int, int], ...]:
        """(layer, expert) that no slot has."""
        return tuple(
            (layer, expert)
            for layer, row in enumerate(self.table)
            for expert in sorted(set(range(self.experts)) - set(row))
        )

    @property
    def runnable(self) -> bool:
        """In every layer there is an expert left to ask."""
        return all(any(e >= 0 for e in row) for row in self.table)

    def drop(self, shard: int) -> None:
        """Nothing may be sent to this shard any more."""
        for row in self.table:
            row[shard * self.slots : (shard + 1) * self.slots] = [-1] * self.slots

    def row_of(self, shard: int, layer: int) -> list[int]:
        return self.table[layer][shard * self.slots : (shard + 1) * self.slots]
