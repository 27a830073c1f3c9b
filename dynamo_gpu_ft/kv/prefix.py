"""The scheduler's view of everything that can be restored: the arena, the logs of its shards, and blocks of other layouts.

Answers how long a prefix is usable and from where each part comes; reads states, links and records only, never a payload, and
mutates nothing. What it says is a hint: the worker verifies every block it loads.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv.blocks import Sources, Usable
from dynamo_gpu_ft.kv.tail import Tail

if TYPE_CHECKING:
    from dynamo_gpu_ft.kv.fresh import FreshLog
    from dynamo_gpu_ft.kv.relayout import Relayout
    from dynamo_gpu_ft.native import _core

#: Names of a prefix's whole blocks at a block size in tokens: the engine's own hashes.
Names = Callable[[int], Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where blocks of one namespace lie: an arena or None, and per shard a log or None (or no logs at all).

    `epoch`: blocks sealed later do not count."""

    record: bytes
    shards: tuple[int, ...]
    payload_bytes: int
    epoch: int
    arena: _core.Arena | None
    logs: tuple[FreshLog | None, ...] = ()

    def usable(self, block_hashes: Sequence[bytes]) -> Usable:
        """The longest prefix that every shard has, and from where: "disk" when some shard has it in its log only."""
        logs = [log.current if log is not None else None for log in self.logs]
        blocks, reason, shard, on_disk = self._walk(block_hashes, logs)
        groups = itertools.groupby(on_disk)
        runs = tuple(("disk" if disk else "arena", len(list(group))) for disk, group in groups)
        return Usable(blocks, reason, shard, runs)

    def mentions(self, block_hash: bytes) -> bool:
        """Whether the arena may have a block of this name, wherever it belongs: far cheaper than walking to it."""
        blocks, reason, _, _ = self._walk([block_hash], [])
        return blocks > 0 or reason != "missing"

    def everywhere(self, block_hash: bytes) -> bool:
        """Whether the arena has a sealed block of this name for every shard, wherever it belongs."""
        return all(
            dataclasses.replace(self, shards=(shard,))._has(block_hash) for shard in self.shards
        )

    def _has(self, block_hash: bytes) -> bool:
        # Asked for as the first block, a block of another position is a sealed one out of its chain.
        blocks, reason, _, _ = self._walk([block_hash], [])
        return blocks > 0 or reason == "chain"

    def _walk(
        self, block_hashes: Sequence[bytes], logs: list[_core.DiskLog | None]
    ) -> tuple[int, str, int, bytes]:
        return native.load().backed_prefix(
            arena=self.arena,
            logs=logs,
            record=self.record,
            payload_bytes=self.payload_bytes,
            shards=list(self.shards),
            block_hashes=block_hashes,
            max_epoch=self.epoch,
        )


@dataclass(frozen=True, slots=True)
class Foreign:
    """A shelf of another layout, and how its blocks become ours (the same for all our shards as far as numbers go)."""

    shelf: Shelf
    block_tokens: int
    relayout: Relayout

    def usable(self, names: Names, limit: int) -> list[Sources]:
        """What each of our first blocks can be made of, at most `limit` of them."""
        hashes = names(self.block_tokens)
        whole = self.shelf.usable(hashes).blocks
        made = []
        for position in range(limit):
            needed = self.relayout.sources(position)
            if needed.stop > whole:
                break
            parent = hashes[needed.start - 1] if needed.start else None
            named = tuple(hashes[i] for i in needed)
            made.append(Sources(named, parent, self.shelf.record, self.shelf.arena is None))
        return made


class PrefixIndex:
    """Own shelf and foreign ones together."""

    def __init__(self, own: Shelf, block_tokens: int, foreign: Sequence[Foreign] = ()) -> None:
        self._own, self._block_tokens = own, block_tokens
        self._foreign = list(foreign)

    def forget(self, arena: _core.Arena) -> None:
        """Blocks of other layouts that lie there are not asked for any more."""
        self._foreign = [f for f in self._foreign if f.shelf.arena is not arena]

    def usable(self, names: Names, limit: int, tails: Iterable[Tail] = ()) -> Usable:
        """How many of the first `limit` blocks can be restored, and where from.

        When all of them can, the first of `tails` that can be as well comes on top: it is only looked for in our own arena."""
        hashes = names(self._block_tokens)[:limit]
        own = self._own.usable(hashes)
        if own.blocks == limit:
            return self._longer(hashes, tails) or own
        made: list[Sources] = []
        for foreign in self._foreign:
            made = max(made, foreign.usable(names, limit), key=len)
        if len(made) <= own.blocks:
            return own
        runs = (*own.runs, ("convert", len(made) - own.blocks))
        reason = "complete" if len(made) == limit else own.reason
        return Usable(len(made), reason, own.shard, runs, tuple(made[own.blocks :]))

    def _longer(self, hashes: Sequence[bytes], tails: Iterable[Tail]) -> Usable | None:
        for tail in tails:
            if self._own.mentions(tail.name):
                found = self._own.usable([*hashes, tail.name])
                if found.blocks > len(hashes):
                    return dataclasses.replace(found, tail=tail)
        return None
