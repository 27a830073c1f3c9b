"""One shard in one process: its weights, its cache, its stage of the model, its KV snapshots. What a rank has to have before it can serve.

Made by `Load`, by a first start as by a replacement; changed only by `Recut`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from dynamo_gpu_ft.engines.reference import needs, shape
from dynamo_gpu_ft.engines.reference.kv import Snapshots, make_cache, move_heads
from dynamo_gpu_ft.engines.reference.messages import Load, Loaded, Recut
from dynamo_gpu_ft.engines.reference.model import Stage
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.pieces import pieces_for
from dynamo_gpu_ft.engines.reference.rehearsal import NO_ROOMS, Rooms, rehearse, rooms_of
from dynamo_gpu_ft.engines.reference.weights import ShardWeights
from dynamo_gpu_ft.errors import GpuFtError, WeightsError
from dynamo_gpu_ft.kv.namespace import weights_id
from dynamo_gpu_ft.recovery.weights import chain, neighbour
from dynamo_gpu_ft.recovery.weights.base import WeightSource
from dynamo_gpu_ft.recovery.weights.peer import PeerSource, Table
from dynamo_gpu_ft.recovery.weights.slices import SliceSource

#: Threads that read a shard's weights from memory: of a load, and of a loss all others wait for, so there are cores.
READERS = 2
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Sources:
    """The weight sources of an engine, opened once: a standby opens them before it is needed."""

    def __init__(self, options: Options) -> None:
        folder = Path(options.model)
        self.model = f"{weights_id(folder)}-{options.dtype}"
        self._path = options.config().arena_path
        paths = [neighbour.path_of(self._path, shard) for shard in range(options.ranks)]
        self.neighbours = neighbour.NeighbourSource(paths, self.model, READERS)
        self.slices = SliceSource(folder)
        self.rooms: Rooms | None = None
        self._options = options

    def prepare(self) -> list[str]:
        """Opens everything that any shard could come from, gets memory for the largest and rehearses it; says what is not there."""
        notes = self.neighbours.open_all()
        if self._options.device == "cpu":
            self.rooms = rehearse(self._options, DTYPES[self._options.dtype])
        with suppress(WeightsError):
            self.slices.entries()
        return notes

    def ordered(self, peers: Sequence[Table]) -> list[WeightSource]:
        """The fastest first."""
        live: list[WeightSource] = [PeerSource(peers, self.model)] if peers else []
        return [*live, self.neighbours, self.slices]

    def keep(self, shard: int, epoch: int, weights: ShardWeights) -> str:
        """Writes the neighbour file; returns why it could not be written, "" when it was."""
        try:
            self.keep_all(shard, weights.kept(), epoch)
        except WeightsError as error:
            return str(error)
        return ""

    def keep_all(self, shard: int, kept: neighbour.Kept, epoch: int = 1) -> None:
        """Raises `WeightsError`."""
        neighbour.write(neighbour.path_of(self._path, shard), self.model, epoch, kept)


class Shard:
    """`number` is the shard's own for ever. Weights keep their addresses until a `recut`."""

    def __init__(self, order: Load, options: Options, sources: Sources, engine_id: str) -> None:
        self.number, self.cut = order.shard, order.cut
        self._options, self._sources = options, sources
        self.shape = shape.read(Path(options.model))
        self.device = device_of(options, order.device)
        self._dtype = DTYPES[options.dtype]
        rooms, sources.rooms = sources.rooms or NO_ROOMS, None
        if order.keep and self.device.type == "cpu":
            # An engine's first start: nobody waits for a token, and what has large pages is sooner gone when it dies.
            rooms = rooms_of(self.cut, self.shape, options, self._dtype)
        began = time.monotonic()
        self.loaded = self._load(order, order.peers, rooms.weights)
        self._seconds = time.monotonic() - began
        self.cache = make_cache(
            self.shape, self.cut, options, self._dtype, self.device, rooms.cache
        )
        self.stage = self._staged()
        self.not_protected = sources.keep(self.number, 1, self.weights) if order.keep else ""
        self.snapshots: Snapshots | None = None
        if options.config().snapshot:
            self._protect(engine_id)

    def _load(
        self, order: Load | Recut, peers: Sequence[Table] = (), room: torch.Tensor | None = None
    ) -> chain.Loaded:
        self.weights = ShardWeights(needs.of(self.shape, order.cut), self._dtype, self.device, room)
        return chain.load(
            self._sources.ordered(peers),
            self.weights.needs,
            self.weights,
            self.weights.digest,
            expected=order.expected or None,
            deadline_s=order.deadline_s,
        )

    def _staged(self) -> Stage:
        pieces = pieces_for(self.device, self._options.graphs)
        return Stage(self.shape, self.cut, self.weights.tensors, self.cache, pieces)

    def _protect(self, engine_id: str) -> None:
        """Without KV snapshots the engine serves on: a loss then costs a recomputation."""
        stage = self.number // self._options.tp
        found = Snapshots(
            self._sources.model, self.shape, self.cut, stage, self._options, engine_id
        )
        try:
            found.hold(self.cut.heads, self.cache)
            self.snapshots = found
        except (GpuFtError, OSError) as error:
            found.close()
            self.not_protected = str(error)

    def recut(self, order: Recut) -> tuple[int, ...]:
        """Takes another part of the same layers; returns the heads whose KV is still to be restored. The old weights are kept until
        the new ones are whole."""
        before, cache, weights, loaded = self.cut, self.cache, self.weights, self.loaded
        began, cut = time.monotonic(), order.cut
        try:
            self.loaded = self._load(order)
        except BaseException:
            self.weights, self.loaded = weights, loaded
            raise
        self.cut = cut
        self.cache = make_cache(self.shape, cut, self._options, self._dtype, self.device)
        lacking = move_heads(cache, before.heads, self.cache, cut.heads)
        self._seconds = time.monotonic() - began
        self.stage = self._staged()
        if self.snapshots is not None:
            self.snapshots.hold(cut.heads, self.cache)
        return lacking

    def told(self) -> Loaded:
        report, kept = self.loaded.report, self.snapshots
        return Loaded(
            digests=self.loaded.digests,
            source=report.source,
            read=report.bytes_read,
            needed=report.bytes_needed,
            seconds=self._seconds,
            refused=self.loaded.refused,
            namespace=kept.namespace if kept else -1,
            kv_epoch=kept.epoch if kept else -1,
            not_protected=self.not_protected,
            table=self.weights.table(self._sources.model, self.loaded.digests),
        )


def device_of(options: Options, number: int) -> torch.device:
    if options.device != "cuda":
        return torch.device("cpu")
    return torch.device("cuda", number % max(1, torch.cuda.device_count()))
