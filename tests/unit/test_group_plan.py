"""The planner: the rules one by one, then against a search through everything that could be done in small cases."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.recovery.group.plan import NODE, Kind, Plan, Policy, Situation, cost, plan

ANY = Policy(min_shards=1)


def lose(shards: int, *lost: int, **more: object) -> Situation:
    return Situation(shards, frozenset(range(shards)) - {*lost}, frozenset(lost), **more)  # type: ignore[arg-type]


def test_a_standby_is_the_cheapest_and_says_nothing_against_cheaper_ones() -> None:
    assert plan(lose(4, 1, standbys=1), ANY) == Plan(Kind.SUBSTITUTE, (1,), (0, 1, 2, 3), 1.0, "")


def test_too_few_standbys_mean_a_fresh_process_and_the_reason_says_so() -> None:
    made = plan(lose(4, 1, 2, standbys=1), ANY)
    assert (made.kind, made.lost, made.cost_s) == (Kind.RESPAWN, (1, 2), 15.0)
    assert made.reason == "no substitute: 1 standby for shards 1, 2"


def test_a_condemned_device_without_a_spare_one_leaves_fewer_ranks() -> None:
    made = plan(lose(4, 3, condemned={3: "XID 79"}, spares=0), ANY)
    assert (made.kind, made.lost, made.ranks) == (Kind.DEGRADE, (), (0, 1, 2))
    assert "no respawn: no spare devices for shard 3 (shard 3: XID 79)" in made.reason
    assert plan(lose(4, 3, condemned={3: "XID 79"}, spares=1), ANY).kind is Kind.RESPAWN


def test_fewer_ranks_than_allowed_mean_a_restart_and_without_one_a_failure() -> None:
    policy = Policy(respawn=False, min_shards=3)
    made = plan(lose(4, 0, 1), policy)
    assert made.kind is Kind.RESTART
    assert "2 left, fewer than min_shards = 3" in made.reason
    assert plan(lose(4, 0, 1), Policy(respawn=False, min_shards=3, restart=False)).kind is Kind.FAIL


def test_the_third_death_within_the_window_fails_even_where_a_restart_is_possible() -> None:
    deaths = {1: [100.0, 400.0, 500.0]}
    made = plan(lose(2, 1, standbys=2, deaths=deaths, now=500.0), ANY)
    assert (made.kind, made.cost_s) == (Kind.FAIL, 0.0)
    assert "shard 1: its member died 3 times within 600 s" in made.reason
    later = lose(2, 1, standbys=2, deaths={1: [100.0, 400.0, 701.0]}, now=701.0)
    assert plan(later, ANY).kind is Kind.SUBSTITUTE


def test_a_shard_that_keeps_dying_is_no_reason_against_the_recovery_of_another() -> None:
    deaths = {1: [1.0, 2.0, 3.0], 0: [4.0]}
    assert plan(lose(3, 0, standbys=1, deaths=deaths, now=4.0), ANY).kind is Kind.SUBSTITUTE


def test_a_degraded_engine_fills_everything_if_it_can_and_else_keeps_its_size() -> None:
    degraded = Situation(4, frozenset({0, 1}), frozenset({2}), standbys=2)
    assert plan(degraded, ANY).ranks == (0, 1, 2, 3)
    one = Situation(4, frozenset({0, 1}), frozenset({2}), standbys=1)
    made = plan(one, Policy(respawn=False, min_shards=1))
    assert (made.kind, made.lost, made.ranks) == (Kind.SUBSTITUTE, (2,), (0, 1, 2))
    assert "no substitute: 1 standby for shards 2, 3" in made.reason


def test_what_failed_too_often_or_is_known_to_take_too_long_is_not_tried_again() -> None:
    failed = lose(2, 1, standbys=5, failed={Kind.SUBSTITUTE: 2})
    assert plan(failed, ANY).kind is Kind.RESPAWN
    slow = lose(2, 1, standbys=5, measured={Kind.SUBSTITUTE: 9.0}, left_s=8.0)
    made = plan(slow, ANY)
    assert (made.kind, "took 9 s last time and 8 s are left" in made.reason) == (Kind.RESPAWN, True)
    assert plan(lose(2, 1, standbys=5, left_s=0.5), ANY).kind is Kind.SUBSTITUTE, "only estimated"


def test_what_was_measured_counts_more_than_the_estimate() -> None:
    quick = lose(2, 1, standbys=5, measured={Kind.SUBSTITUTE: 9.0, Kind.RESPAWN: 3.0})
    assert plan(quick, ANY).kind is Kind.RESPAWN
    assert plan(quick, ANY).cost_s == 3.0


def test_switched_off_everything_is_a_restart() -> None:
    made = plan(lose(2, 1, standbys=1), Policy.of(Config(in_place=False)))
    assert (made.kind, "in_place" in made.reason) == (Kind.RESTART, True)


@pytest.mark.parametrize(("allowed", "deaths"), [(0, 0), (1, 2), (2, 2), (3, 3), (20, 20)])
def test_the_settings_become_the_policy(allowed: int, deaths: int) -> None:
    config = Config(max_restarts=allowed, min_shards=2, step_deadline_s=3.0)
    policy = Policy.of(config, costs={Kind.RESPAWN: 4.0})
    assert (policy.deaths, policy.min_shards, policy.step_s) == (deaths, 2, 3.0)
    assert (policy.costs[Kind.RESPAWN], policy.costs[Kind.RESTART]) == (4.0, 60.0)


def test_no_restarts_allowed_means_that_the_first_death_fails() -> None:
    made = plan(lose(2, 1, standbys=1), Policy.of(Config(max_restarts=0)))
    assert (made.kind, "max_restarts = 0" in made.reason) == (Kind.FAIL, True)


def situations() -> st.SearchStrategy[Situation]:
    def of(shards: int) -> st.SearchStrategy[Situation]:
        some = st.sets(st.integers(0, shards - 1))
        return st.builds(
            lambda alive, lost, **more: Situation(
                shards, frozenset(alive), frozenset(lost - alive), **more
            ),
            alive=some,
            lost=some,
            standbys=st.integers(0, shards + 1),
            condemned=st.dictionaries(st.integers(NODE, shards - 1), st.just("XID 79"), max_size=2),
            spares=st.one_of(st.none(), st.integers(0, 2)),
            deaths=st.dictionaries(
                st.integers(0, shards - 1), st.lists(st.floats(0, 1000), max_size=4)
            ),
            now=st.just(1000.0),
            failed=st.dictionaries(st.sampled_from(Kind), st.integers(0, 3)),
            measured=st.dictionaries(st.sampled_from(Kind), st.floats(0.01, 50)),
            left_s=st.floats(0, 60),
        )

    return st.integers(1, 4).flatmap(of)


policies = st.builds(
    Policy,
    in_place=st.booleans(),
    restart=st.booleans(),
    respawn=st.booleans(),
    min_shards=st.integers(0, 4),
    deaths=st.integers(0, 4),
    window_s=st.sampled_from([10.0, 600.0, 2000.0]),
    attempts=st.integers(1, 3),
)


def possible(kind: Kind, fill: frozenset[int], now: Situation, policy: Policy) -> bool:
    """Said independently of the planner: may this be done at all?"""
    if now.failed.get(kind, 0) >= policy.attempts or now.measured.get(kind, 0) > now.left_s:
        return False
    if kind is Kind.SUBSTITUTE:
        return now.standbys >= len(fill)
    if kind is Kind.RESPAWN:
        homeless = len(fill & set(now.condemned))
        return (policy.respawn or not fill) and homeless <= (now.spares or 0)
    return not fill and policy.min_shards >= 1 and len(now.alive) >= policy.min_shards


def search(now: Situation, policy: Policy) -> set[tuple[Kind, frozenset[int]]]:
    """All best plans: of the largest possible engine the cheapest, by looking at every subset that could be filled."""
    missing = frozenset(range(now.shards)) - now.alive
    whole = [missing, now.lost]  # every missing shard, or those lost now
    found = [
        (len(now.alive | fill), -cost(kind, now, policy), kind, fill)
        for kind, fill in itertools.product((Kind.SUBSTITUTE, Kind.RESPAWN), whole)
        if possible(kind, fill, now, policy)
    ]
    if not found and possible(Kind.DEGRADE, frozenset(), now, policy):
        return {(Kind.DEGRADE, frozenset())}
    best = max((entry[:2] for entry in found), default=None)
    return {(kind, fill) for *measure, kind, fill in found if tuple(measure) == best}


@settings(max_examples=1500)
@given(now=situations(), policy=policies)
def test_the_plan_is_what_a_search_through_all_plans_finds_best(
    now: Situation, policy: Policy
) -> None:
    made = plan(now, policy)
    assert made == plan(now, policy), "the same data, the same plan"
    looping = [
        shard
        for shard in now.lost
        if sum(t >= now.now - policy.window_s for t in now.deaths.get(shard, ())) >= policy.deaths
    ]
    best = search(now, policy) if policy.in_place and NODE not in now.condemned else set()
    if looping:
        assert made.kind is Kind.FAIL
    elif best:
        assert (made.kind, frozenset(made.lost)) in best
        assert frozenset(made.ranks) == now.alive | set(made.lost)
        assert list(made.ranks) == sorted(made.ranks)
        assert made.cost_s == cost(made.kind, now, policy)
    else:
        assert made.kind is (Kind.RESTART if policy.restart else Kind.FAIL)
        assert made.reason
