"""Plans and repairs against brute force: what they survive, how well they balance, what they move, and what they refuse."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_world import balance, counted, counted_domains, holders, least_peak, loads_of, zipf

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts.base import Aim, Domains, Placement
from dynamo_gpu_ft.experts.planner import certify, feasible, plan, repair

NODE = Aim(domain="node")
REFILL = Aim(mode="refill")


def pairs(ranks: int) -> Domains:
    return Domains.regular(ranks, per_tray=1, per_node=2)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    ranks = draw(st.integers(2, 7))
    experts = draw(st.integers(1, 9))
    node = draw(st.sampled_from([1, 2, 3]))
    return {
        "loads": loads_of(draw(st.integers(0, 10**6)), draw(st.integers(1, 3)), experts),
        "ranks": ranks,
        "slots": draw(st.integers(1, experts + 1)),
        "domains": Domains.regular(ranks, per_tray=node, per_node=node),
        "aim": Aim(
            mode=draw(st.sampled_from(["instant", "refill"])),
            losses=draw(st.integers(0, 2)),
            domain=draw(st.sampled_from(["gpu", "node"])),
        ),
        "alive": [draw(st.integers(0, 5)) > 0 for _ in range(ranks)],
    }


@given(problems())
@settings(max_examples=250, deadline=None)
def test_every_plan_keeps_its_promise_and_every_refusal_is_a_placement_error(
    problem: dict[str, Any],
) -> None:
    aim, alive = problem["aim"], problem["alive"]
    try:
        found = plan(**problem)
    except PlacementError:
        return
    experts, certificate = len(problem["loads"][0]), found.certificate
    for layer in holders(found.placement, alive):
        for ranks in layer:
            assert ranks
            if aim.mode == "instant":
                homes = {problem["domains"].of(aim.domain)[rank] for rank in ranks}
                assert len(ranks) >= aim.losses + 1
                assert aim.losses == 0 or len(homes) >= 2 or aim.domain == "gpu"
    for layer in range(found.placement.layers):
        row = found.placement.row(layer)
        for rank in range(found.placement.ranks):
            mine = [
                e for e in row[rank * problem["slots"] : (rank + 1) * problem["slots"]] if e >= 0
            ]
            assert len(mine) == len(set(mine)), "two copies on one rank"
            assert alive[rank] or not mine
            assert not alive[rank] or len(mine) == min(problem["slots"], experts), "an idle slot"
    assert certificate.one == counted(found.placement, alive, 1)
    assert certificate.two == counted(found.placement, alive, 2)
    for level in ("tray", "node", "nvlink"):
        assert certificate.domains[level] == counted_domains(
            found.placement, alive, problem["domains"], level
        )
    if aim.mode == "instant" and aim.losses:
        assert certificate.one[0] == certificate.one[1]
    if aim.mode == "instant" and aim.losses and aim.domain == "node":
        assert certificate.domains["node"][0] == certificate.domains["node"][1]
    for layer, ppm in enumerate(certificate.balance):
        assert (
            abs(float(balance(found.placement, problem["loads"], alive, layer)) - ppm / 1e6) < 1e-5
        )


@given(problems())
@settings(max_examples=150, deadline=None)
def test_what_is_refused_with_one_loss_cannot_be_had_by_any_placement(
    problem: dict[str, Any],
) -> None:
    """The pigeonhole, for one loss of a rank: room for two copies of each on distinct ranks."""
    problem["aim"] = Aim()
    experts, slots = len(problem["loads"][0]), problem["slots"]
    living = sum(problem["alive"])
    possible = living >= 2 and living * min(slots, experts) >= 2 * experts
    try:
        plan(**problem)
    except PlacementError:
        # Fixed groups of ranks waste at most the slots of one group.
        assert not possible or living % 2 or living * slots < 2 * experts + 2 * slots
    else:
        assert possible


@pytest.mark.parametrize("seed", range(12))
def test_small_layers_are_balanced_nearly_as_well_as_can_be(seed: int) -> None:
    loads = loads_of(seed, 1, 5)
    found = plan(loads, ranks=4, slots=3, domains=pairs(4))
    best = least_peak(loads[0], 4, 3, 2)
    mine = balance(found.placement, loads, [True] * 4, 0)
    assert mine >= (sum(loads[0]) / 4 / best) * 85 / 100


@pytest.mark.parametrize("alpha", [0.3, 0.6, 1.0])
def test_a_plan_of_real_size_survives_every_rank_and_node_and_nearly_every_two_ranks(
    alpha: float,
) -> None:
    domains = Domains.regular(32)
    loads = zipf(58, 256, alpha)
    found = plan(loads, ranks=32, slots=17, domains=domains, aim=NODE)
    every = found.certificate
    assert every.one == (32, 32)
    assert every.domains["node"] == (4, 4)
    assert every.two[0] / every.two[1] >= 0.96
    assert min(every.copies) >= 2
    assert sum(every.balance) / 58e6 >= 0.97


def test_groups_of_ranks_are_the_same_in_every_layer() -> None:
    found = plan(
        zipf(6, 32, 0.6), ranks=8, slots=8, domains=Domains.regular(8, per_node=4), aim=NODE
    )
    sets = {frozenset(ranks) for layer in holders(found.placement, [True] * 8) for ranks in layer}
    assert len(sets) == 4


@pytest.mark.parametrize(
    ("ranks", "slots", "experts", "mode", "says"),
    [
        (
            8,
            36,
            256,
            "refill",
            "8 ranks with 32 extra slots cannot survive a loss (refill); 40 can",
        ),
        (
            8,
            40,
            256,
            "instant",
            "8 ranks with 64 extra slots cannot survive a loss (instant); 256 can",
        ),
        (1, 4, 4, "instant", "1 ranks with 0 extra slots cannot survive a loss (instant)"),
    ],
)
def test_what_cannot_be_survived_is_said_with_what_would_do(
    ranks: int, slots: int, experts: int, mode: Any, says: str
) -> None:
    with pytest.raises(PlacementError) as caught:
        feasible(experts, ranks, slots, aim=Aim(mode=mode))
    assert caught.value.what == says
    if ranks > 1:
        enough = int(says.rsplit("; ", 1)[1].split()[0])
        feasible(experts, ranks, (experts + enough) // ranks, aim=Aim(mode=mode))


def test_one_node_cannot_survive_its_own_loss() -> None:
    with pytest.raises(PlacementError, match="more ranks or domains"):
        feasible(16, 4, 16, Domains.regular(4, per_node=4), NODE)


def test_a_repair_moves_orphans_alone_and_stays_balanced() -> None:
    loads = zipf(58, 256, 0.6)
    old = plan(loads, ranks=32, slots=9, aim=REFILL).placement
    balances = []
    for dead in range(32):
        alive = [rank != dead for rank in range(32)]
        found = repair(old, loads, alive=alive, expert_bytes=10)
        orphans = {
            (layer, expert)
            for layer, ranks in enumerate(holders(old, alive))
            for expert, where in enumerate(ranks)
            if not where
        }
        assert {(move.layer, move.expert) for move in found.moves} == orphans
        assert len(found.moves) == len(orphans)
        assert {move.source for move in found.moves} == {-1}
        for layer in range(58):
            now, was = found.placement.row(layer), old.row(layer)
            moved = {move.slot for move in found.moves if move.layer == layer}
            assert all(e == -1 for s, e in enumerate(now) if s // 9 == dead)
            assert all(now[s] == was[s] for s in range(288) if s not in moved and s // 9 != dead)
        received = Counter(move.slot // 9 for move in found.moves)
        assert max(received.values()) <= 2 * len(found.moves) / 31
        assert found.certificate.bytes == 10 * len(orphans)
        balances.append(sum(found.certificate.balance) / 58e6)
    assert sum(balances) / 32 >= 0.85


def test_a_repair_without_orphans_moves_nothing_and_one_without_room_is_refused() -> None:
    loads = zipf(3, 16, 0.6)
    instant = plan(loads, ranks=8, slots=5, domains=pairs(8)).placement
    found = repair(instant, loads, alive=[False] + [True] * 7)
    assert found.moves == ()
    assert min(found.certificate.copies) >= 1
    full = plan(loads, ranks=8, slots=2, aim=Aim(mode="refill", losses=0)).placement
    with pytest.raises(PlacementError):
        repair(full, loads, alive=[False] + [True] * 7)


@given(st.integers(0, 10**6), st.integers(2, 6), st.data())
@settings(max_examples=100, deadline=None)
def test_any_death_that_leaves_room_is_repaired(seed: int, ranks: int, data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 8))
    slots = data.draw(st.integers(-(-experts // ranks), experts))
    loads = loads_of(seed, 2, experts)
    old = plan(loads, ranks=ranks, slots=slots, aim=Aim(mode="refill", losses=0)).placement
    alive = [data.draw(st.booleans()) for _ in range(ranks)]
    enough = sum(alive) * slots >= experts and any(alive)
    try:
        found = repair(old, loads, alive=alive)
    except PlacementError:
        assert not enough
        return
    assert enough
    assert all(ranks for layer in holders(found.placement, alive) for ranks in layer)


def test_loads_that_stay_as_they_are_move_nothing() -> None:
    loads = zipf(8, 64, 0.6)
    for aim, slots in ((NODE, 17), (REFILL, 10)):
        domains = Domains.regular(8, per_node=4)
        old = plan(loads, ranks=8, slots=slots, domains=domains, aim=aim)
        again = plan(loads, ranks=8, slots=slots, domains=domains, aim=aim, old=old.placement)
        assert again.moves == ()
        assert again.placement == old.placement


def test_a_rebalance_stays_inside_its_budget_and_a_larger_one_balances_better() -> None:
    domains = Domains.regular(16)
    old = plan(zipf(6, 64, 0.8, seed=1), ranks=16, slots=9, domains=domains, aim=NODE).placement
    loads = zipf(6, 64, 0.8, seed=2)
    before = certify(old, loads, domains=domains, aim=NODE).balance
    means = [sum(before)]
    for budget in (0, 20, 200):
        found = plan(loads, ranks=16, slots=9, domains=domains, aim=NODE, old=old,
                     budget_bytes=budget * 7, expert_bytes=7)  # fmt: skip
        assert found.certificate.bytes <= budget * 7
        assert found.certificate.one == (16, 16)
        means.append(sum(found.certificate.balance))
    assert means[0] == means[1] < means[2] < means[3]


def test_coverage_comes_before_the_budget() -> None:
    """An old placement that survives nothing is made to, whatever it costs."""
    loads = zipf(4, 16, 0.6)
    old = Placement.of_rows([[i % 16 for i in range(8) for _ in range(5)]] * 4, experts=16, ranks=8)
    found = plan(loads, ranks=8, slots=5, domains=pairs(8), old=old, budget_bytes=0)
    assert found.certificate.one == (8, 8)


def test_moves_turn_the_old_placement_into_the_new_one_and_copy_from_live_slots() -> None:
    domains = pairs(8)
    old = plan(zipf(4, 24, 0.9, seed=1), ranks=8, slots=7, domains=domains).placement
    alive = [True] * 7 + [False]
    found = plan(zipf(4, 24, 0.9, seed=2), ranks=8, slots=7, domains=domains, old=old, alive=alive)
    for layer in range(4):
        row = [e if s // 7 != 7 else -1 for s, e in enumerate(old.row(layer))]
        for move in (m for m in found.moves if m.layer == layer):
            if move.source >= 0:
                assert old.row(layer)[move.source] == move.expert
                assert alive[move.source // 7]
            row[move.slot] = move.expert
        assert all(a == b for a, b in zip(found.placement.row(layer), row, strict=True) if a >= 0)


LIES: list[tuple[str, dict[str, Any]]] = [
    ("a negative load", {"loads": [[1, -1]]}),
    ("a load that is no whole number", {"loads": [[1, 1.5]]}),
    ("loads near 2^63", {"loads": [[2**63 - 1, 2**63 - 1]]}),
    ("a load beyond 64 bits", {"loads": [[2**64, 1]]}),
    ("layers of different lengths", {"loads": [[1, 2], [1]]}),
    ("no layer", {"loads": []}),
    ("no expert", {"loads": [[]]}),
    ("one dimension", {"loads": [1, 2]}),
    ("no rank", {"ranks": 0}),
    ("no slot", {"slots": 0}),
    ("nobody alive", {"alive": [False] * 4}),
    ("a mask of other ranks", {"alive": [True] * 5}),
    ("domains of other ranks", {"domains": Domains.regular(5)}),
    ("fewer than no losses", {"aim": Aim(losses=-1)}),
    ("more losses than ranks", {"aim": Aim(losses=5)}),
    ("an old placement of another size", {"old": Placement.of_rows([[0, 1]], experts=2, ranks=1)}),
    ("a million slots", {"slots": 2**20}),
]


@pytest.mark.parametrize(("name", "lie"), LIES, ids=[name for name, _ in LIES])
def test_a_lying_input_is_refused_with_a_rule(name: str, lie: dict[str, Any]) -> None:
    with pytest.raises(PlacementError) as caught:
        plan(**({"loads": [[3, 2]], "ranks": 4, "slots": 2} | lie))
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize(
    "table", [b"", b"\0" * 15, b"\0" * 20, b"\x07\0\0\0" * 4, b"\xfe\xff\xff\xff" * 4]
)
def test_a_table_of_the_wrong_length_or_with_strange_experts_is_refused(table: bytes) -> None:
    with pytest.raises(PlacementError):
        Placement(layers=1, experts=4, ranks=2, slots=2, table=table)


def test_loads_of_zero_are_planned_for_as_well() -> None:
    found = plan([[0] * 8], ranks=4, slots=4, domains=pairs(4))
    assert found.certificate.one == (4, 4)
    assert found.certificate.balance == (1_000_000,)


def test_ranks_that_make_no_even_groups_are_covered_as_well() -> None:
    for ranks, losses in itertools.product((3, 5, 7, 9), (1, 2)):
        slots = -(-(losses + 1) * 24 // ranks) + 2
        found = plan(zipf(2, 24, 0.6), ranks=ranks, slots=slots, domains=Domains.regular(ranks, per_tray=1, per_node=1),
                     aim=Aim(losses=losses))  # fmt: skip
        assert counted(found.placement, [True] * ranks, losses) == (
            found.certificate.one if losses == 1 else found.certificate.two
        )
        survived, every = counted(found.placement, [True] * ranks, losses)
        assert survived == every
