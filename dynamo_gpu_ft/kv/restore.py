"""Restoring a prefix: which blocks to load, and what the answer of the load means. Pure functions.

`plan` turns "usable blocks" and "already in the engine" into a load; `outcome` turns per-block statuses into the precise
answer the engine needs: which engine blocks are bad and how many tokens must be recomputed, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_gpu_ft.kv import cost
from dynamo_gpu_ft.kv.blocks import Sources, Usable
from dynamo_gpu_ft.kv.tail import Tail


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """Load block indices [first, first + count) of the prefix; `reason` says why not more ("complete" when all).

    `sources` as in `Run`, for exactly these blocks; `refused` is the source that was not worth loading from. With
    a `tail`, the last block is that one."""

    first: int
    count: int
    reason: str
    sources: tuple[Sources | None, ...] = ()
    timeout_s: float | None = None
    refused: str = ""
    tail: Tail | None = None

    def tokens(self, block_size: int) -> int:
        if self.tail is None:
            return self.count * block_size
        return (self.count - 1) * block_size + self.tail.tokens


@dataclass(frozen=True, slots=True)
class RestoreOutcome:
    """`restored` leading blocks of the load are verified in the engine; `bad_block_ids` hold undefined bytes."""

    restored: int
    bad_block_ids: tuple[int, ...]
    reason: str  # "complete" or the status of the first bad block


def plan(
    usable: Usable,
    *,
    local_tokens: int,
    block_size: int,
    block_bytes: int,
    costs: cost.Costs | None,
) -> RestorePlan:
    """What to load beyond the `local_tokens` (whole blocks) that the engine already has, as far as loading is the
    quicker way; all of it without `costs`."""
    first = local_tokens // block_size
    if usable.blocks <= first:
        return RestorePlan(first, 0, usable.reason)
    segments = _behind(usable.runs or (("arena", usable.blocks),), first)
    choice = cost.Choice(usable.blocks - first, None)
    if costs is not None:
        choice = cost.choose(
            segments, block_bytes=block_bytes, block_tokens=block_size, costs=costs
        )
    reason = usable.reason if not choice.refused else f"slow {choice.refused}"
    own = usable.blocks - len(usable.sources)
    end = first + choice.blocks
    sources = tuple(None if i < own else usable.sources[i - own] for i in range(first, end))
    return RestorePlan(
        first,
        choice.blocks,
        reason,
        sources if any(sources) else (),
        choice.timeout_s,
        choice.refused,
        usable.tail if end == usable.blocks else None,
    )


def _behind(runs: Sequence[tuple[str, int]], skip: int) -> list[tuple[str, int]]:
    """`runs` without their first `skip` blocks."""
    left = []
    for source, count in runs:
        gone = min(skip, count)
        skip -= gone
        if count > gone:
            left.append((source, count - gone))
    return left


def outcome(block_ids: Sequence[int], statuses: Sequence[str]) -> RestoreOutcome:
    """Reads the statuses of a load. Everything from the first status other than "ok" on is bad (a chain has no gaps)."""
    for index, status in enumerate(statuses):
        if status != "ok":
            return RestoreOutcome(index, tuple(block_ids[index:]), status)
    if len(statuses) < len(block_ids):
        return RestoreOutcome(len(statuses), tuple(block_ids[len(statuses) :]), "missing")
    return RestoreOutcome(len(block_ids), (), "complete")
