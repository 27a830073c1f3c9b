"""A standby's stand-ins inside vLLM: a group whose collectives do nothing, the steps of one rehearsed request, the late connector."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Prompt of the rehearsed request: more than one block, less than any chunk.
TOKENS = 40


@contextlib.contextmanager
def no_group(rank: int, size: int) -> Iterator[None]:
    """Inside, this process is `rank` of a group of `size` in which every collective returns at once and moves nothing."""
    import torch
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from vllm.distributed import parallel_state
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    from dynamo_gpu_ft.engines.vllm.inplace import inside

    new_group = torch.distributed.new_group

    def fake_group(ranks: Any = None, *args: Any, **kwargs: Any) -> Any:
        return new_group(ranks, backend="fake")

    replaced: list[tuple[Any, str, Any]] = [
        (torch.distributed, "new_group", fake_group),
        (parallel_state, "_node_count", lambda group: 1),
        (CpuCommunicator, "_all_group_ranks_share_shm_group_name", lambda self: False),
        (MessageQueue, "create_from_process_group", staticmethod(lambda *a, **k: None)),
    ]
    stock = [(owner, name, owner.__dict__[name]) for owner, name, _ in replaced]
    torch.distributed.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in stock:
            setattr(owner, name, value)
        inside.leave_groups()


def rehearsal_steps() -> list[Any]:
    """A prompt, one token more, and the end of a request that nobody sent."""
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

    name = "gpu-ft-rehearsal"
    prompt, token, end = (SchedulerOutput.make_empty() for _ in range(3))
    prompt.scheduled_new_reqs = [
        NewRequestData(
            req_id=name,
            prompt_token_ids=list(range(1, TOKENS + 1)),
            mm_features=[],
            sampling_params=SamplingParams(temperature=0.5, top_k=5, max_tokens=4),
            pooling_params=None,
            block_ids=(list(BLOCKS),),
            num_computed_tokens=0,
            lora_request=None,
        )
    ]
    prompt.num_scheduled_tokens = {name: TOKENS}
    prompt.total_num_scheduled_tokens = TOKENS
    token.scheduled_cached_reqs = CachedRequestData(
        req_ids=[name],
        resumed_req_ids=set(),
        new_token_ids=[],
        all_token_ids={},
        new_block_ids=[None],
        num_computed_tokens=[TOKENS],
        num_output_tokens=[1],
    )
    token.num_scheduled_tokens = {name: 1}
    token.total_num_scheduled_tokens = 1
    end.finished_req_ids = {name}
    return [prompt, token, end]


#: Engine blocks that the rehearsal writes; block 0 is vLLM's own.
BLOCKS = (1, 2, 3, 4)


def zero_blocks(runner: Any) -> None:
    runner._zero_block_ids(list(BLOCKS))


def connect_kv(worker: Any, kv_cache_config: Any) -> None:
    """What `initialize_from_config` does for the connector, for KV tensors that are there already."""
    from vllm.distributed.kv_transfer import (
        ensure_kv_transfer_initialized,
        get_kv_transfer_group,
        has_kv_transfer_group,
    )

    ensure_kv_transfer_initialized(worker.vllm_config, kv_cache_config)
    if has_kv_transfer_group():
        context = worker.vllm_config.compilation_config.static_forward_context
        names = [n for group in kv_cache_config.kv_cache_groups for n in group.layer_names]
        get_kv_transfer_group().register_kv_caches({n: context[n].kv_cache for n in names})


def bind_threads(cpus: tuple[int, ...]) -> None:
    """Every thread of this process runs there from now on: it was bound for another rank."""
    if not cpus:
        return
    for entry in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(entry.name), cpus)
