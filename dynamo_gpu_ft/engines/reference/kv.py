"""A rank's KV cache and its snapshots: one tensor, block-contiguous per head, and one tier of the KV store for each head.

The head is what the store calls a shard: its payload is the same whichever rank holds it, so another rank, or another number of ranks,
can take it over as it is. Each stage has an arena of its own, because stages may have different numbers of layers.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.reference.messages import Prefix, Restored
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.shape import Shape
from dynamo_gpu_ft.engines.reference.split import Cut, Range
from dynamo_gpu_ft.kv import arena, layout, namespace
from dynamo_gpu_ft.kv.base import Tier
from dynamo_gpu_ft.kv.blocks import Run
from dynamo_gpu_ft.kv.device import DeviceTier
from dynamo_gpu_ft.kv.snapshot import SnapshotQueue

#: How long stores under way may take when a head gets another cache; what is not sealed then is stored again later.
_DRAIN_S = 0.5
_OWN = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def make_cache(
    shape: Shape,
    cut: Cut,
    options: Options,
    dtype: torch.dtype,
    device: torch.device,
    room: torch.Tensor | None = None,
    *,
    together: bool = False,
) -> torch.Tensor:
    """[heads, blocks, layers, 2 (K, V), tokens of a block, head_dim]: all layers of a block of a head lie together, or, `together`, all heads of
    a block too. `room` is zeroed memory to use if it is large enough. Else, in host memory, pages come with the blocks that are used first,
    so that nobody waits for all of them."""
    size = cache_size(shape, cut, options)
    if together:
        size = (size[1], size[0], *size[2:])
    count = math.prod(size) * dtype.itemsize
    if device.type != "cpu" or not count:
        made = torch.zeros(size, dtype=dtype, device=device)
    else:
        if room is None or len(room) < count:
            room = torch.frombuffer(mmap.mmap(-1, count, flags=_OWN), dtype=torch.uint8)
        made = room[:count].view(dtype).view(size)
    return made.transpose(0, 1) if together else made


def cache_size(shape: Shape, cut: Cut, options: Options) -> tuple[int, ...]:
    heads, layers = cut.heads[1] - cut.heads[0], cut.layers[1] - cut.layers[0]
    return heads, options.blocks, layers, 2, options.block, shape.head_dim


def config_of_stage(options: Options, stage: int) -> Config:
    """The engine's settings with the arena of one stage."""
    config = options.config()
    return dataclasses.replace(config, arena_name=f"{config.arena_name}-stage{stage}")


