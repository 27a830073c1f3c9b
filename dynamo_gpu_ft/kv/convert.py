"""Conversions as the native core runs them: a plan compiled and checked, a converter over two arenas, its list of targets.

Between the pure planner (`kv.relayout`) and whoever has blocks under another layout and wants them under its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv import namespace
from dynamo_gpu_ft.kv.geometry import Opaque, ShardLayout
from dynamo_gpu_ft.kv.relayout import Relayout, plan

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core


def compiled(relayout: Relayout) -> list[_core.Relayout]:
    """The plan's phases in the native core, which checks every offset once more. Linear in the payload's bytes."""
    core = native.load()
    payloads = [relayout.source_bytes] * (relayout.sources_per_target * len(relayout.source_shards))
    return [
        core.Relayout(
            [core.StridedCopy(c.source, c.start, c.to, c.dims, c.bytes) for c in copies],
            payloads,
            relayout.target_bytes,
        )
        for copies in relayout.phases
    ]


class ShardConverter:
    """Makes blocks of one shard (`writer`'s, laid out as `target`) of blocks in `source` under namespace number `found`.

    Raises `NotProtected` with the reason when the layouts cannot be converted, `CoreError` when they do not fit the arenas. Which
    namespaces hold the same KV is for `namespace.relatives` to say: nothing here can see it."""

    def __init__(
        self,
        writer: _core.Writer,
        target: ShardLayout | Opaque,
        source: _core.Arena,
        found: int,
        *,
        max_epoch: int,
    ) -> None:
        self.plan = plan(namespace.layout_of(source.namespaces()[found]), target, writer.shard)
        self._native = native.load().Converter(
            writer,
            source,
            namespace=found,
            max_epoch=max_epoch,
            shards=self.plan.source_shards,
            phases=compiled(self.plan),
        )

    def convert(
        self,
        hashes: Sequence[bytes],
        source_hashes: Sequence[bytes],
        *,
        first: int = 0,
        timeout: float,
    ) -> _core.Converted:
        """Converts the prefix `hashes` from block `first` on. Both lists begin at position 0 and name the same tokens, cut into
        the blocks of the target and of the source; what `source_hashes` is too short for is left out. Blocks for the copy."""
        core = native.load()
        targets = []
        for position in range(first, len(hashes)):
            needed = self.plan.sources(position)
            if needed.stop > len(source_hashes):
                break
            parent = hashes[position - 1] if position else None
            names = [source_hashes[at] for at in needed]
            targets.append(core.Target(hashes[position], parent, position, names))
        begin = self.plan.sources(first).start
        before = source_hashes[begin - 1] if begin and targets else None
        return self._native.convert(targets, source_parent=before, timeout=timeout)

    def cancel(self) -> None:
        """From any thread: a convert under way stops before its next block."""
        self._native.cancel()
