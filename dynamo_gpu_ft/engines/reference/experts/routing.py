"""`Routing`: the failover tables of one rank, and how they follow what the driver says of the map.

A loss is one write of the tables' index; what the next one will ask for is made ready on another thread and taken in between two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dynamo_gpu_ft.engines.reference.experts.behind import Behind
from dynamo_gpu_ft.experts.ahead import Ahead
from dynamo_gpu_ft.experts.base import Placement
from dynamo_gpu_ft.experts.tables import FailoverTables, Prepared

WIDTH = 8  # copies of one expert that rows take turns among


class Routing:
    """`tables.holds` is the driver's map once its orders are obeyed; `foreseen`: number of the newest `foresee` that is done."""

    def __init__(self, placement: Placement, own: int, device: str = "cpu") -> None:
        width = min(WIDTH, placement.width)
        self.tables = FailoverTables(
            placement, (), rank=own, width=width, device=device, room=placement.ranks
        )
        self.foreseen = 0
        self._behind: Behind[tuple[int, Prepared]] = Behind("failover-tables")

    def follow(self, placement: Placement, epoch: int) -> None:
        self.tables.follow(placement, epoch)

    def lose(self, dead: Sequence[int], epoch: int) -> None:
        """Never plans and never waits: by one write if it was foreseen, else the masked map is written beside the one in use."""
        if not self.tables.lose(dead, epoch):
            self.tables.follow(self.tables.holds.without(dead), epoch)

    def foresee(self, number: int, placement: Placement, ahead: Sequence[Ahead]) -> None:
        """Never blocks."""
        prepare = partial(self.tables.prepare, placement, ahead)
        self._behind.ask(lambda: (number, prepare()))

    def look(self) -> None:
        """Takes in what has become ready; one made for a map that holds no more is dropped. Between steps."""
        if (found := self._behind.answer()) is not None:
            number, prepared = found
            self.tables.adopt(prepared, self.tables.epoch)
            self.foreseen = number
