"""Worker half of the connector: turns the scheduler half's orders into copies of this rank's blocks.

Runs in each vLLM worker, on the step's thread; the copies run on the tier's threads. It joins the arena when vLLM hands
over the KV tensors, and reports metrics from this process.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamo_gpu_ft import __version__
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm.identity import Identity
from dynamo_gpu_ft.engines.vllm.metadata import StepMetadata, WorkerReport
from dynamo_gpu_ft.engines.vllm.timing import StepTimer
from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv import arena, disk, former, layout, namespace
from dynamo_gpu_ft.kv.backed import BackedTier
from dynamo_gpu_ft.kv.base import Tier
from dynamo_gpu_ft.kv.behind import Behind
from dynamo_gpu_ft.kv.blocks import Run
from dynamo_gpu_ft.kv.device import DeviceTier
from dynamo_gpu_ft.kv.prefix import Shelf
from dynamo_gpu_ft.kv.snapshot import Progress, SnapshotQueue
from dynamo_gpu_ft.metrics import metrics, port_of

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")

#: Why a block was never copied; every other reason means that it was, and could not be sealed.
NOT_TRIED = frozenset({"lag", "cancelled", "full", "no_parent"})

#: What lasts longer is a pause between requests and no step.
LONGEST_STEP_S = 1.0

PIN_REFUSED = {
    "full": "pinned blocks may not have more of the arena: raise DYN_GPU_FT_PINNED_SHARE, or unpin some",
    "not_found": "none of the request's blocks is in the arena: it is too short, or they were dropped",
}


class WorkerHalf:
    """One rank's stores and loads. Construct with `join`."""

    def __init__(
        self,
        tier: Tier,
        config: Config,
        block_size: int,
        device_type: str = "cpu",
        behind: Behind | None = None,
        everywhere: Callable[[bytes], bool] = lambda name: True,
    ) -> None:
        self._tier, self._block_size = tier, block_size
        self._behind = behind
        self._fenced = False
        # A tier that shares the device with the engine wants to know how long steps take: from one beginning to the next.
        copies = tier.inner if isinstance(tier, BackedTier) else tier
        self._told_steps = copies.step if isinstance(copies, DeviceTier) else None
        self._began = 0.0
        self._refusals: set[str] = set()  # reasons that were said already
        self._timer = StepTimer(device_type)
        self._moved: list[tuple[str, int, float]] = []
        self._queue = SnapshotQueue(
            tier,
            max_lag_bytes=config.max_lag_bytes,
            load_timeout_s=config.load_timeout_s,
            everywhere=everywhere,
        )

    @classmethod
    def join(
        cls, tensors: Mapping[str, Any], identity: Identity, shard: int, config: Config
    ) -> WorkerHalf:
        """Opens the arena and this shard's writer. Blocks for the arena's allocation when this rank is first.

        Raises `NotProtected` or `ArenaError`."""
        described = layout.describe(tensors, identity.num_blocks, identity.facts)
        opened = former.open_for_engine(
            Path(config.arena_path),
            slot_bytes=described.block_bytes,
            engine_id=identity.engine_id,
            config=config,
        )
        arena.begin_epoch(
            opened,
            identity.engine_id,
            takeover=config.takeover,
            floor=disk.epoch_floor(config, identity.shards),
        )
        record = namespace.encode(
            identity.engine,
            described.fingerprint,
            placement=identity.placement,
            geometry=described.geometry,
        )
        writer = arena.attach_writer(
            opened,
            shard=shard,
            engine_id=identity.engine_id,
            record=record,
            takeover=config.takeover,
        )
        arena.apply_limits(opened, namespace=writer.namespace, config=config)
        port = port_of("worker", config.metrics_port, rank=shard)
        metrics().start("worker", port=port, host=config.metrics_host)
        metrics().set("info", 1, version=__version__, digest=opened.digest_name)
        first = next(iter(tensors.values()))
        tier: Tier
        if first.device.type == "cpu":
            tier = arena.HostTier(writer, described, threads=config.copy_threads)
        else:
            tier = DeviceTier(opened, writer, described, tensors, config=config)
        behind = Behind.open(opened, writer, record, shard, config)
        tier = BackedTier(tier, behind.fillers, behind.disk, fill_seconds=config.load_timeout_s)
        metrics().set("protected", 1)
        _log.info(
            "KV snapshots on: arena %s, shard %d, epoch %d, %d slots of %d bytes",
            opened.path,
            shard,
            writer.epoch,
            opened.slots,
            opened.slot_bytes,
        )
        others = tuple(other for other in identity.shards if other != shard)
        shelf = Shelf(record, others, described.block_bytes, writer.epoch, opened)
        return cls(tier, config, identity.block_size, first.device.type, behind, shelf.everywhere)

    def before_step(self, step: StepMetadata) -> None:
        """Before the forward pass: blocks of preempted requests are about to be reused."""
        if self._told_steps is not None:
            now = time.monotonic()
            if 0 < now - self._began < LONGEST_STEP_S:
                self._told_steps(now - self._began)
            self._began = now
        if step.preempted:
            self._queue.preempt(step.preempted)
        if step.forget_former and self._behind is not None:
            self._behind.forget_former()
        # NOTE: here and not with the loads, which vLLM starts behind the forward pass unless it waits for them.
        self._timer.start(step.prefill_tokens)

    def start_loads(self, step: StepMetadata) -> None:
        for run in step.loads:
            self._queue.load(run)

    def after_step(self, step: StepMetadata) -> None:
        """After the forward pass: this step's blocks are complete."""
        self._timer.stop()
        for run in step.stores:
            self._queue.store(run)
        for pin in step.pins:  # before their requests let go
            self._queue.pin(pin)
        for request_id in step.finished:
            self._queue.finish(request_id)
        for request_id in step.released:
            self._queue.finish(request_id, report=False)

    def poll(self) -> Progress:
        if self._fenced:
            raise NotProtected(
                "another engine has taken this arena over: what this one would store is refused",
                rule="one live engine per arena",
                remedy="stop this engine, or give it its own DYN_GPU_FT_ARENA_NAME",
            )
        if self._behind is not None:
            self._behind.report()
        if self._queue.idle:
            return Progress()
        progress = self._queue.poll()
        self._report()
        return progress

    def report(self, gaps: dict[str, int]) -> WorkerReport | None:
        """`gaps` with what was measured since the last report; None when there is nothing to say."""
        moved, self._moved = self._moved, []
        prefills = self._timer.take()
        for tokens, seconds in prefills:
            metrics().set("prefill_token_seconds", seconds / tokens)
        return WorkerReport(gaps, moved, prefills) if gaps or moved or prefills else None

    def abandon(self) -> Progress:
        """After an error of ours: everything under way counts as failed, nothing stays waited for."""
        return self._queue.abandon()

    def refill(self, runs: Sequence[Run], seconds: float) -> list[int]:
        """Loads `runs` of whole blocks and waits for them; the engine blocks that were restored, and no others, are valid."""
        give_up = time.monotonic() + seconds
        bad: set[int] = set()
        for run in runs:
            self._queue.load(dataclasses.replace(run, timeout_s=seconds))
        while not self._queue.idle and time.monotonic() < give_up:
            bad |= self._queue.poll().bad_block_ids
            self._tier.wait(0.01)
        bad |= self._queue.abandon().bad_block_ids
        self._report()
        return [block for run in runs for block in run.block_ids if block not in bad]

    def forget(self, open_requests: set[str]) -> None:
        """Gives up everything under way, and the holds of requests that are not open any more."""
        self._queue.abandon()
        self._queue.keep_only(open_requests)

    def close(self) -> None:
        """Waits briefly for the last stores, then gives the shard up."""
        self._tier.wait(2.0)
        self._tier.close()
        if self._behind is not None:
            self._behind.close()

    def _report(self) -> None:
        stats, recorder = self._queue.take_stats(), metrics()
        self._fenced = self._fenced or "fenced" in stats.dropped
        for source, size, _ in stats.moved:
            recorder.add("loaded_bytes_total", size, source=source)
        self._moved += [part for part in stats.moved if part[1]]
        blocks, size = self._queue.backlog()
        recorder.set("snapshot_lag_tokens", blocks * self._block_size)
        recorder.set("snapshot_lag_bytes", size)
        if stats.stored_bytes:
            recorder.add("snapshot_bytes_total", stats.stored_bytes)
        if loaded := stats.loaded_blocks * self._block_size + stats.loaded_tail_tokens:
            recorder.add("loaded_tokens_total", loaded)
        for reason, count in stats.dropped.items():
            if reason in NOT_TRIED:
                recorder.add("snapshot_dropped_blocks_total", count, reason=reason)
            else:
                recorder.add("seal_failures_total", count, reason=reason)
        for reason, count in stats.pins.items():
            if reason != "ok":
                self._refused(reason, count)
        for reason, count in stats.load_failures.items():
            recorder.add("verify_failures_total", count, reason=reason)

    def _refused(self, reason: str, count: int) -> None:
        metrics().add("pins_refused_total", count, reason=reason)
        if reason not in self._refusals:
            self._refusals.add(reason)
            _log.warning("PIN REFUSED (%s): %s", reason, PIN_REFUSED.get(reason, "see the metric"))
