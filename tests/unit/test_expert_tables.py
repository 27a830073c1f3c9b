"""Loads, failover tables and live changes: integers that agree everywhere, one number per loss, no step that takes a last copy."""

from __future__ import annotations

import random

import pytest

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts import ahead, change, loads, planner
from dynamo_gpu_ft.experts.base import Aim, Domains, Placement, Plan

DOMAINS = Domains.regular(4, per_tray=1, per_node=2)
PAIRS = Placement.of_rows([[0, 1, 2, 3, 0, 1, 2, 3]] * 2, experts=4, ranks=4)


def repair(placement: Placement, alive: tuple[int, ...]) -> Plan:
    """Not the planner's: puts each orphan over the first copy that has another one."""
    rows = []
    for row in placement.without(set(range(placement.ranks)) - set(alive)).rows():
        cells = list(row)
        for expert in set(range(placement.experts)) - set(row):
            donor = next((p for p, e in enumerate(cells) if e >= 0 and cells.count(e) > 1), None)
            if donor is None:
                raise PlacementError("no room", rule="a second copy to give up")
            cells[donor] = expert
        rows.append(cells)
    new = Placement.of_rows(rows, experts=placement.experts, ranks=placement.ranks)
    return Plan(placement=new, moves=(), certificate=None)  # type: ignore[arg-type]


# -- loads -------------------------------------------------------------------------------------------------------------


def test_a_window_forgets_and_a_decay_fades() -> None:
    seen = loads.Loads(1, 2, window=2, half_life=1)
    for counts in ([[8, 0]], [[0, 4]], [[0, 4]]):
        seen.observe(counts)
    assert seen.windowed() == [[0, 8]]
    assert seen.decayed() == [[2, 6]]


def test_loads_come_back_from_a_snapshot_and_go_on_alike(rng: random.Random) -> None:
    seen = loads.Loads(2, 5, window=3, half_life=4)
    steps = [[[rng.randrange(100) for _ in range(5)] for _ in range(2)] for _ in range(8)]
    for step in steps[:5]:
        seen.observe(step)
    again = loads.Loads.restore(seen.snapshot())
    for step in steps[5:]:
        seen.observe(step)
        again.observe(step)
    assert (again.windowed(), again.decayed()) == (seen.windowed(), seen.decayed())
    assert again.snapshot() == seen.snapshot()
    with pytest.raises(PlacementError, match="kept load statistics"):
        loads.Loads.restore(b"\x90")


def test_the_order_of_the_ranks_does_not_change_the_sum(rng: random.Random) -> None:
    parts = [[[rng.randrange(2**40) for _ in range(6)] for _ in range(2)] for _ in range(5)]
    total = loads.merge(parts)
    rng.shuffle(parts)
    assert loads.merge(parts) == total


def test_physical_counts_and_ids_count_for_logical_experts() -> None:
    torch = pytest.importorskip("torch")
    assert loads.logical([5, 6, 7, 8], [1, 0, 1, -1], 3) == [6, 12, 0]
    assert loads.count_ids(torch.tensor([[0, 2], [2, -1], [7, 2]]), 3).tolist() == [1, 0, 3]
    seen = loads.Loads(1, 2)
    seen.observe_physical([[3, 4, 5]], [[0, 1, 0]])
    assert seen.windowed() == [[8, 4]]


def test_counts_that_cannot_be_are_refused() -> None:
    seen = loads.Loads(1, 2)
    for counts in ([[1]], [[1, 2], [3, 4]], [[-1, 0]]):
        with pytest.raises(PlacementError):
            seen.observe(counts)


# -- failover tables -----------------------------------------------------------------------------------------------------


def test_every_rank_and_every_node_is_foreseen() -> None:
    assert [loss.name for loss in ahead.losses(DOMAINS)] == [
        "rank 0", "rank 1", "rank 2", "rank 3", "node 0", "node 1",
    ]  # fmt: skip
    one_node = Domains.regular(2, per_tray=1, per_node=2)
    assert [loss.name for loss in ahead.losses(one_node)] == ["rank 0", "rank 1"]


