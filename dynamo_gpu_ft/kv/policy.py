"""What to snapshot and what to drop when copying lags behind. Pure functions; `kv.snapshot` applies them.

A prefix is only usable up to its first missing block, so within a request the latest blocks are dropped first; across
requests those of finished requests go before those of open ones, oldest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dynamo_gpu_ft.kv.blocks import PendingStore


def blocks_to_store(
    *,
    stored: int,
    computed_tokens: int,
    block_size: int,
    hashed_blocks: int,
    prompt_blocks: int,
    decode: bool,
) -> range:
    """Block indices of one request that are complete after this step and not yet asked for.

    `computed_tokens` counts this step's tokens; a block is complete when all its tokens are computed *and* the engine has
    hashed it (draft tokens that may be rejected are not hashed). `decode` False limits to whole prompt blocks."""
    complete = min(computed_tokens // block_size, hashed_blocks)
    if not decode:
        complete = min(complete, prompt_blocks)
    return range(stored, max(stored, complete))


def restorable_blocks(*, num_tokens: int, block_size: int, hashed_blocks: int) -> int:
    """How many leading blocks may come from outside: at least one token must be left for the engine to compute."""
    return max(0, min((num_tokens - 1) // block_size, hashed_blocks))


def choose_drops(
    pending: Iterable[PendingStore], *, incoming_bytes: int, limit_bytes: int
) -> list[int]:
    """Job ids to cancel so that pending + incoming fits `limit_bytes`; empty when it already does.

    Order: finished requests, oldest first; then open requests, each from its last block backwards, youngest request first.
    The incoming job itself is not a candidate: it is only refused when nothing else is left (see `kv.snapshot`)."""
    jobs: Sequence[PendingStore] = list(pending)
    excess = sum(job.bytes for job in jobs) + incoming_bytes - limit_bytes
    if excess <= 0:
        return []
    finished = sorted((j for j in jobs if not j.open), key=lambda j: (j.sequence, j.first))
    still_open = sorted((j for j in jobs if j.open), key=lambda j: (-j.sequence, -j.first))
    drops = []
    for job in [*finished, *still_open]:
        if excess <= 0:
            break
        drops.append(job.job_id)
        excess -= job.bytes
    return drops
