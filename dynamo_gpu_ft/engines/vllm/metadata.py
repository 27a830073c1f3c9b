"""What the scheduler half tells the worker half each step, and what comes back. Plain data that vLLM pickles."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from dynamo_gpu_ft.kv.blocks import Pin, Run


@dataclass
class StepMetadata(KVConnectorMetadata):
    """Orders for one engine step: runs to store once it has run, and runs to load.

    `finished` requests ended and their blocks wait for our word; `released` ones ended without that;
    `preempted` ones have lost their blocks. `pins` are wishes of requests that
    ended. `lost` are loads that were promised to vLLM and cannot be done.
    `prefill_tokens` are this step's tokens of prompts: what it costs to compute them is measured.
    `forget_former`: the former arena's time is over."""

    stores: list[Run] = field(default_factory=list)
    loads: list[Run] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    lost: list[Run] = field(default_factory=list)
    prefill_tokens: int = 0
    forget_former: bool = False


@dataclass
class WorkerReport(KVConnectorWorkerMetadata):
    """What a rank found since its last report: per request the first block index it could not store, what it loaded from
    where (source, bytes, seconds), and what computing prompts took (tokens, seconds)."""

    gaps: dict[str, int] = field(default_factory=dict)
    moved: list[tuple[str, int, float]] = field(default_factory=list)
    prefills: list[tuple[int, float]] = field(default_factory=list)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, WorkerReport)
        merged = dict(self.gaps)
        for request_id, first in other.gaps.items():
            merged[request_id] = min(first, merged.get(request_id, first))
        return WorkerReport(merged, [*self.moved, *other.moved], [*self.prefills, *other.prefills])
