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
    `preempted` ones have lost their blocks. `pins` are wishes of requests that ended. `lost` are loads that were promised to vLLM and cannot be done."""

    stores: list[Run] = field(default_factory=list)
    loads: list[Run] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    lost: list[Run] = field(default_factory=list)


@dataclass
class WorkerReport(KVConnectorWorkerMetadata):
    """Per request, the first block index that some rank could not store."""

    gaps: dict[str, int] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, WorkerReport)
        merged = dict(self.gaps)
        for request_id, first in other.gaps.items():
            merged[request_id] = min(first, merged.get(request_id, first))
        return WorkerReport(merged)
