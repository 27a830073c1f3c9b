"""The whole road in one process: four ranks' stores, failover tables, router mask and refill, from a loss to the return of the rank."""

from __future__ import annotations

import random
from typing import Any

import pytest
from expert_world import Source, geometry, manifest

torch = pytest.importorskip("torch")
from dynamo_gpu_ft.experts import ahead, change  # noqa: E402
from dynamo_gpu_ft.experts.base import Domains, Placement, Plan  # noqa: E402
from dynamo_gpu_ft.experts.refill import refill  # noqa: E402
from dynamo_gpu_ft.experts.store import SlotStore  # noqa: E402
from dynamo_gpu_ft.experts.tables import FailoverTables  # noqa: E402
from dynamo_gpu_ft.kernels.router import RouterMask  # noqa: E402

RANKS, LAYERS, EXPERTS, SLOTS, TOPK = 4, 2, 6, 3, 2
SHAPE, ALL = geometry(layers=LAYERS, slots=SLOTS), manifest(LAYERS, EXPERTS)
#: Experts 0 to 3 lie on two ranks, 4 and 5 on one; two slots of each layer are empty.
WHOLE = Placement.of_rows(
    [[0, 1, 4, 2, 3, -1, 0, 1, 5, 2, 3, -1]] * LAYERS, experts=EXPERTS, ranks=RANKS
)


def repair(placement: Placement, alive: tuple[int, ...]) -> Plan:
    """Orphans into empty slots of the living, then over second copies."""
    rows = []
    for row in placement.without(set(range(RANKS)) - set(alive)).rows():
        cells = list(row)
        living = [p for p in range(len(row)) if p // SLOTS in alive]
        for expert in sorted(set(range(EXPERTS)) - set(row)):
            spare = [p for p in living if cells[p] < 0] + [
                p for p in living if cells.count(cells[p]) > 1
            ]
            cells[spare[0]] = expert
        rows.append(cells)
    new = Placement.of_rows(rows, experts=EXPERTS, ranks=RANKS)
    return Plan(placement=new, moves=(), certificate=None)  # type: ignore[arg-type]


class World:
    """What engines do between ranks, done by a loop."""

    def __init__(self) -> None:
        self.stores = {rank: SlotStore.in_memory(SHAPE)[0] for rank in range(RANKS)}
        self.alive = set(range(RANKS))
        self.follow(change.steps(WHOLE.without(range(RANKS)), WHOLE), epoch=0)
        foreseen = ahead.all_of(WHOLE, Domains.regular(RANKS, per_tray=1, per_node=2), repair)
        self.tables = FailoverTables(WHOLE, foreseen, rank=0, width=3)
        self.mask = RouterMask("cpu")

    def now(self) -> Placement:
        said = {r: [s.routable(layer) for layer in range(LAYERS)] for r, s in self.stores.items()}
        return change.assembled(said, WHOLE, self.alive)

    def follow(self, steps: list[change.Step], epoch: int, source: Any = None) -> None:
        for step in steps:
            for rank in sorted(self.alive):
                store = self.stores[rank]
                for slot in step.retired(rank, SLOTS):
                    store.retire(step.layer, slot, epoch)
                    store.commit(step.layer, epoch)
                wants = step.wants(rank, SLOTS)
                done = refill(
                    store, wants, [source or Source("host")], ALL, epoch=epoch, deadline_s=30
                )
                assert done.complete, done.left

    def route(self, logits: torch.Tensor) -> tuple[list[set[int]], list[int]]:
        """Experts used per layer and the results; every slot must hold, routable and on a living rank, the expert it is sent for."""
        used, results = [], torch.zeros(3, dtype=torch.int64)
        for layer in range(LAYERS):
            logical, slots, weights, _ = self.mask.route(
                logits, self.tables.logical[:, layer], self.tables.counts[:, layer], self.tables.index, TOPK, WHOLE.width,
                results=results,
            )  # fmt: skip
            for expert, slot in zip(
                logical.flatten().tolist(), slots.flatten().tolist(), strict=True
            ):
                assert slot // SLOTS in self.alive
                assert self.stores[slot // SLOTS].row_for(layer, slot % SLOTS, expert) is not None
            assert torch.allclose(weights.sum(1), torch.ones(len(logits)))
            used.append(set(logical.flatten().tolist()))
        return used, results.tolist()


def test_from_a_loss_over_the_masked_window_to_the_return_of_the_rank(rng: random.Random) -> None:
    world = World()
    logits = torch.randn(
        200, EXPERTS, generator=torch.Generator().manual_seed(rng.randrange(2**31))
    )
    everything = set(range(EXPERTS))
    assert world.now() == WHOLE
    assert world.route(logits) == ([everything] * LAYERS, [0, 0, 0])

    world.alive.discard(0)  # expert 4 had its only copy there
    assert world.tables.lose({0}, epoch=1)
    used, (error, affected, _) = world.route(logits)
    assert used == [everything - {4}] * LAYERS
    assert error == 0
    assert affected == LAYERS * int((logits.topk(TOPK, dim=1).indices == 4).any(1).sum())

    plan = ahead.one(WHOLE, ahead.loss_of({0}), repair).plan
    assert plan is not None
    first = change.steps(WHOLE.without({0}), plan.placement)[0]
    world.follow([first], epoch=1)  # half way: layer 0 is whole again, layer 1 is not
    world.tables.publish(world.now(), epoch=1)
    used, _ = world.route(logits)
    assert used == [everything, everything - {4}]

    world.alive.discard(3)  # a second loss, before the refill was over
    assert not world.tables.lose({0, 3}, epoch=2)
    second = ahead.one(world.now(), ahead.loss_of({0, 3}), repair)
    world.tables.publish(second.masked, epoch=2)
    world.route(logits)
    assert second.plan is not None
    world.follow(change.steps(second.masked, second.plan.placement), epoch=2)
    world.tables.publish(world.now(), epoch=2)
    assert world.route(logits) == ([everything] * LAYERS, [0, 0, 0])

    for rank in (0, 3):  # both come back empty and are filled while the others serve
        world.alive.add(rank)
        world.stores[rank] = SlotStore.in_memory(SHAPE)[0]
    world.follow(change.steps(world.now(), WHOLE), epoch=3)
    assert world.now() == WHOLE
    world.tables.restore(epoch=3)
    assert world.route(logits) == ([everything] * LAYERS, [0, 0, 0])


def test_a_damaged_slot_leaves_the_map_and_its_tokens_go_elsewhere() -> None:
    world = World()
    store = world.stores[1]
    store.rows.view(0, store.row_of(0)[0])[3] ^= 1  # type: ignore[attr-defined]
    assert store.scrub(0) == [(0, 0, 2)]
    world.tables.publish(world.now(), epoch=1)
    logits = torch.zeros(50, EXPERTS).index_fill(1, torch.tensor([2]), 9.0)
    used, (error, affected, _) = world.route(logits)
    assert 2 in used[0], "its other copy serves"
    assert (error, affected) == (0, 0)
