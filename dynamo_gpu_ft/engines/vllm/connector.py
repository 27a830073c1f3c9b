"""`GpuFtConnector`: vLLM's KV connector interface over the two halves, and the guard between them and the engine.

Named in `--kv-transfer-config`. Whatever fails on our side turns the connector into a no-op that still answers everything
vLLM waits for, says so once, and lets the engine serve on unprotected.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm import compat
from dynamo_gpu_ft.engines.vllm.identity import Identity, identify
from dynamo_gpu_ft.engines.vllm.metadata import StepMetadata, WorkerReport
from dynamo_gpu_ft.engines.vllm.scheduler import SchedulerHalf
from dynamo_gpu_ft.engines.vllm.steps import lost_step
from dynamo_gpu_ft.engines.vllm.worker import WorkerHalf
from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv import arena, former, namespace
from dynamo_gpu_ft.kv.blocks import Run
from dynamo_gpu_ft.kv.shelves import Shelves
from dynamo_gpu_ft.kv.snapshot import Progress
from dynamo_gpu_ft.metrics import metrics
from dynamo_gpu_ft.recovery import processes

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")
_T = TypeVar("_T")


class GpuFtConnector(KVConnectorBase_V1):
    """One object per role: SCHEDULER in EngineCore, WORKER in every rank."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._scheduler: SchedulerHalf | None = None
        self._shelves: Shelves | None = None
        self._worker: WorkerHalf | None = None
        self._identity: Identity | None = None
        self._config = Config()
        self._progress = Progress()
        self._lost: list[Run] = []
        self.not_protected: str | None = (
            None  # why this process takes no snapshots, None while it does
        )
        compat.warn_if_untested()
        self._guard("starting", self._start, None)

    @property
    def requires_kv_delivery(self) -> bool:
        """A dropped save is a later recomputation, never lost work."""
        return False

    def _start(self) -> None:
        processes.die_with_parent()  # also where the package is importable but its entry point is not installed
        self._config = Config.load(self._kv_transfer_config.kv_connector_extra_config)
        identity = identify(self._vllm_config, self._kv_cache_config)
        if identity.part:
            name = f"{self._config.arena_name}-{identity.part}"
            self._config = dataclasses.replace(self._config, arena_name=name)
        self._identity = identity
        if self._kv_transfer_config.kv_load_failure_policy != "recompute":
            # NOTE: vLLM 0.31 and 0.32 read this after making the connector. Under MultiConnector it is the outer
            # configuration that counts, which we cannot reach: hence the words in the README.
            self._kv_transfer_config.kv_load_failure_policy = "recompute"
            _log.info(
                "kv_load_failure_policy set to recompute: a damaged block is recomputed, not failed"
            )

    def _scheduler_half(self) -> SchedulerHalf | None:
        """Made on first use: by then the workers have made the arena and their namespace record."""
        if self._scheduler is None and self.not_protected is None and self._identity is not None:
            self._scheduler = self._guard("opening the arena", self._open_reader, None)
        return self._scheduler

    def _open_reader(self) -> SchedulerHalf:
        identity, config = self._identity, self._config
        assert identity is not None
        opened = arena.open_existing(Path(config.arena_path))
        found = namespace.find(opened.namespaces(), identity.engine, identity.placement)
        if found is None:
            raise NotProtected(
                "no worker of this engine has registered its KV layout",
                where=opened.path,
                rule="workers register before the first request",
                remedy="look for the worker's own message above this one",
            )
        epoch = arena.begin_epoch(opened, identity.engine_id, takeover=config.takeover)
        self._shelves = Shelves(opened, opened.namespaces()[found], config)
        index = self._shelves.index(identity.shards, epoch, identity.block_size)
        return SchedulerHalf(
            index,
            block_size=identity.block_size,
            block_bytes=opened.slot_bytes,
            snapshot=config.snapshot,
            decode=config.snapshot_decode,
            tail_every=config.tail_every,
            pin_ttl_s=config.pin_ttl_s,
            by_cost=config.restore_by_cost,
            names=compat.hashes_at(self._vllm_config, identity.block_size),
        )

    def _guard(self, doing: str, action: Callable[[], _T], fallback: _T) -> _T:
        """Runs `action`; an exception ends protection, is said once, and gives `fallback`."""
        try:
            return action()
        except Exception as error:
            self._end_protection(doing, error)
            return fallback

    def _end_protection(self, doing: str, error: Exception) -> None:
        if self.not_protected is not None:
            return
        self.not_protected = f"{doing}: {error}"
        _log.error(
            "NOT PROTECTED: KV snapshots are off in this process after an error while %s: %s",
            doing,
            error,
            exc_info=not isinstance(error, NotProtected) and _log.isEnabledFor(logging.DEBUG),
        )
        metrics().set("protected", 0)
        if self._worker is not None:
            left = self._worker.abandon()
            self._progress.loaded |= left.loaded
            self._progress.bad_block_ids |= left.bad_block_ids
            self._progress.sent |= left.sent
            worker, self._worker = self._worker, None
            self._guard("closing", worker.close, None)
        self._scheduler = None

    # -- worker side ---------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        if self.not_protected is None and self._identity is not None:
            self._guard("joining the arena", lambda: self._join(kv_caches), None)

    def _join(self, kv_caches: dict[str, torch.Tensor]) -> None:
        assert self._identity is not None
        parallel = self._vllm_config.parallel_config
        shard = int(parallel.rank) % int(parallel.tensor_parallel_size)
        self._worker = WorkerHalf.join(kv_caches, self._identity, shard, self._config)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        step = kv_connector_metadata
        if self._worker is not None and isinstance(step, StepMetadata):
            worker = self._worker
            self._guard("handling preemptions", lambda: worker.before_step(step), None)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        step = self._step()
        if self._worker is not None:
            worker = self._worker
            self._guard("starting loads", lambda: worker.start_loads(step), None)
        if self._worker is None:
            self._lose(step.loads)
        self._lose(step.lost)

    def _lose(self, runs: Iterable[Run]) -> None:
        """Answers loads that nobody will do: vLLM recomputes their blocks instead of waiting for ever."""
        for run in runs:
            self._progress.loaded.add(run.request_id)
            self._progress.bad_block_ids.update(run.block_ids)

    def has_connector_metadata(self) -> bool:
        """vLLM asks this per layer before the two hooks below; whole blocks need neither, so it may skip them."""
        return False

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: loads are asynchronous and over before their request is scheduled."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing per layer: whole blocks are copied after the step."""

    def wait_for_save(self) -> None:
        step = self._step()
        if lost_step.is_set() or sys.exc_info()[0] is not None:
            # NOTE: vLLM calls this for a step that failed too. Its blocks hold anything; under their names it would be served.
            for run in step.stores:
                first = self._progress.gaps.get(run.request_id, run.first)
                self._progress.gaps[run.request_id] = min(first, run.first)
            step = dataclasses.replace(step, stores=[])
        if self._worker is not None:
            worker = self._worker
            self._guard("queueing stores", lambda: worker.after_step(step), None)
        if self._worker is None:
            self._progress.sent.update(step.finished)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        if self._worker is not None:
            found = self._guard("polling", self._worker.poll, Progress())
            self._progress.loaded |= found.loaded
            self._progress.bad_block_ids |= found.bad_block_ids
            self._progress.sent |= found.sent
            self._progress.gaps.update(found.gaps)
        sent, loaded = self._progress.sent, self._progress.loaded
        self._progress.sent, self._progress.loaded = set(), set()
        return sent or None, loaded or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        bad, self._progress.bad_block_ids = self._progress.bad_block_ids, set()
        return bad

    def build_connector_worker_meta(self) -> WorkerReport | None:
        gaps, self._progress.gaps = self._progress.gaps, {}
        if self._worker is None:
            return WorkerReport(gaps) if gaps else None
        worker = self._worker
        return self._guard("reporting", lambda: worker.report(gaps), None)

    def refill(self, runs: list[Run], seconds: float) -> list[int]:
        """Recovery in place: loads whole blocks back into this rank; those that were verified. Blocks, at most about `seconds`."""
        worker = self._worker
        if worker is None:
            return []
        return self._guard("refilling", lambda: worker.refill(runs, seconds), [])

    def forget(self, open_requests: set[str]) -> None:
        """Recovery in place: nothing that was under way is reported any more; only `open_requests` keep their hold on blocks."""
        if self._worker is not None:
            worker = self._worker
            self._guard("forgetting", lambda: worker.forget(open_requests), None)
        self._progress = Progress()

    def shutdown(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            self._guard("shutting down", worker.close, None)

    def _step(self) -> StepMetadata:
        step = self._get_connector_metadata()
        return step if isinstance(step, StepMetadata) else StepMetadata()

    # -- scheduler side ------------------------------------------------------------------------------------------

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        half = self._scheduler_half()
        if half is None:
            return 0, False
        none = (0, False)
        return self._guard(
            "looking a prefix up", lambda: half.matched_tokens(request, num_computed_tokens), none
        )

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        half = self._scheduler_half()
        if half is None:
            return
        ids = blocks.get_block_ids()[0]
        self._guard(
            "planning a load", lambda: half.allocated(request, ids, num_external_tokens), None
        )
        if self._scheduler is None and num_external_tokens > 0 and self._identity is not None:
            count = -(-num_external_tokens // self._identity.block_size)
            lost = tuple(ids[-count:])
            self._lost.append(Run(request.request_id, 0, lost, (b"",) * len(lost), None))
            self._lost += half.pending_loads()

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        half, manager = self._scheduler, self._kv_cache_manager
        step = StepMetadata()
        if half is not None:
            step = self._guard(
                "planning a step", lambda: half.build(scheduler_output, manager), step
            )
            if self._scheduler is None:
                self._lost += half.pending_loads()
        step.lost, self._lost = self._lost, []
        if self._shelves is not None and self._shelves.former_is_due():
            step.forget_former = True
            self._guard("removing the former arena", self._remove_former, None)
        return step

    def _remove_former(self) -> None:
        assert self._shelves is not None
        former.remove(Path(self._config.arena_path))
        self._shelves.forget_former()

    def update_connector_output(self, connector_output: Any) -> None:
        half = self._scheduler
        if half is not None:
            found = connector_output.kv_connector_worker_meta
            report = found if isinstance(found, WorkerReport) else WorkerReport()
            loaded = list(connector_output.finished_recving or ())
            self._guard("taking a report", lambda: half.reported(report, loaded), None)

    def members_lost(self) -> None:
        """Recovery in place: see `SchedulerHalf.members_lost`."""
        self._lost = []
        if self._scheduler is not None:
            half = self._scheduler
            self._guard("forgetting lost orders", half.members_lost, None)

    def reset_cache(self) -> bool | None:
        """vLLM drops its caches, as after a change of weights: nothing in the arena may be used or added from here on.

        The namespace names the weights the engine was started with, so the next start is protected again."""
        if self._scheduler_half() is not None:
            reason = NotProtected(
                "the engine's caches were reset, so its KV may belong to other weights than those it started with",
                remedy="restart the engine to be protected again",
            )
            self._end_protection("resetting", reason)
        return True

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        half = self._scheduler
        if half is None:
            return False, None
        return self._guard("ending a request", lambda: half.ended(request), False), None
