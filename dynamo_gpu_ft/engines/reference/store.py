"""What the driver knows of the arenas: which of a request's blocks are sealed for which heads. States and links only, never a payload.

Opened on the first question, when the ranks have made the arenas. A hint: the rank that loads verifies every byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.engines.reference.kv import config_of_stage, usable
from dynamo_gpu_ft.engines.reference.messages import Loaded, Prefix
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.split import Split
from dynamo_gpu_ft.errors import ArenaError
from dynamo_gpu_ft.kv import arena


class Shelf:
    """One arena per stage."""

    def __init__(self, options: Options, split: Split) -> None:
        self._options, self._split = options, split
        self._records: dict[int, tuple[int, int]] = {}
        self._open: dict[int, Any] = {}

    def told(self, shard: int, loaded: Loaded) -> None:
        """A rank has joined its arena, or has not."""
        if loaded.namespace >= 0:
            self._records[self._split.place(shard)[0]] = (loaded.namespace, loaded.kv_epoch)

    def usable(self, shard: int, heads: Sequence[int], prefixes: Sequence[Prefix]) -> list[Prefix]:
        """The leading blocks of each prefix that all `heads` of the shard's stage have."""
        stage = self._split.place(shard)[0]
        if stage not in self._records or not heads:
            return [p.head(0) for p in prefixes]
        record, epoch = self._records[stage]
        try:
            if stage not in self._open:
                path = Path(config_of_stage(self._options, stage).arena_path)
                self._open[stage] = arena.open_existing(path)
        except ArenaError:
            return [p.head(0) for p in prefixes]
        return usable(prefixes, self._open[stage], record, heads, epoch)

    def close(self) -> None:
        for opened in self._open.values():
            opened.close()
        self._open.clear()
