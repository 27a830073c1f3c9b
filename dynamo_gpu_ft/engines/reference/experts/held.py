"""What an expert-parallel rank holds: the model without its experts, the tagged slots with its experts, and how they got there.

`Hold` makes it; `refill` brings further experts on a thread of its own, into rows that nobody is routed to, while steps go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dynamo_gpu_ft import native
from dynamo_gpu_ft.engines.reference import shape, split
from dynamo_gpu_ft.engines.reference.experts.messages import Fill, Held, Hold, Landed, Refill
from dynamo_gpu_ft.engines.reference.experts.model import ExpertStage
from dynamo_gpu_ft.engines.reference.experts.slots import (
    SlotMemory,
    expert_bytes,
    expert_needs,
    other_needs,
)
from dynamo_gpu_ft.engines.reference.experts.stored import StoredKV
from dynamo_gpu_ft.engines.reference.faults import Faults
from dynamo_gpu_ft.engines.reference.kv import make_cache
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.shard import DTYPES, Sources
from dynamo_gpu_ft.engines.reference.weights import NAMES, ShardWeights, view
from dynamo_gpu_ft.errors import GpuFtError, WeightsError
from dynamo_gpu_ft.experts.records import Geometry
from dynamo_gpu_ft.experts.store import SlotStore
from dynamo_gpu_ft.recovery.processes import this_process
from dynamo_gpu_ft.recovery.weights import chain
from dynamo_gpu_ft.recovery.weights.base import Need
from dynamo_gpu_ft.recovery.weights.peer import Place, Table


class Holding:
    """One rank's. Orders come from the main thread; the store's own lock keeps the refill thread apart from it."""

    def __init__(
        self, order: Hold, options: Options, sources: Sources, faults: Faults, device: torch.device, tag: str
    ) -> None:  # fmt: skip
        self.number, self._sources, self._faults = order.shard, sources, faults
        self.device = device
        self.shape = shape.read(Path(options.model))
        self._dtype, began = DTYPES[options.dtype], time.monotonic()
        give_up = began + order.deadline_s
        cut = split.even(self.shape, 1, 1).cut(0)
        self.weights = ShardWeights(other_needs(self.shape), self._dtype, device)
        loaded = chain.load(
            sources.ordered(order.peers), self.weights.needs, self.weights, self.weights.digest,
            expected=order.expected or None, deadline_s=order.deadline_s,
        )  # fmt: skip
        self.digests, self.sources = dict(loaded.digests), {loaded.report.source: 1}
        geometry = Geometry(
            self.shape.layers, options.slots, options.slots + 1, expert_bytes(self.shape, self._dtype), order.shard
        )  # fmt: skip
        self.memory = SlotMemory(self.shape, self._dtype, geometry, device)
        self.store = SlotStore(geometry, self.memory.rows)
        for fill in order.fills:
            landed = self._bring(fill, order.peers, 0, give_up)
            self.sources[landed.source] = self.sources.get(landed.source, 0) + 1
        for layer in range(self.shape.layers):
            self.store.commit(layer, 0)
        self.cache = make_cache(self.shape, cut, options, self._dtype, device, together=True)
        self.stage = ExpertStage(
            self.shape, cut, self.weights.tensors, self.cache,
            own=self.number, slots=options.slots, tile=options.tile, slot=self.slot,
        )  # fmt: skip
        self._landed: list[Landed] = []
        self._generation, self._changed = 0, threading.Condition()
        self._worker: threading.Thread | None = None
        self._spoil_next: set[tuple[int, int]] = set()
        self._turn = 0
        self.not_kept = self._keep() if order.keep else ""
        self.stored = StoredKV(
            self.cache, self.number, self.shape, cut, options, sources.model, tag
        )
        self._seconds = time.monotonic() - began

    def told(self) -> Held:
        return Held(
            digests=self.digests, routable=self.routable(),
            sources=self.sources, seconds=self._seconds, table=self._table(), not_kept=self.not_kept, not_protected=self.stored.why_not,
        )  # fmt: skip

    # -- looking -----------------------------------------------------------------------------------------------------------

    def routable(self) -> bytes:
        """int32 [layers, slots]: the expert of each slot, -1 where none may be routed to."""
        flat = [e for layer in range(self.shape.layers) for e in self.store.routable(layer)]
        return torch.tensor(flat, dtype=torch.int32).numpy().tobytes()

    def slot(self, layer: int, slot: int, expert: int) -> tuple[torch.Tensor, ...] | None:
        """The weights of a slot that holds `expert` and may be routed to now, else None."""
        if self.store.routable(layer)[slot] != expert:
            return None
        return self.memory.tensors(layer, self.store.row_of(layer)[slot])

    def scrub(self, count: int) -> list[tuple[int, int]]:
        """Digests the next `count` slots in turn, -1: all; what is damaged is not routable any more."""
        layers = range(self.shape.layers)
        if count:
            layers = range(self._turn, min(self._turn + count, self.shape.layers))
            self._turn = layers.stop % self.shape.layers
        if count < 0:
            layers = range(self.shape.layers)
        found = [each for layer in layers for each in self.store.scrub(layer)] if count else []
        return [(layer, slot) for layer, slot, _ in found]

    def spoil(self, layer: int, slot: int, landed: bool) -> None:
        if landed:
            self._spoil_next.add((layer, slot))
        else:
            self.memory.flip(layer, self.store.row_of(layer)[slot])

    # -- bringing experts ---------------------------------------------------------------------------------------------------

    def _bring(self, fill: Fill, peers: Sequence[Table], epoch: int, give_up: float) -> Landed:
        """From the first source that has it with the right digests into a row that nobody is routed to. Raises `GpuFtError`."""
        began = time.monotonic()
        size = self.store.geometry.expert_bytes
        room = self.memory.landing()
        wanted = expert_needs(self.shape, fill.layer, fill.expert)
        sink = ShardWeights(wanted, self._dtype, torch.device("cpu"), room)
        loaded = chain.load(
            self._sources.ordered(peers), wanted, sink, sink.digest,
            expected=fill.digests or None, deadline_s=give_up - time.monotonic(),
        )  # fmt: skip
        data = view(room[:size])
        row = self.store.land(
            fill.layer, fill.slot, fill.expert, data, native.load().digest(data), epoch
        )
        self.digests.update(loaded.digests)
        if epoch and (fill.layer, fill.slot) in self._spoil_next:
            self._spoil_next.discard((fill.layer, fill.slot))
            self.memory.flip(fill.layer, row)
        report = loaded.report
        return Landed(
            fill=fill,
            source=report.source,
            read=report.bytes_read,
            seconds=time.monotonic() - began,
            passed=tuple(source for source, _ in loaded.refused),
        )

    def refill(self, order: Refill) -> None:
        """Starts; what an earlier order left undone or staged is dropped: this one has it too, if it is still wanted. Never blocks."""
        with self._changed:
            self._generation += 1
            number = self._generation
            self._landed = []
            self._changed.notify_all()
        former = self._worker
        self._worker = threading.Thread(
            target=self._refill, args=(order, number, former), daemon=True
        )
        self._worker.start()

    def _refill(self, order: Refill, number: int, former: threading.Thread | None) -> None:
        give_up = time.monotonic() + order.deadline_s
        if former is not None:
            former.join()  # it ends behind the expert that it is bringing; a row that it staged unheard would be taken for ever
        if number == self._generation:
            self.store.abort()
        for fill in order.fills:
            with self._changed:
                while number == self._generation and not self.store.free_rows(fill.layer):
                    if not self._changed.wait(max(0.0, give_up - time.monotonic())):
                        break
            if number != self._generation:
                return
            try:
                self._faults.at("refill")
                landed = self._bring(fill, order.peers, order.epoch, give_up)
            except (GpuFtError, TimeoutError, RuntimeError) as error:
                landed = Landed(fill=fill, error=str(error))
            with self._changed:
                if number == self._generation:
                    self._landed.append(landed)

    def take_landed(self) -> tuple[Landed, ...]:
        with self._changed:
            found, self._landed = tuple(self._landed), []
        return found

    def commit(self, layers: Sequence[int], epoch: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:  # fmt: skip
        """((layer, slot, expert) changed, (layer, slot) damaged)."""
        changed, damaged = [], []
        for layer in layers:
            self._faults.at("commit")
            done = self.store.commit(layer, epoch)
            changed += [(layer, slot, expert) for slot, expert in done.changed.items()]
            damaged += [(layer, slot) for slot in done.damaged]
        with self._changed:
            self._changed.notify_all()
        return changed, damaged

    def fence(self, epoch: int) -> None:
        """A new epoch: what is under way is dropped."""
        with self._changed:
            self._generation += 1
            self._landed = []
            self._changed.notify_all()
        self.store.fence(epoch)

    # -- for others -----------------------------------------------------------------------------------------------------------

    def _kept(self) -> list[tuple[Need, torch.Tensor]]:
        found: list[tuple[Need, torch.Tensor]] = []
        seen = set()
        for layer in range(self.shape.layers):
            held = zip(self.store.routable(layer), self.store.row_of(layer), strict=True)
            for expert, row in held:
                if expert >= 0 and (layer, expert) not in seen:
                    seen.add((layer, expert))
                    each = expert_needs(self.shape, layer, expert)
                    found += zip(each, self.memory.tensors(layer, row), strict=True)
        return found

    def _keep(self) -> str:
        """The host copy of these experts, which outlives the process; of the rest of the model one rank's is enough."""
        dtype = NAMES[self._dtype]
        kept = [(need, dtype, view(tensor.cpu())) for need, tensor in self._kept()]
        try:
            if self.number == 0:
                kept += self.weights.kept()
            self._sources.keep_all(self.number, kept)
        except WeightsError as error:
            return str(error)
        return ""

    def _table(self) -> Table | None:
        """Where things lie now, for peers on this machine; None for what lies on a device. An expert that moves later has other bytes there, or
        none, and its digest says so."""
        if self.device.type != "cpu":
            return None
        own, dtype = this_process(), NAMES[self._dtype]
        held = [(need, self.weights.tensors[need.tensor]) for need in self.weights.needs]
        places = tuple(
            Place(need.tensor, need.box, dtype, tensor.data_ptr(), self.digests[str(need)])
            for need, tensor in [*held, *self._kept()]
        )
        return Table(own.pid, own.started, self._sources.model, places)
