"""What an engine's experts do behind a loss, played through without processes: moves land, other ranks are lost, until nothing is left to do."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest

pytest.importorskip("torch")
from dynamo_gpu_ft.engines.reference.experts import repairs
from dynamo_gpu_ft.engines.reference.experts.behind import Behind
from dynamo_gpu_ft.engines.reference.experts.planning import Planning
from dynamo_gpu_ft.experts.ahead import uncovered
from dynamo_gpu_ft.experts.base import Aim, Placement

LAYERS, EXPERTS, RANKS, SIZE = 3, 8, 4, 100


#: Pairs of ranks hold four experts each; two more slots of every rank hold one hot expert: any loss leaves experts with one copy.
TIGHT = [
    [e for rank in range(RANKS) for e in (*range(rank // 2 * 4, rank // 2 * 4 + 4), layer, layer)]
    for layer in range(LAYERS)
]


class World:
    """One engine's map, and the planning that says where it goes."""

    def __init__(
        self, slots: int, budget: int | None, rng: random.Random, rows: Sequence[Sequence[int]] = ()
    ) -> None:
        self.loads = [[rng.randrange(1, 100) for _ in range(EXPERTS)] for _ in range(LAYERS)]
        rows = rows or repairs.homes(LAYERS, EXPERTS, RANKS, slots)
        self.homes = self.now = Placement.of_rows(rows, experts=EXPERTS, ranks=RANKS)
        self.planning = Planning(self.homes, SIZE, budget, lambda: self.loads)
        self.gone: set[int] = set()
        self.stages: list[str] = []

    def change(self, gone: Sequence[int]) -> None:
        self.gone = set(gone)
        self.now = self.now.without(gone)
        self.planning.begin(gone, owed=True)

    def go_on(self, waves: int = 10_000) -> int:
        """Until nothing is left to do, or so many waves are done. Returns how many slots got another expert."""
        until, moved = time.monotonic() + 30, 0
        while waves and time.monotonic() < until:
            stage, found = self.planning.next(self.now, ())
            if not found:
                if not self.planning.busy:
                    return moved
                continue
            self.stages.append(stage)
            self.land(found)
            moved, waves = moved + len(found), waves - 1
        assert not waves, "it never ends"
        return moved

    def land(self, found: repairs.Wanted) -> None:
        """In any order; no expert may lose its last slot once the whole wave has landed."""
        rows, before = [list(row) for row in self.now.rows()], uncovered(self.now)
        for (shard, layer, slot), expert in found.items():
            assert shard not in self.gone
            rows[layer][shard * self.now.slots + slot] = expert
        self.now = Placement.of_rows(rows, experts=EXPERTS, ranks=RANKS)
        assert set(uncovered(self.now)) <= set(before)

    def survives_any(self) -> bool:
        alive = set(range(RANKS)) - self.gone
        return not any(uncovered(self.now.without([rank])) for rank in alive)


@pytest.mark.parametrize("budget", [None, 5 * SIZE])
def test_copies_come_back_behind_a_loss_and_behind_a_return(
    rng: random.Random, budget: int | None
) -> None:
    world = World(6, budget, rng, TIGHT)
    assert world.planning.aim == Aim()
    for lost in range(RANKS):
        world.change([lost])
        assert not uncovered(world.now), "copies are there"
        assert lost or not world.survives_any(), "of some experts only one is left"
        world.go_on()
        assert set(world.stages) == {"rebalance"}
        assert world.survives_any()
        world.change([])
        assert set(world.now.row(0)[lost * 6 : lost * 6 + 6]) == {-1}, "it comes back empty"
        world.go_on()
        assert world.survives_any()
        assert not any(-1 in row for row in world.now.rows()), "no slot stays empty"


def test_one_round_moves_no_more_than_its_budget_and_none_goes_without_end(
    rng: random.Random,
) -> None:
    world = World(6, 0, rng, TIGHT)
    world.change([1])
    assert world.go_on() == 0, "nothing may move and nothing has to"
    world = World(6, 4 * SIZE, rng, TIGHT)
    world.change([1])
    moved, rounds = 0, 0
    while world.planning.busy:
        _stage, found = world.planning.next(world.now, ())
        if found:
            world.land(found)
            moved += len(found)
        elif moved:
            assert moved <= 4
            moved, rounds = 0, rounds + 1
    assert rounds > 2
    assert world.survives_any()


def test_orphans_come_first_and_a_loss_among_the_moves_is_planned_anew(rng: random.Random) -> None:
    world = World(6, SIZE, rng, TIGHT)
    world.change([2])
    world.go_on(waves=1)
    world.change([2, 3])
    assert uncovered(world.now), (
        "their twin had the only other copies, and one round brings one expert"
    )
    world.stages.clear()
    world.go_on()
    assert world.stages[0] == "refill"
    assert not uncovered(world.now)


def test_where_there_is_no_room_for_every_expert_it_ends_with_some_uncovered(
    rng: random.Random,
) -> None:
    world = World(3, None, rng)
    assert world.planning.aim == Aim(mode="refill")
    world.change([0, 1])
    world.go_on()
    assert len(uncovered(world.now)) == LAYERS * (EXPERTS - 6)
    world.change([])
    world.go_on()
    assert not uncovered(world.now)


def test_a_given_placement_is_reached_over_waves(rng: random.Random) -> None:
    world = World(6, None, rng, TIGHT)
    world.change([3])
    world.go_on()
    world.change([])
    world.go_on()
    world.planning.place(world.homes)
    world.go_on()
    assert world.now == world.homes


def test_what_each_next_loss_will_ask_for_is_told_once_and_used(rng: random.Random) -> None:
    world = World(3, None, rng)
    until, found = time.monotonic() + 30, None
    while found is None and time.monotonic() < until:
        found = world.planning.look_ahead(world.now)
    assert found is not None
    assert world.planning.look_ahead(world.now) is None
    assert not world.planning.looking(world.now)
    told, ahead = found
    assert told == world.now
    assert [each.loss.dead for each in ahead] == [(0,), (1,), (2,), (3,)]
    world.loads[0] = [0] * EXPERTS  # too late for what is foreseen
    world.change([1])
    plan = ahead[1].plan
    assert plan is not None
    assert world.planning.next(world.now, ()) == ("refill", repairs.wanted(plan.moves, 3))
    assert world.planning.looking(world.now)


def test_a_newer_question_takes_the_place_of_an_older_one_and_errors_come_back() -> None:
    behind: Behind[int] = Behind("test")
    for number in range(50):
        behind.ask(lambda number=number: number)  # type: ignore[misc]
    until, found = time.monotonic() + 30, None
    while found is None and time.monotonic() < until:
        found = behind.answer()
    assert found == 49
    assert not behind.busy
    behind.ask(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        while behind.busy and time.monotonic() < until:
            behind.answer()
    behind.ask(lambda: 3)
    behind.forget()
    assert behind.answer() is None
    assert not behind.busy
