"""Recovery from losses: what it restores, what it costs, what a budget leaves for later, and that tokens can flow all the while."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_world import balance, counted, holders, loads_of, zipf

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts import change, planner, traces
from dynamo_gpu_ft.experts.base import Aim, Domains, Placement, Recovery
from dynamo_gpu_ft.experts.checker import check

SIZE = 7
NODE = Aim(domain="node")


def without_copies(placement: Placement, alive: list[bool], domains: Domains, aim: Aim) -> int:
    """(layer, expert) pairs that lie in too few domains: by looking."""
    if aim.mode != "instant":
        return 0
    home = domains.of(aim.domain)
    return sum(
        len({home[rank] for rank in ranks}) <= aim.losses
        for layer in holders(placement, alive)
        for ranks in layer
    )


def checked(found: Recovery, start: Placement, loads: Any, domains: Domains) -> None:
    for plan, old in ((found.repaired, start), (found.rebalanced, found.repaired.placement)):
        check(plan.placement, plan.certificate, loads, domains, plan.moves, old)


def walked(old: Placement, new: Placement) -> int:
    """Follows the steps of the change; every expert keeps a copy after each. Returns how many there were."""
    rows = [list(row) for row in old.rows()]
    steps = change.steps(old, new)
    for step in steps:
        for slot, expert in step.changes.items():
            rows[step.layer][slot] = expert
        assert set(range(old.experts)) <= set(rows[step.layer])
    assert rows == [list(row) for row in new.rows()]
    return len(steps)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_every_recovery_is_certified_stays_in_its_budget_and_can_be_walked(
    data: st.DataObject,
) -> None:
    ranks, experts = data.draw(st.integers(2, 8)), data.draw(st.integers(1, 9))
    slots = data.draw(st.integers(-(-experts // ranks), experts + 1))
    node = data.draw(st.sampled_from([1, 2]))
    domains = Domains.regular(ranks, per_tray=node, per_node=node)
    aim = Aim(
        mode=data.draw(st.sampled_from(["instant", "refill"])),
        losses=data.draw(st.integers(1, 2)),
        domain=data.draw(st.sampled_from(["gpu", "node"])),
    )
    loads = loads_of(data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 3)), experts)
    try:
        start = planner.plan(loads, ranks=ranks, slots=slots, domains=domains, aim=aim).placement
    except PlacementError:
        start = planner.plan(loads, ranks=ranks, slots=slots, aim=Aim(mode="refill", losses=0)).placement  # fmt: skip
    alive = [data.draw(st.integers(0, 3)) > 0 for _ in range(ranks)]
    budget = data.draw(st.sampled_from([None, 0, SIZE, 3 * SIZE, 12 * SIZE]))
    enough = sum(alive) * min(slots, experts) >= experts and any(alive)
    wish: dict[str, Any] = {"alive": alive, "domains": domains, "aim": aim, "expert_bytes": SIZE}
    try:
        found = planner.recover(start, loads, budget_bytes=budget, **wish)
    except PlacementError:
        assert not enough
        return
    checked(found, start, loads, domains)
    missing = without_copies(found.rebalanced.placement, alive, domains, found.aim)
    assert found.missing == missing
    assert budget is not None or missing == 0
    assert (found.rebalanced.certificate.aim == found.aim) or missing
    spent = found.repaired.certificate.bytes + found.rebalanced.certificate.bytes
    assert budget is None or spent <= max(budget, found.repaired.certificate.bytes)
    walked(found.repaired.placement, found.rebalanced.placement)
    stronger = [a for a in aim.weaker() if a != found.aim]
    for other in stronger[: list(aim.weaker()).index(found.aim)]:
        with pytest.raises(PlacementError):
            planner.feasible(experts, ranks, slots, domains, other, alive=alive)


@pytest.mark.parametrize("dead", [0, 17])
@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_copies_and_balance_come_back_on_the_ranks_that_live(alpha: float, dead: int) -> None:
    loads, domains = zipf(8, 256, alpha), Domains.regular(32)
    start = planner.plan(loads, ranks=32, slots=17, domains=domains, aim=NODE).placement
    alive = [rank != dead for rank in range(32)]
    lost = planner.certify(start, loads, domains=domains, alive=alive).balance
    found = planner.recover(start, loads, alive=alive, domains=domains, aim=NODE)
    assert found.repaired.moves == ()
    certificate = found.rebalanced.certificate
    assert (found.aim, found.missing) == (NODE, 0)
    assert certificate.one == (31, 31) == counted(found.rebalanced.placement, alive, 1)
    assert certificate.domains["node"] == (4, 4)
    assert max(lost) < 0.8e6
    assert min(certificate.balance) > 0.97e6
    for layer in range(8):
        assert float(balance(found.rebalanced.placement, loads, alive, layer)) > 0.97
    # At least what was lost has to move; planning anew would move nearly everything.
    assert 8 * 16 <= len(found.rebalanced.moves) < 8 * 527 // 3
    checked(found, start, loads, domains)
    assert walked(found.repaired.placement, found.rebalanced.placement) > 0


def test_hot_experts_that_do_not_divide_are_balanced_again_and_it_is_worth_its_moves() -> None:
    """32 experts do 9/10 of the work of 256; 31 ranks are left. Two copies of each on distinct nodes all along."""
    loads = traces.loads(traces.Recipe(layers=4, kind="khot"))
    domains, aim = Domains.regular(32), Aim(domain="node")
    start = planner.plan(loads, ranks=32, slots=17, domains=domains, aim=aim).placement
    alive = [rank != 8 for rank in range(32)]
    found = planner.recover(start, loads, alive=alive, domains=domains, aim=aim)
    after = found.rebalanced.certificate
    assert found.missing == 0
    assert after.one == (31, 31)
    assert min(after.balance) >= 950_000
    assert len(found.rebalanced.moves) <= 80 * 4
    checked(found, start, loads, domains)
    few = planner.recover(start, loads, alive=alive, domains=domains, aim=aim, budget_bytes=200)
    assert few.rebalanced.certificate.bytes <= 200


def test_rounds_of_a_small_budget_lead_to_the_same_promise() -> None:
    loads, domains = zipf(6, 128, 0.8), Domains.regular(16)
    start = planner.plan(loads, ranks=16, slots=18, domains=domains, aim=NODE).placement
    alive = [rank != 5 for rank in range(16)]
    wish: dict[str, Any] = {"alive": alive, "domains": domains, "aim": NODE, "expert_bytes": SIZE}
    budget, left, rounds = 40 * SIZE, [10**9], 0
    while left[-1]:
        found = planner.recover(start, loads, budget_bytes=budget, **wish)
        checked(found, start, loads, domains)
        assert found.rebalanced.certificate.bytes <= budget
        assert found.missing < left[-1], "a round that brings nothing back"
        left.append(found.missing)
        if found.missing:
            assert found.rebalanced.certificate.aim.mode == "refill"
        start, rounds = found.rebalanced.placement, rounds + 1
    assert rounds > 1
    assert found.rebalanced.certificate.one == (15, 15)
    assert planner.recover(start, loads, budget_bytes=0, **wish).rebalanced.moves == ()


def test_where_slots_do_not_allow_the_aim_the_next_weaker_one_is_met_and_balanced() -> None:
    loads = zipf(4, 64, 0.6)
    start = planner.plan(loads, ranks=8, slots=17).placement
    alive = [rank != 2 for rank in range(8)]
    found = planner.recover(start, loads, alive=alive)
    assert (found.aim, found.missing) == (Aim(mode="refill"), 0)
    assert found.rebalanced.certificate.room == 6 * 17
    assert min(found.rebalanced.certificate.balance) > 0.97e6
    checked(found, start, loads, Domains.regular(8))


def test_without_a_loss_there_is_nothing_to_recover() -> None:
    loads, domains = zipf(4, 64, 0.6), Domains.regular(8, per_node=4)
    start = planner.plan(loads, ranks=8, slots=17, domains=domains, aim=NODE).placement
    found = planner.recover(start, loads, alive=[True] * 8, domains=domains, aim=NODE)
    assert (found.repaired.moves, found.rebalanced.moves, found.missing) == ((), (), 0)


def test_a_loss_that_leaves_no_room_is_refused() -> None:
    loads = zipf(2, 16, 0.6)
    start = planner.plan(loads, ranks=4, slots=4, aim=Aim(mode="refill", losses=0)).placement
    with pytest.raises(PlacementError, match="no room"):
        planner.recover(start, loads, alive=[True, True, True, False])


def test_weaker_aims_end_with_a_copy_of_each() -> None:
    told = [(a.mode, a.losses, a.domain) for a in Aim(losses=2, domain="node").weaker()]
    assert told == [
        *(("instant", 2, d) for d in ("node", "tray", "gpu")), ("instant", 1, "gpu"),
        *(("refill", 2, d) for d in ("node", "tray", "gpu")), ("refill", 1, "gpu"), ("refill", 0, "gpu"),
    ]  # fmt: skip
    assert list(Aim(mode="refill", losses=0).weaker()) == [Aim(mode="refill", losses=0)]
