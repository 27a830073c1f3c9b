"""Finds every place that holds KV an engine can use: its arena, its shards' disk logs, and the same KV in another layout.

The scheduler's process gets a `PrefixIndex` over all of it, a worker the way to convert from another layout. Both
look at the same files: the arena and its former one, and the logs' folders.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import GpuFtError, NotProtected
from dynamo_gpu_ft.kv import disk, former, namespace, relayout
from dynamo_gpu_ft.kv.blocks import Sources
from dynamo_gpu_ft.kv.convert import compiled
from dynamo_gpu_ft.kv.fresh import FreshLog, Refresher
from dynamo_gpu_ft.kv.geometry import ShardLayout
from dynamo_gpu_ft.kv.prefix import Foreign, PrefixIndex, Shelf

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

_log = logging.getLogger("dynamo_gpu_ft.kv")

#: A log that nobody writes any more has no epoch of its own to end at.
ANY_EPOCH = (1 << 63) - 1


class Shelves:
    """All places that one process of an engine reads. Opens files; `close` lets them go."""

    def __init__(self, own: _core.Arena, record: bytes, config: Config) -> None:
        self._own, self._record, self._config = own, record, config
        self._former = former.open_former(Path(config.arena_path))
        self._logs: dict[int, _core.DiskLog | None] = {}
        self._fresh: dict[int, FreshLog | None] = {}
        self._refresher: Refresher | None = None
        self._index: PrefixIndex | None = None
        self._until = time.monotonic() + config.former_keep_s

    def index(self, shards: Sequence[int], epoch: int, block_tokens: int) -> PrefixIndex:
        """What the scheduler asks. Called once; starts a thread where there are logs."""
        size = self._own.slot_bytes
        own = Shelf(self._record, tuple(shards), size, epoch, self._own, self._followed(shards))
        self._index = PrefixIndex(own, block_tokens, self._foreign())
        logs = [log for log in self._fresh.values() if log is not None]
        if logs:
            self._refresher = Refresher(logs)
        return self._index

    def converter(self, writer: _core.Writer, shard: int, wanted: Sources) -> _core.Converter:
        """Makes blocks of `shard` out of blocks like `wanted`. Raises `NotProtected` or `CoreError`."""
        core, ours = native.load(), namespace.layout_of(self._record)
        theirs = namespace.layout_of(wanted.origin)
        plan = relayout.plan(theirs, ours, shard)
        if wanted.on_disk:
            logs = [log for log in self._readers(plan.source_shards) if log is not None]
            if len(logs) == len(plan.source_shards):
                return core.Converter.from_logs(
                    writer,
                    logs,
                    namespace_id=core.digest(wanted.origin),
                    payload_bytes=plan.source_bytes,
                    max_epoch=ANY_EPOCH,
                    shards=plan.source_shards,
                    phases=compiled(plan),
                )
        for arena in () if wanted.on_disk else self._arenas():
            records = arena.namespaces()
            if wanted.origin in records:
                return core.Converter(
                    writer,
                    arena,
                    namespace=records.index(wanted.origin),
                    max_epoch=arena.epoch,
                    shards=plan.source_shards,
                    phases=compiled(plan),
                )
        raise NotProtected(
            "blocks of another layout are gone",
            where=self._own.path,
            rule="the former arena or the logs hold their namespace",
            remedy="compute them again",
        )

    def former_is_due(self) -> bool:
        """Whether the former arena has been kept for as long as it should be."""
        return self._former is not None and time.monotonic() > self._until

    def forget_former(self) -> None:
        """Lets the former arena go; its memory is free once every process has done so."""
        if self._former is None:
            return
        arena, self._former = self._former, None
        if self._index is not None:
            self._index.forget(arena)
        arena.close()

    def close(self) -> None:
        """Lets the former arena and the logs go; the engine's own arena stays."""
        self.forget_former()
        if self._refresher is not None:
            self._refresher.close()
        for log in self._logs.values():
            if log is not None:
                log.close(1.0)
        self._logs.clear()

    # -- details ----------------------------------------------------------------------------------------------------

    def _readers(self, shards: Sequence[int]) -> tuple[_core.DiskLog | None, ...]:
        if not self._config.disk_dir:
            return ()
        for shard in shards:
            if self._logs.get(shard) is None:
                self._logs[shard] = disk.open_reader(self._config, shard)
        return tuple(self._logs[shard] for shard in shards)

    def _followed(self, shards: Sequence[int]) -> tuple[FreshLog | None, ...]:
        """The same, each open twice so that it can be kept fresh."""
        for shard, first in zip(shards, self._readers(shards), strict=False):
            if shard not in self._fresh:
                second = disk.open_reader(self._config, shard) if first is not None else None
                self._fresh[shard] = None
                if first is not None and second is not None:
                    self._fresh[shard] = FreshLog(first, second)
        return tuple(self._fresh[shard] for shard in shards) if self._config.disk_dir else ()

    def _arenas(self) -> list[_core.Arena]:
        return [arena for arena in (self._former, self._own) if arena is not None]

    def _foreign(self) -> list[Foreign]:
        """Every namespace of the same values under another layout, wherever it lies; the quickest places first."""
        found: list[Foreign] = []
        for arena in self._arenas():
            records = arena.namespaces()
            for number in namespace.relatives(records, self._record):
                found += self._foreign_of(records[number], arena)
        on_disk: list[bytes] = []
        for log in self._readers(disk.shards_on_disk(self._config)):
            records = log.namespaces() if log is not None else []
            for number in namespace.relatives(records, self._record):
                if records[number] not in on_disk:
                    on_disk.append(records[number])
                    found += self._foreign_of(records[number], None)
        return found

    def _foreign_of(self, record: bytes, arena: _core.Arena | None) -> list[Foreign]:
        """None or one; without an arena its blocks lie in the logs."""
        theirs, ours = namespace.layout_of(record), namespace.layout_of(self._record)
        if not isinstance(theirs, ShardLayout) or not isinstance(ours, ShardLayout):
            return []
        try:
            plan = relayout.plan(theirs, ours, ours.shards[0])
        except GpuFtError as error:
            _log.info("KV of another layout is not used: %s", error)
            return []
        logs = self._followed(theirs.shards) if arena is None else ()
        epoch = arena.epoch if arena is not None else ANY_EPOCH
        shelf = Shelf(record, theirs.shards, theirs.payload_bytes, epoch, arena, logs)
        return [Foreign(shelf, theirs.block_tokens, plan)]