def test_a_loss_is_one_number_and_every_lookup_follows_it() -> None:
    torch = pytest.importorskip("torch")
    from dynamo_gpu_ft.experts.tables import FailoverTables

    tables = FailoverTables(PAIRS, ahead.all_of(PAIRS, DOMAINS, repair), rank=0, width=2)
    addresses = [
        t.data_ptr() for t in (tables.physical, tables.logical, tables.counts, tables.index)
    ]
    ids = torch.tensor([[0, 1], [0, 3], [2, -1]])
    assert tables.slots_of(0, ids).tolist() == [[0, 5], [4, 3], [2, -1]]
    for loss in tables.losses:
        tables.restore(epoch=1)
        assert tables.lose(loss.dead, epoch=1)
        masked = PAIRS.without(loss.dead)
        for layer in range(2):
            assert tuple(tables.of_layer("physical", layer).tolist()) == masked.row(layer)
            held = tables.slots_of(layer, ids).flatten().tolist()
            assert all(slot // 2 not in loss.dead for slot in held)
            assert held.count(-1) == 1, "pairs over nodes cover every loss"
            counted = [len(s) for s in masked.copies(layer)]
            assert tables.of_layer("counts", layer).tolist() == counted
    tables.restore(epoch=2)
    assert tables.slots_of(1, ids).tolist() == [[0, 5], [4, 3], [2, -1]]
    after = [t.data_ptr() for t in (tables.physical, tables.logical, tables.counts, tables.index)]
    assert after == addresses


def test_a_second_loss_is_published_beside_the_map_in_use() -> None:
    pytest.importorskip("torch")
    from dynamo_gpu_ft.experts.tables import FailoverTables

    tables = FailoverTables(PAIRS, ahead.all_of(PAIRS, DOMAINS, repair), rank=1)
    assert tables.lose({1}, epoch=1)
    assert not tables.lose({1, 3}, epoch=2), "nobody foresaw these two"
    second = ahead.one(PAIRS, ahead.loss_of({1, 3}), repair)
    assert second.uncovered == ((0, 2), (0, 3), (1, 2), (1, 3))
    first_spare = tables.publish(second.masked, epoch=2)
    assert tables.of_layer("counts", 0).tolist() == [2, 2, 0, 0]
    assert tables.slots_of(0, __import__("torch").tensor([[2, 0]])).tolist() == [[-1, 0]]
    assert second.plan is not None
    assert tables.publish(second.plan.placement, epoch=2) != first_spare
    assert min(tables.of_layer("counts", 1).tolist()) == 1
    assert tables.publish(second.masked, epoch=3) == first_spare
    with pytest.raises(PlacementError, match="stale epoch"):
        tables.publish(second.masked, epoch=2)
    with pytest.raises(PlacementError, match="stale epoch"):
        tables.lose({0}, epoch=1)
    with pytest.raises(PlacementError, match="another shape"):
        tables.publish(change.widened(PAIRS, 3), epoch=4)


def test_the_next_losses_are_adopted_behind_a_change_at_the_same_addresses() -> None:
    pytest.importorskip("torch")
    from dynamo_gpu_ft.experts.tables import FailoverTables

    ranks = Domains.regular(4, per_tray=1, per_node=1)
    tables = FailoverTables(PAIRS, (), rank=0, width=2, room=4)
    addresses = [t.data_ptr() for t in (tables.physical, tables.logical, tables.counts)]
    assert not tables.lose({1}, epoch=1), "nothing is foreseen yet"
    prepared = tables.prepare(PAIRS, ahead.all_of(PAIRS, ranks, repair))
    assert tables.adopt(prepared, epoch=1)
    assert (tables.entry, tables.foreseen) == (0, True)
    assert tables.lose({1}, epoch=2)
    assert tables.entry == 3

    left = PAIRS.without({1})
    assert tables.holds == left
    second = ahead.all_of(left, ranks, repair, gone=(1,))
    assert [each.loss.dead for each in second] == [(0, 1), (1, 2), (1, 3)]
    assert not tables.lose({1, 3}, epoch=3), "this map's losses are not adopted yet"
    assert tables.adopt(tables.prepare(left, second), epoch=3)
    assert tables.lose({1, 3}, epoch=4)
    assert tables.holds == PAIRS.without({1, 3})
    assert tables.of_layer("counts", 0).tolist() == [2, 2, 0, 0]
    assert not tables.adopt(prepared, epoch=4), "made for a map that holds no more"
    assert addresses == [t.data_ptr() for t in (tables.physical, tables.logical, tables.counts)]
    with pytest.raises(PlacementError, match="room for"):
        held = tables.holds
        tables.adopt(tables.prepare(held, ahead.all_of(PAIRS, DOMAINS, repair)), epoch=4)


def test_a_loss_from_another_map_than_was_foreseen_is_not_taken_for_foreseen() -> None:
    pytest.importorskip("torch")
    from dynamo_gpu_ft.experts.tables import FailoverTables

    foreseen = ahead.all_of(PAIRS, DOMAINS, repair)
    tables = FailoverTables(PAIRS, foreseen, rank=0, width=2)
    other = Placement.of_rows([[1, 0, 2, 3, 0, 1, 2, 3]] * 2, experts=4, ranks=4)
    spare = tables.follow(other, epoch=1)
    assert spare == tables.entries - 2
    assert not tables.lose({2}, epoch=1)
    assert tables.follow(PAIRS, epoch=1) == 0
    assert tables.lose({2}, epoch=1)
    assert not tables.lose({3}, epoch=1), "2 is not back"
    assert tables.lose({2, 3}, epoch=1), "node 1, of which a part is gone"

    lean = Placement.of_rows([[0, 1, 2, 3, 0, 1, 2, 0]] * 2, experts=4, ranks=4)
    foreseen = ahead.all_of(lean, DOMAINS, repair)
    tables = FailoverTables(lean, foreseen, rank=0, width=2)
    assert tables.lose({1}, epoch=1)
    plan = foreseen[1].plan
    assert plan is not None
    assert tables.follow(plan.placement, epoch=1) == 4, "stacked as its repair"
    assert not tables.lose({0, 1}, epoch=1), "what was brought since is not in the map foreseen"


def test_every_map_that_is_followed_holds(rng: random.Random) -> None:
    pytest.importorskip("torch")
    from dynamo_gpu_ft.experts.tables import FailoverTables

    ranks = Domains.regular(4, per_tray=1, per_node=1)
    tables, gone, now = FailoverTables(PAIRS, (), rank=0, width=4, room=4), set[int](), PAIRS
    for epoch in range(200):
        what = rng.choice(("lose", "publish", "adopt", "restore"))
        if what == "lose" and len(gone) < 3:
            gone.add(rng.choice(sorted({0, 1, 2, 3} - gone)))
            if not tables.lose(gone, epoch):
                tables.publish(now.without(gone), epoch)
            now = now.without(gone)
        elif what == "publish":
            rows = [[rng.randrange(-1, 4) for _ in range(8)] for _ in range(2)]
            now = Placement.of_rows(rows, experts=4, ranks=4).without(gone)
            tables.follow(now, epoch)
        elif what == "adopt":
            found = ahead.all_of(now, ranks, repair, tuple(gone))
            assert tables.adopt(tables.prepare(now, found), epoch)
        elif what == "restore":
            gone, now = set(), PAIRS
            tables.follow(now, epoch)
        assert tables.holds == now
        for layer in range(2):
            assert tuple(tables.of_layer("physical", layer).tolist()) == now.row(layer)
            counted = [len(slots) for slots in now.copies(layer)]
            assert tables.of_layer("counts", layer).tolist() == [min(4, n) for n in counted]


def test_a_repair_that_has_no_room_is_told_with_its_reason() -> None:
    tight = Placement.of_rows([[0, 1, 2, 3]], experts=4, ranks=4)
    found = ahead.one(tight, ahead.loss_of({2}), repair)
    assert found.plan is None
    assert "no room" in found.why
    assert found.uncovered == ((0, 2),)


def test_the_stacked_maps_are_those_of_the_placement(rng: random.Random) -> None:
    pytest.importorskip("torch")
    from dynamo_gpu_ft.experts.tables import FailoverTables

    for _ in range(30):
        ranks, slots, experts, width = (
            rng.randrange(1, 5),
            rng.randrange(1, 5),
            rng.randrange(1, 9),
            3,
        )
        rows = [[rng.randrange(-1, experts) for _ in range(ranks * slots)] for _ in range(2)]
        place, rank = Placement.of_rows(rows, experts=experts, ranks=ranks), rng.randrange(ranks)
        tables = FailoverTables(place, (), rank=rank, width=width)
        for layer in range(2):
            for expert, copies in enumerate(place.copies(layer)):
                held = copies[:width]
                padded = held + [-1] * (width - len(held))
                assert tables.logical[0, layer, expert].tolist() == padded
                assert int(tables.counts[0, layer, expert]) == len(held)
                own = [slot for slot in held if slot // slots == rank]
                turn = held[(rank + expert) % len(held)] if held else -1
                assert int(tables.dispatch[0, layer, expert]) == (own[0] if own else turn)


# -- live changes ----------------------------------------------------------------------------------------------------------


def rows_of(rng: random.Random, experts: int, width: int) -> list[int]:
    row = [*range(experts), *(rng.randrange(-1, experts) for _ in range(width - experts))]
    rng.shuffle(row)
    return row


def test_no_step_of_any_change_takes_the_last_copy_of_an_expert(rng: random.Random) -> None:
    for _ in range(300):
        ranks, slots, spare = rng.randrange(2, 5), rng.randrange(1, 4), rng.randrange(1, 3)
        experts = rng.randrange(1, ranks * slots + 1)
        old, new = (
            Placement.of_rows([rows_of(rng, experts, ranks * slots)], experts=experts, ranks=ranks)
            for _ in range(2)
        )
        try:
            found = change.steps(old, new, spare=spare)
        except PlacementError:
            assert ranks * slots - experts == 0 or spare < slots, "only a circle may be refused"
            continue
        now = list(old.row(0))
        for step in found:
            over: dict[int, int] = {}
            for slot, expert in step.changes.items():
                if now[slot] >= 0 and expert >= 0:
                    over[slot // slots] = over.get(slot // slots, 0) + 1
            assert max(over.values(), default=0) <= spare
            for slot, expert in step.changes.items():
                now[slot] = expert
            assert set(range(experts)) <= set(now)
        assert tuple(now) == new.row(0)


def test_without_spare_rows_a_former_expert_has_another_copy_while_its_slot_is_empty() -> None:
    old = Placement.of_rows([[0, 1, 2, 0]], experts=3, ranks=2)
    new = Placement.of_rows([[1, 0, 2, 0]], experts=3, ranks=2)
    [first, second] = change.steps(old, new, spare=0)
    assert (first.changes, second.changes) == ({0: 1}, {1: 0})
    circle = Placement.of_rows([[1, 0, 2]], experts=3, ranks=3)
    with pytest.raises(PlacementError, match="one spare row per rank"):
        change.steps(Placement.of_rows([[0, 1, 2]], experts=3, ranks=3), circle, spare=0)
    assert len(change.steps(Placement.of_rows([[0, 1, 2]], experts=3, ranks=3), circle)) == 1


def test_redundancy_grows_and_shrinks_within_the_allotted_slots() -> None:
    small = Placement.of_rows([[0, 1, 2, 3]] * 2, experts=4, ranks=2)
    wide = change.widened(small, 3)
    assert wide.row(0) == (0, 1, -1, 2, 3, -1)
    grown = Placement.of_rows([[0, 1, 2, 2, 3, 0]] * 2, experts=4, ranks=2)
    up = change.steps(wide, grown)
    assert [(s.layer, s.changes) for s in up] == [(0, {2: 2, 5: 0}), (1, {2: 2, 5: 0})]
    assert [(w.slot, w.expert, w.load) for w in up[0].wants(1, 3, {0: 9})] == [(2, 0, 9)]
    down = change.steps(grown, wide)
    assert [s.changes for s in down] == [{2: -1, 5: -1}] * 2
    assert down[0].retired(1, 3) == [2]


def test_every_foreseen_loss_of_a_planned_placement_is_repaired_step_by_step(
    rng: random.Random,
) -> None:
    domains = Domains.regular(8, per_tray=2, per_node=4)
    used = [[rng.randrange(1, 1000) for _ in range(16)] for _ in range(2)]
    whole = planner.plan(used, ranks=8, slots=3, domains=domains, aim=Aim(mode="refill")).placement
    foreseen = ahead.all_of(whole, domains, ahead.by_planner(used, domains))
    assert len(foreseen) == 8 + 2
    for each in foreseen:
        fits = 3 * (8 - len(each.loss.dead)) >= 16
        assert (each.plan is not None) == fits, each.why
        if each.plan is None:
            assert len(each.loss.dead) == 4, "a node of four leaves 12 slots for 16 experts"
            continue
        assert not ahead.uncovered(each.plan.placement)
        now = {layer: list(each.masked.row(layer)) for layer in range(2)}
        for step in change.steps(each.masked, each.plan.placement):
            for slot, expert in step.changes.items():
                now[step.layer][slot] = expert
        assert [tuple(now[layer]) for layer in range(2)] == each.plan.placement.rows()


def test_a_rank_that_came_back_is_filled_layer_by_layer() -> None:
    back = change.steps(PAIRS.without({2}), PAIRS)
    assert [(s.layer, s.changes) for s in back] == [(0, {4: 0, 5: 1}), (1, {4: 0, 5: 1})]


def test_a_step_is_committed_when_all_who_live_have_landed_theirs() -> None:
    assert change.decide({0, 1, 2}, ready={0, 1}, refused=()) == "wait"
    assert change.decide({0, 1}, ready={0, 1}, refused=()) == "commit", "2 has died meanwhile"
    assert change.decide({0, 1, 2}, ready={0, 1}, refused={2}) == "abort"
    assert change.decide({0, 1}, ready={0, 1}, refused={2}) == "commit"