class Snapshots:
    """Stores and loads of the heads that this rank holds. Single-threaded: the rank's own thread; copies run on the tiers' threads."""

    def __init__(
        self, model: str, shape: Shape, cut: Cut, stage: int, options: Options, engine_id: str
    ) -> None:
        self._identity = {
            "engine": "reference",
            "model": model,
            "dtype": options.dtype,
            "block": options.block,
            "layers": list(cut.layers),
            "heads": shape.kv_heads,
            "head_dim": shape.head_dim,
        }
        self._config, self._engine_id = config_of_stage(options, stage), engine_id
        self._queues: dict[int, tuple[SnapshotQueue, Tier]] = {}
        self._tensors: dict[int, torch.Tensor] = {}
        self.namespace = self.epoch = -1

    def hold(self, heads: Range, cache: torch.Tensor) -> None:
        """These heads are ours from now on, in the order of `cache`; lets go of others. Raises `ArenaError`, `NotProtected`."""
        self.let_go(heads)
        for index, head in enumerate(range(*heads)):
            tensor = cache[index]
            old = self._tensors.get(head)
            if old is not None and old.data_ptr() == tensor.data_ptr():
                continue
            held: dict[str, tuple[bytes, ...]] = {}
            if head in self._queues:
                queue, tier = self._queues.pop(head)
                held = queue.held()
                tier.wait(_DRAIN_S)
                tier.close()
            self._queues[head] = self._join(head, tensor)
            for request, names in held.items():
                self._queues[head][0].adopt(request, names)
            self._tensors[head] = tensor

    def let_go(self, besides: Range) -> None:
        """Gives up the heads that are not in `besides`, behind the stores under way."""
        for head in [head for head in self._queues if not besides[0] <= head < besides[1]]:
            tier = self._queues.pop(head)[1]
            tier.wait(_DRAIN_S)
            tier.close()
            del self._tensors[head]

    def _join(self, head: int, tensor: torch.Tensor) -> tuple[SnapshotQueue, Tier]:
        config = self._config
        described = layout.describe({"kv": tensor}, len(tensor))
        opened = arena.open_or_create(
            Path(config.arena_path), slot_bytes=described.block_bytes, config=config
        )
        self.epoch = arena.begin_epoch(opened, self._engine_id, takeover=config.takeover)
        record = namespace.encode(self._identity, described.fingerprint)
        writer = self._writer(opened, head, record)
        arena.apply_limits(opened, namespace=writer.namespace, config=config)
        self.namespace = writer.namespace
        tier: Tier
        if tensor.device.type == "cpu":
            tier = arena.HostTier(writer, described, threads=config.copy_threads)
        else:
            tier = DeviceTier(opened, writer, described, {"kv": tensor}, config=config)
        queue = SnapshotQueue(
            tier, max_lag_bytes=config.max_lag_bytes, load_timeout_s=config.load_timeout_s
        )
        return queue, tier

    def _writer(self, opened: Any, head: int, record: bytes) -> Any:
        """The head's writer, taken over from whoever of this engine start had it. A rank that let go of it may be in a copy still, which is
        safe whatever it does (`attach_writer` promises it): it seals nothing more, and nobody gets the slot that it copies into."""
        return arena.attach_writer(
            opened, shard=head, engine_id=self._engine_id, record=record, takeover=True
        )

    def forget(self, requests: Sequence[str]) -> None:
        """Before a step: blocks of these requests are about to be reused."""
        for queue, _ in self._queues.values() if requests else ():
            queue.preempt(requests)
            for request in requests:
                queue.finish(request, report=False)

    def store(self, sealed: Sequence[Prefix]) -> dict[str, int]:
        """Behind a step: queues what is whole now. Returns gaps: request -> first block that could not be stored."""
        gaps: dict[str, int] = {}
        for queue, _ in self._queues.values():
            for prefix in sealed:
                queue.store(_run(prefix))
            if not queue.idle:
                for request, first in queue.poll().gaps.items():
                    gaps[request] = min(first, gaps.get(request, first))
        return gaps

    def restore(
        self, prefixes: Sequence[Prefix], heads: Sequence[int], deadline_s: float
    ) -> Restored:
        """Loads prefixes into the cache of `heads`, each up to the first block that one head cannot have. Blocks until done."""
        began, give_up = time.monotonic(), time.monotonic() + deadline_s
        good = {prefix.request: len(prefix.blocks) for prefix in prefixes}
        chosen = [self._queues[head][0] for head in heads]
        for queue in chosen:
            for prefix in prefixes:
                if prefix.blocks:
                    queue.load(_run(prefix))
        size, reasons = 0, set()
        for queue in chosen:
            waiting, bad = {p.request for p in prefixes if p.blocks}, set[int]()
            while waiting:
                progress = queue.poll()
                waiting -= progress.loaded
                bad |= progress.bad_block_ids
                if time.monotonic() > give_up:
                    bad |= queue.abandon().bad_block_ids
                    reasons.add("timed out")
                    break
                time.sleep(0.0005 if waiting else 0)
            stats = queue.take_stats()
            size += stats.loaded_bytes
            reasons |= set(stats.load_failures)
            for prefix in prefixes:
                first = next(
                    (i for i, b in enumerate(prefix.blocks) if b in bad), len(prefix.blocks)
                )
                good[prefix.request] = min(good[prefix.request], first)
            for prefix in prefixes:
                whole = prefix.head(good[prefix.request])
                queue.adopt(prefix.request, whole.hashes[: len(whole.hashes) - bool(whole.tail)])
        return Restored(
            blocks=good,
            bytes=size,
            seconds=time.monotonic() - began,
            reasons=tuple(sorted(reasons)),
        )

    def pending(self) -> int:
        """Blocks not sealed yet."""
        for queue, _ in self._queues.values():
            queue.poll()
        return sum(queue.backlog()[0] for queue, _ in self._queues.values())

    def close(self) -> None:
        for _, tier in self._queues.values():
            tier.close()
        self._queues.clear()


def _run(prefix: Prefix) -> Run:
    return Run(
        prefix.request, prefix.first, prefix.blocks, prefix.hashes, prefix.parent, tail=prefix.tail
    )


def move_heads(old: torch.Tensor, held: Range, new: torch.Tensor, wanted: Range) -> tuple[int, ...]:
    """Copies the heads that both ranges have, bit by bit; returns those of `wanted` that are still to be restored."""
    lacking = []
    for index, head in enumerate(range(*wanted)):
        if held[0] <= head < held[1]:
            new[index].copy_(old[head - held[0]])
        else:
            lacking.append(head)
    return tuple(lacking)


def usable(
    prefixes: Sequence[Prefix], opened: Any, record: int, heads: Sequence[int], epoch: int
) -> list[Prefix]:
    """What the arena has sealed of these prefixes for all of `heads`, in the driver's process: a hint, the rank verifies it."""
    found = []
    for prefix in prefixes:
        count = 0
        if prefix.hashes:
            count = opened.usable_prefix(
                namespace=record,
                shards=list(heads),
                block_hashes=list(prefix.hashes),
                max_epoch=epoch,
            ).blocks
        found.append(prefix.head(count))
    return found
