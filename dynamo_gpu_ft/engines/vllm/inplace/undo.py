"""Takes back what the scheduler believes a lost step has done, and says which cached blocks the lost shard misses.

Every running request is preempted, as vLLM does when it is short of blocks, so that the ordinary way back (prefix cache, then
arena, then computing) brings each one to where it was. Nothing here calls a worker.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynamo_gpu_ft.engines.vllm import compat
from dynamo_gpu_ft.engines.vllm.inplace import inside
from dynamo_gpu_ft.engines.vllm.inplace.states import RequestState
from dynamo_gpu_ft.events import RequestResumed
from dynamo_gpu_ft.kv.blocks import Run, make_run


@dataclass(slots=True)
class Undone:
    """`refill`: runs of whole blocks that survivors hold and the lost shard must get back, chains from their beginning.
    `unwritten`: blocks that have a name in the prefix cache and were never filled. `requests`: what every rank must know."""

    refill: list[Run] = field(default_factory=list)
    unwritten: set[int] = field(default_factory=set)
    requests: list[RequestState] = field(default_factory=list)


def written_blocks(computed: int, in_flight: int, block_size: int) -> int:
    """Leading blocks of a request that are whole and filled when the tokens in flight are lost. Pure."""
    return max(0, computed - in_flight) // block_size


def chains(
    requests: Iterable[tuple[str, Sequence[int], Sequence[bytes], int]],
) -> tuple[list[Run], set[int]]:
    """From (id, block ids, block names, whole blocks written) per running request: the runs to refill, each block once, and the
    blocks beyond what was written. Pure.

    A block that one request is about to fill can be counted as there by another that shares its prefix in the same step: it is
    unwritten all the same, and ends the other's run."""
    rows = list(requests)
    unwritten = {block for _, ids, _, whole in rows for block in ids[whole:]}
    runs, seen = [], set[int]()
    for request_id, ids, names, whole in rows:
        end = 0
        while end < min(whole, len(names)) and ids[end] not in unwritten:
            end += 1
        first = 0
        while first < end and ids[first] in seen:
            first += 1
        if first < end:
            runs.append(make_run(request_id, first, ids[first:end], names))
            seen.update(ids[first:end])
    return runs, unwritten


def undo(scheduler: Any) -> Undone:
    """Preempts everything that runs. A second call finds nothing running and adds nothing."""
    block_size = int(scheduler.block_size)
    rows = []
    for request in scheduler.running:
        ids = scheduler.kv_cache_manager.get_block_ids(request.request_id)[0]
        whole = written_blocks(
            request.num_computed_tokens, request.num_in_flight_tokens, block_size
        )
        rows.append((request.request_id, list(ids), compat.own_hashes(request, block_size), whole))
    runs, unwritten = chains(rows)
    while scheduler.running:
        request = scheduler.running.pop()
        scheduler._preempt_request(request, time.monotonic(), drop_stale_output=True)
    scheduler.prev_step_scheduled_req_ids.clear()
    inside.end_transfers(scheduler)
    requests = [
        RequestState.of(request)
        for request in scheduler.requests.values()
        if request.num_preemptions and not request.is_finished()
    ]
    return Undone(runs, unwritten, requests)


def resumed(
    requests: Iterable[RequestState], scheduler_output: Any, epoch: int
) -> list[RequestResumed]:
    """What those of `requests` that this step resumes have kept or got back, tails included, and what it computes again. Pure."""
    waiting = {request.request_id: request for request in requests}
    found = scheduler_output.scheduled_cached_reqs
    events = []
    for request_id, computed in zip(found.req_ids, found.num_computed_tokens, strict=True):
        request = waiting.get(request_id)
        if request is None:
            continue
        tokens = len(request.prompt_token_ids or ()) + len(request.output_token_ids)
        events.append(
            RequestResumed(
                epoch=epoch,
                request_id=request_id,
                tokens_before=len(request.output_token_ids),
                tokens_restored=computed,
                tokens_recomputed=tokens - computed,
            )
        )
    return events


def cached_blocks(scheduler: Any) -> set[int]:
    """Engine blocks that the prefix cache would hand out."""
    pool = scheduler.kv_cache_manager.block_pool
    return {block.block_id for block in pool.blocks if block.block_hash is not None}


def withdraw(scheduler: Any, blocks: Iterable[int]) -> int:
    """Takes blocks out of the prefix cache; how many were in it."""
    found = cached_blocks(scheduler) & set(blocks)
    scheduler.kv_cache_manager.evict_blocks(found)
    return len(found)
