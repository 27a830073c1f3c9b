"""Ranks of an expert-parallel engine as threads of one process: `ExpertRank` itself obeys, without driver and channel, on a device of the test's.

Between it and the ranks of real processes stand `expert_world.Drill`s. Orders are carried out by all ranks at once, as in an engine.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference import rank as ranks
from dynamo_gpu_ft.engines.reference import shape
from dynamo_gpu_ft.engines.reference.experts import messages as tell
from dynamo_gpu_ft.engines.reference.experts.rank import ExpertRank
from dynamo_gpu_ft.engines.reference.experts.repairs import homes
from dynamo_gpu_ft.engines.reference.experts.routes import Map
from dynamo_gpu_ft.engines.reference.experts.steps import Step, hurt, orders
from dynamo_gpu_ft.engines.reference.experts.traffic import Traffic
from dynamo_gpu_ft.engines.reference.messages import Channel
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling
from dynamo_gpu_ft.recovery.comm.base import Rebuilds, Seat
from tests.engines.simulated_device import SimulatedDevice

PATIENCE_S = 60.0


class ThreadBackend(Rebuilds):
    """`CommBackend` among threads. `seen`: kinds of device whose tensors it was given."""

    name = "threads"

    def __init__(self, on_device: bool) -> None:
        self.on_device, self.seen = on_device, set[str]()
        self._rooms: dict[int, tuple[threading.Barrier, list[Any]]] = {}
        self._lock = threading.Lock()

    def make(self, seat: Seat, deadline: Any, give_up: Any = None) -> Any:
        with self._lock:
            room = self._rooms.setdefault(
                seat.epoch, (threading.Barrier(seat.size), [None] * seat.size)
            )
        return ThreadComm(seat, *room, self.seen)


class ThreadComm:
    def __init__(
        self, seat: Seat, barrier: threading.Barrier, parts: list[Any], seen: set[str]
    ) -> None:
        self.seat, self._barrier, self._parts, self._seen = seat, barrier, parts, seen

    def all_to_all(self, out: torch.Tensor, tensor: torch.Tensor) -> None:
        self._seen |= {out.device.type, tensor.device.type}
        self._parts[self.seat.rank] = tensor
        self._barrier.wait(PATIENCE_S)
        for part, source in zip(out, self._parts, strict=True):
            part.copy_(source[self.seat.rank])
        self._barrier.wait(PATIENCE_S)

    def revoke(self) -> None:
        self._barrier.abort()

    abort = revoke


class ThreadRanks:
    """`count` ranks, whose slots survive the loss of any one where there is room for it. `world`: they are on its devices, one each."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        patch: pytest.MonkeyPatch,
        *,
        count: int,
        slots: int,
        world: SimulatedDevice | None,
        on_device: bool = False,
    ) -> None:
        settings = {
            "arena_dir": str(folder),
            "arena_name": "threads",
            "snapshot": False,
            "health": False,
        }
        self.options = Options(
            model=str(model), ep=count, slots=slots, blocks=64, faults=True, settings=settings
        )
        self.shape = shape.read(model)
        self.backend, self._world = ThreadBackend(on_device), world
        patch.setattr(ranks, "backend_of", lambda *_: self.backend)
        patch.setattr(ranks, "device_of", lambda _, number: self._device(number))
        self.map = Map(
            self.shape.experts, slots, homes(self.shape.layers, self.shape.experts, count, slots)
        )
        self.traffic = Traffic(self.options, self.shape.positions)
        self.tokens: dict[str, list[int]] = {}
        self.songs: list[say.Sang] = []
        self.epoch = self._numbers = 0
        self._closing = ExitStack()
        pairs = [socket.socketpair() for _ in range(count)]
        for ends in pairs:
            for end in ends:
                self._closing.callback(end.close)
        self.ranks = {
            shard: ExpertRank(Channel(ends[0], tell.Order), self.options)
            for shard, ends in enumerate(pairs)
        }
        held = self.all(lambda rank, shard: rank._hold(self._hold_of(shard)))
        self.tables = [each.table for each in held.values()]
        self.digests = {name: d for each in held.values() for name, d in each.digests.items()}
        self.join()

    def __enter__(self) -> ThreadRanks:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _device(self, number: int) -> torch.device:
        if self._world is None:
            return torch.device("cpu")
        return torch.device(self._world.device.type, number)

    def _hold_of(self, shard: int) -> tell.Hold:
        fills = tuple(
            tell.Fill(layer=layer, slot=slot, expert=expert)
            for layer in range(self.shape.layers)
            for slot, expert in enumerate(self.map.row_of(shard, layer))
            if expert >= 0
        )
        return tell.Hold(shard=shard, device=shard, fills=fills, keep=True, deadline_s=PATIENCE_S)

    def all(self, work: Callable[[ExpertRank, int], Any]) -> dict[int, Any]:
        """What each rank's own thread gives."""

        def run(shard: int) -> Any:
            with ExitStack() as stack:
                if self._world is not None:
                    stack.enter_context(self._world.here())
                try:
                    return work(self.ranks[shard], shard)
                except BaseException:
                    for rank in self.ranks.values():
                        rank.group.leave()  # nobody waits for who has failed
                    raise

        with ThreadPoolExecutor(len(self.ranks)) as pool:
            running = {shard: pool.submit(run, shard) for shard in self.ranks}
        errors = [e for e in (each.exception() for each in running.values()) if e is not None]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return {shard: each.result() for shard, each in running.items()}

    def join(self) -> None:
        self.epoch += 1
        members = tuple(self.ranks)

        def joins(rank: ExpertRank, shard: int) -> None:
            place = say.Place(name="ep-0", rank=members.index(shard), size=len(members))
            rank._routes(tell.Routes(epoch=self.epoch, placement=self.map.placement))
            rank._join(
                say.Join(epoch=self.epoch, members=members, places=(place,), vocab=(), deadline_s=PATIENCE_S)
            )  # fmt: skip

        self.all(joins)

    def lose(self, shard: int) -> None:
        """The others go on without it."""
        del self.ranks[shard]
        self.map.drop(shard)
        self.all(lambda rank, _: rank._lose(tell.Lose(epoch=self.epoch, dead=(shard,))))
        self.join()
        self.traffic.move([shard], self.ranks)

    def ask(self, prompts: Sequence[Sequence[int]], count: int) -> None:
        for number, prompt in enumerate(prompts):
            name = f"r{number}"
            self.traffic.add(name, prompt, Sampling(max_tokens=count), self.ranks)
            self.tokens[name] = []

    def step(self, *, canary: bool = False, scrub: int = 0) -> Mapping[int, tell.Stepped]:
        """Answers of all ranks; tokens count unless slots were damaged."""
        plans = self.traffic.plan(self.ranks, canary=canary)
        self._numbers += 1
        sent = orders(
            self.ranks, plans, epoch=self.epoch, number=self._numbers, tile=self.options.tile, scrub=scrub, canary=canary
        )  # fmt: skip
        answers = self.all(lambda rank, shard: rank._forward(sent[shard]))
        self.songs += [answer.sang for answer in answers.values() if answer.sang]
        if not hurt(answers):
            step = Step(plans, answers, self.map.uncovered())
            for output in self.traffic.apply(plans, step.drawn, step.mask):
                assert output.token is not None
                self.tokens[output.request].append(output.token)
        return answers

    def brings(self, shard: int, layer: int, slot: int, expert: int) -> tell.Landed:
        """A refill to its end: staged, committed, routed to."""
        names = [n for n in self.digests if n.startswith(f"model.layers.{layer}.block_sparse_moe.experts.{expert}.")]  # fmt: skip
        fill = tell.Fill(
            layer=layer, slot=slot, expert=expert, digests={n: self.digests[n] for n in names}
        )
        rank = self.ranks[shard]
        rank._refill(tell.Refill(fills=(fill,), epoch=self.epoch, deadline_s=PATIENCE_S))
        landed: tuple[tell.Landed, ...] = ()
        until = time.monotonic() + PATIENCE_S
        while not landed and time.monotonic() < until:
            landed = rank._tell(tell.Tell(number=1)).landed
        told = rank._commit(tell.Commit(epoch=self.epoch, layers=(layer,)))
        for on, at, now in told.changed:
            self.map.table[on][shard * self.options.slots + at] = now
        self.all(
            lambda each, _: each._routes(
                tell.Routes(epoch=self.epoch, placement=self.map.placement)
            )
        )
        return landed[0]
