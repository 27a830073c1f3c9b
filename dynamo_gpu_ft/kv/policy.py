"""What to snapshot, what to drop when copying lags behind, how long to pin. Pure functions; `kv.snapshot` applies them.

A prefix is only usable up to its first missing block, so within a request the latest blocks are dropped first; across
requests those of finished requests go before those of open ones, oldest first. Tails go before everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

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


#: The end of a pin that lasts until somebody unpins.
UNTIL_UNPINNED = 2**32 - 1


def pin_until(asked: Any, *, now: float, ttl_s: float) -> int:
    """When the pin that a request asks for ends, in whole seconds since 1970; 0: end the pin there is.

    True pins for `ttl_s` (0: until unpinned), a number for so many seconds, False unpins. `ValueError` for anything else."""
    if asked is True:
        seconds = ttl_s
    elif asked is False:
        return 0
    elif isinstance(asked, (int, float)) and math.isfinite(asked) and asked > 0:
        seconds = float(asked)
    else:
        raise ValueError("it must be true, false, or a number of seconds above 0")
    return UNTIL_UNPINNED if seconds == 0 else min(math.ceil(now + seconds), UNTIL_UNPINNED - 1)


def choose_drops(
    pending: Iterable[PendingStore], *, incoming_bytes: int, limit_bytes: int
) -> list[int]:
    """Job ids to cancel so that pending + incoming fits `limit_bytes`; empty when it already does.

    Order: tails and finished requests, oldest first; then open requests, each from its last block backwards, youngest request first.
    The incoming job itself is not a candidate: it is only refused when nothing else is left (see `kv.snapshot`)."""
    jobs: Sequence[PendingStore] = list(pending)
    excess = sum(job.bytes for job in jobs) + incoming_bytes - limit_bytes
    if excess <= 0:
        return []
    tails = sorted((j for j in jobs if j.tail), key=lambda j: j.sequence)
    whole = [j for j in jobs if not j.tail]
    finished = sorted((j for j in whole if not j.open), key=lambda j: (j.sequence, j.first))
    still_open = sorted((j for j in whole if j.open), key=lambda j: (-j.sequence, -j.first))
    drops = []
    for job in [*tails, *finished, *still_open]:
        if excess <= 0:
            break
        drops.append(job.job_id)
        excess -= job.bytes
    return drops
