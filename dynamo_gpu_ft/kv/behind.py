"""What a worker has behind its arena: the shard's disk log, and the conversions from other layouts.

Opened once when the worker joins; the fillers go into its `BackedTier`, everything else about them is here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.kv import disk
from dynamo_gpu_ft.kv.backed import Filler
from dynamo_gpu_ft.kv.fillers import ConvertFiller, DiskFiller
from dynamo_gpu_ft.kv.shelves import Shelves

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core


@dataclass(frozen=True, slots=True)
class Behind:
    """`disk` is None when there is no log, or when it could not be opened (which was said)."""

    disk: DiskFiller | None
    convert: ConvertFiller
    shelves: Shelves

    @classmethod
    def open(
        cls, arena: _core.Arena, writer: _core.Writer, record: bytes, shard: int, config: Config
    ) -> Behind:
        """Never raises for a disk or a former arena that cannot be used."""
        shelves = Shelves(arena, record, config)
        convert = ConvertFiller(lambda wanted: shelves.converter(writer, shard, wanted))
        return cls(disk.open_backing(config, shard, arena, writer, record), convert, shelves)

    @property
    def fillers(self) -> list[Filler]:
        """The disk first: it has blocks as they are."""
        return [self.disk, self.convert] if self.disk is not None else [self.convert]

    def forget_former(self) -> None:
        self.convert.forget()
        self.shelves.forget_former()

    def report(self) -> None:
        """Metrics of the disk; cheap enough for every step."""
        if self.disk is not None:
            self.disk.report()

    def close(self) -> None:
        """After the tier: gives up logs and former arena."""
        if self.disk is not None:
            self.disk.report(now=math.inf)
            self.disk.close_log()
        self.shelves.close()
