"""Restoring a prefix: which blocks to load, and what the answer of the load means. Pure functions.

`plan` turns "usable blocks" and "already in the engine" into a load; `outcome` turns per-block statuses into the precise
answer the engine needs: which engine blocks are bad and how many tokens must be recomputed, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_gpu_ft.kv.blocks import Usable


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """Load block indices [first, first + count) of the prefix; `reason` says why not more ("complete" when all)."""

    first: int
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class RestoreOutcome:
    """`restored` leading blocks of the load are verified in the engine; `bad_block_ids` hold undefined bytes."""

    restored: int
    bad_block_ids: tuple[int, ...]
    reason: str  # "complete" or the status of the first bad block


def plan(usable: Usable, *, local_tokens: int, block_size: int) -> RestorePlan:
    """What to load beyond the `local_tokens` (whole blocks) that the engine already has."""
    first = local_tokens // block_size
    return RestorePlan(first, max(0, usable.blocks - first), usable.reason)


def outcome(block_ids: Sequence[int], statuses: Sequence[str]) -> RestoreOutcome:
    """Reads the statuses of a load. Everything from the first status other than "ok" on is bad (a chain has no gaps)."""
    for index, status in enumerate(statuses):
        if status != "ok":
            return RestoreOutcome(index, tuple(block_ids[index:]), status)
    if len(statuses) < len(block_ids):
        return RestoreOutcome(len(statuses), tuple(block_ids[len(statuses) :]), "missing")
    return RestoreOutcome(len(block_ids), (), "complete")
