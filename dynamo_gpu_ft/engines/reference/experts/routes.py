"""Which slot a row goes to: the map of one moment, as data. Pure; the same on every rank, because every rank gets the same table.

Any live copy of an expert gives the same bits, so the choice among copies is free: rows take turns.
"""

from __future__ import annotations

import array
from collections.abc import Iterable, Sequence


class Map:
    """`table`: physical slot -> expert, [layers][ranks x slots], -1 where nothing may be sent. Mutable on the driver, which owns it."""

    def __init__(self, experts: int, slots: int, table: Iterable[Sequence[int]]) -> None:
        self.experts, self.slots = experts, slots
        self.table = [list(row) for row in table]

    @classmethod
    def read(cls, experts: int, slots: int, layers: int, data: bytes) -> Map:
        flat = array.array("i", data)
        width = len(flat) // layers
        return cls(experts, slots, [flat[i * width : (i + 1) * width] for i in range(layers)])

    def bytes(self) -> bytes:
        return b"".join(array.array("i", row).tobytes() for row in self.table)

    def copies(self, layer: int) -> list[list[int]]:
        """Per expert its physical slots."""
        found: list[list[int]] = [[] for _ in range(self.experts)]
        for physical, expert in enumerate(self.table[layer]):
            if expert >= 0:
                found[expert].append(physical)
        return found

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


def targets(
    chosen: Sequence[Sequence[int]], copies: Sequence[Sequence[int]], slots: int, turn: int
) -> list[tuple[int, int, int]]:
    """(shard, its slot, expert) for every chosen expert of every row, row by row; `turn` sets off ranks from each other."""
    found = []
    for row, experts in enumerate(chosen):
        for expert in experts:
            physical = copies[expert][(row + turn) % len(copies[expert])]
            found.append((*divmod(physical, slots), expert))
    return found
