"""The coordinator in a simulated group: faults at every point of a recovery, in pairs, and in random schedules."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from dynamo_gpu_ft.errors import StoreUnavailable
from dynamo_gpu_ft.events import GroupRecovered
from dynamo_gpu_ft.recovery.group.plan import NODE, Kind, Policy
from dynamo_gpu_ft.recovery.group.states import State
from dynamo_gpu_ft.recovery.membership.base import Membership
from dynamo_gpu_ft.sim.group import OF_A_MEMBER, OF_NOBODY, POINTS, Fault
from tests.unit.group_world import POLICY, World


def all_faults(shards: int) -> list[Fault]:
    """Shard 0 is the one that was lost first; of the others two are enough for two faults: the rest are like them."""
    targets = range(min(shards, 3))
    return [
        *(Fault(p, kind, s) for p in POINTS for kind in OF_A_MEMBER for s in targets),
        *(Fault(p, kind) for p in POINTS for kind in OF_NOBODY),
    ]


@pytest.mark.parametrize("shards", [1, 2, 3, 4])
def test_every_single_fault_at_every_point_ends_as_it_has_to(shards: int) -> None:
    for lost in range(shards):
        for fault in all_faults(shards):
            world = World(shards, [fault])
            world.check_end(world.lose(lost))
            assert world.group.struck == [fault], "the fault never struck"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("shards", [1, 2, 3, pytest.param(4, marks=pytest.mark.long)])
def test_every_pair_of_faults_at_every_two_points_ends_as_it_has_to(shards: int) -> None:
    began, count = time.monotonic(), 0
    for first, second in itertools.product(all_faults(shards), repeat=2):
        world = World(shards, [first, second])
        try:
            world.check_end(world.lose(0))
        except AssertionError as error:
            raise AssertionError(f"{first} then {second}: {error}") from error
        count += 1
    print(f"{count} pairs in {time.monotonic() - began:.1f} s")


schedules = st.integers(1, 4).flatmap(
    lambda shards: st.builds(
        World,
        shards=st.just(shards),
        faults=st.lists(st.sampled_from(all_faults(shards)), max_size=7),
        policy=st.builds(
            Policy,
            restart=st.booleans(),
            respawn=st.booleans(),
            min_shards=st.integers(0, 4),
            deaths=st.integers(1, 4),
            attempts=st.integers(1, 3),
            step_s=st.just(5.0),
            recovery_s=st.sampled_from([8.0, 30.0, 200.0]),
        ),
        spare=st.integers(0, 4),
    )
)


@settings(max_examples=600)
@given(world=schedules, data=st.data())
def test_any_schedule_ends_in_serving_or_in_failed_with_a_reason_and_in_time(
    world: World, data: st.DataObject
) -> None:
    lost = data.draw(st.sets(st.integers(0, world.shards - 1), min_size=1))
    world.lose(*sorted(lost))


def test_nobody_lost_is_a_false_alarm_that_does_not_disturb_the_engine() -> None:
    world = World(3)
    outcome = world.recover({})
    assert (outcome.state, outcome.kind) == (State.SERVING, None)
    assert len(world.group.store.history) == 1
    assert world.group.now == 0.0
    assert world.events[-1].outcome == "cleared"  # type: ignore[union-attr]


def test_late_news_of_a_member_that_was_replaced_long_ago_is_no_loss_twice() -> None:
    world = World(2)
    world.group.processes.pop(1)  # a degraded engine without shard 1
    assert world.coordinator.membership is not None
    world.coordinator.membership = world.coordinator._made(
        1, world.group.members()[:1], settled=True
    )
    world.group.store.history[:] = [world.coordinator.membership]
    assert world.coordinator.recover({1: "exit"}).kind is None


def test_a_shard_whose_member_dies_three_times_within_the_window_is_given_up() -> None:
    world = World(2)
    for _ in range(2):
        assert world.lose(1).state is State.SERVING
    outcome = world.lose(1)
    assert (outcome.state, outcome.kind) == (State.FAILED, Kind.FAIL)
    assert "shard 1: its member died 3 times within 600 s" in outcome.reason
    assert world.group.abandoned == [outcome.reason]
    assert world.coordinator.recover({0: "exit"}) is outcome, "FAILED is final"


def test_deaths_of_different_shards_do_not_add_up() -> None:
    world = World(4, spare=8)
    for shard in (0, 1, 2, 3, 0, 1, 2, 3):
        assert world.lose(shard).state is State.SERVING


def test_without_standbys_a_process_is_started_and_without_that_fewer_ranks_go_on() -> None:
    assert World(3, spare=0).lose(1).kind is Kind.RESPAWN
    lonely = Policy(respawn=False, min_shards=2, recovery_s=200.0, step_s=5.0)
    outcome = World(3, spare=0, policy=lonely).lose(1)
    assert outcome.kind is Kind.DEGRADE
    assert [(m.rank, m.shard) for m in outcome.membership.members] == [(0, 0), (1, 2)]


def test_a_degraded_engine_grows_again_when_a_standby_is_there_and_not_before() -> None:
    policy = Policy(respawn=False, min_shards=1, recovery_s=200.0, step_s=5.0)
    world = World(3, spare=0, policy=policy)
    degraded = world.lose(1)
    assert world.recover({}, grow=True).membership == degraded.membership
    world.group.spare = 1
    grown = world.recover({}, grow=True)
    assert (grown.state, grown.kind) == (State.SERVING, Kind.SUBSTITUTE)
    assert [m.shard for m in grown.membership.members] == [0, 1, 2]
    assert world.recover({}, grow=True).kind is None, "there is nothing left to fill"


def test_a_growth_that_fails_leaves_the_degraded_engine_serving() -> None:
    policy = Policy(respawn=False, min_shards=1, recovery_s=200.0, step_s=5.0)
    world = World(3, [Fault("rebuild.in", "standby")] * 3, spare=0, policy=policy)
    world.group.faults, later = [], world.group.faults
    world.lose(1)
    world.group.spare, world.group.faults = 1, later
    outcome = world.recover({}, grow=True)
    assert outcome.state is State.SERVING
    assert [m.shard for m in outcome.membership.members] == [0, 2]


@pytest.mark.parametrize("point", ["plan.publish", "commit.publish"])
def test_a_store_that_stays_down_ends_in_failed_at_the_deadline_and_not_later(point: str) -> None:
    world = World(2)
    down = world.group.store.on_call

    def forever(name: str, moment: str) -> None:
        if f"{world.coordinator.state.value}.publish" == point:
            world.group._down_until = 1e9
        down(name, moment)

    world.group.store.on_call = forever
    outcome = world.lose(0)
    assert (outcome.state, "recovery_deadline_s" in outcome.reason) == (State.FAILED, True)
    assert POLICY.recovery_s - 3 < world.group.now <= POLICY.recovery_s


def test_a_coordinator_that_was_stopped_while_another_took_over_is_out_and_touches_nothing() -> (
    None
):
    world = World(3)
    old, world.coordinator = world.coordinator, world.lead()
    world.coordinator.take_over(world.events)
    world.lose(2)
    pids = [m.pid for m in world.group.members()]
    world.group.kill(0)
    story = list(world.events)
    outcome = old.recover({0: "exit"})
    world.events[:] = story  # what the old one tells is another story
    assert (outcome.state, outcome.superseded) == (State.FAILED, True)
    assert not world.group.abandoned
    assert [m.pid for m in world.group.members()] == pids
    assert world.lose(0).state is State.SERVING


@pytest.mark.parametrize("at", ["quiesce", "rebuild", "validate"])
def test_a_coordinator_overtaken_in_the_middle_of_a_step_publishes_nothing_more(at: str) -> None:
    world = World(3)
    others: list[Membership] = []

    def overtake(*args: object) -> object:
        if not others:
            newest = world.group.store.history[-1]
            others.append(
                structs.replace(newest, epoch=newest.epoch + 1, settled=False, by="other")
            )
            assert world.group.store.publish(others[0])
        return step(*args)

    step = getattr(world.group, at)
    setattr(world.group, at, overtake)
    world.group.kill(1)
    outcome = world.coordinator.recover({1: "exit"})
    assert (outcome.state, outcome.superseded) == (State.FAILED, True)
    assert world.group.store.history[-1] == others[0]
    assert not world.group.abandoned
    assert isinstance(world.events[-1], GroupRecovered)
    assert world.events[-1].outcome == "superseded"


def test_two_coordinators_with_the_same_plan_do_not_take_each_others_claim_for_their_own() -> None:
    world = World(2)
    twin = world.lead()
    twin.take_over(world.events)
    world.group.kill(1)
    real = world.group.store.publish

    def both_at_once(membership: Membership) -> bool:
        world.group.store.publish = real  # type: ignore[method-assign]
        assert real(structs.replace(membership, by=twin.token))
        return real(membership)

    world.group.store.publish = both_at_once  # type: ignore[method-assign]
    assert world.coordinator.recover({1: "exit"}).superseded


def test_founding_an_engine_again_goes_on_with_the_next_epoch() -> None:
    world = World(2)
    world.lose(0)
    again = world.lead().found(world.group.members())
    assert again.epoch == 4


def test_recovering_before_anybody_knows_the_members_is_refused() -> None:
    world = World(1)
    with pytest.raises(RuntimeError, match="found"):
        world.lead().recover()


def test_a_node_that_is_condemned_is_left_to_the_restart_elsewhere() -> None:
    world = World(2)
    world.coordinator._verdicts = lambda missing: ({NODE: "GSP timeout"}, 3)
    outcome = world.lose(1)
    assert (outcome.state, outcome.kind) == (State.FAILED, Kind.RESTART)
    assert "GSP timeout" in outcome.reason


def test_one_whose_orders_are_refused_because_another_leads_does_not_end_the_others_group() -> None:
    world = World(3)
    old, world.coordinator = world.coordinator, world.lead()
    world.coordinator.take_over(world.events)
    quiesce = world.group.quiesce

    def overtaken(*args: object) -> None:
        world.group.quiesce = quiesce  # type: ignore[method-assign]
        assert world.coordinator.recover({2: "exit"}).state is State.SERVING
        world.group.quiesce = refuse  # type: ignore[assignment, method-assign]
        refuse()

    def refuse(*args: object) -> None:
        raise RuntimeError("an order of an older epoch")

    world.group.quiesce = overtaken  # type: ignore[assignment, method-assign]
    world.group.kill(2)
    outcome = old.recover({2: "exit"})
    assert (outcome.state, outcome.superseded) == (State.FAILED, True)
    assert "another coordinator leads" in outcome.reason
    assert not world.group.abandoned
    assert all(process.running for process in world.group.processes.values())


def test_a_replacement_that_dies_before_it_serves_counts_as_a_death_of_its_shard() -> None:
    world = World(2, [Fault("validate.before", "death", 1), Fault("commit.before", "death", 1)])
    outcome = world.lose(1)
    assert (outcome.state, outcome.kind) == (State.FAILED, Kind.FAIL)
    assert world.died() == {1: 3}


def test_what_was_published_is_not_replaced_again_when_only_the_last_step_fails() -> None:
    world = World(3, [Fault("commit.in", "exception")])
    assert world.lose(1).state is State.SERVING
    assert world.group.spare == 1, "one standby took one place"
    assert world.died() == {1: 1}


def test_a_publication_that_seemed_to_fail_is_built_upon_when_another_plan_follows() -> None:
    world = World(3)
    group, real = world.group, world.group.store.on_call

    def lost_and_down(name: str, moment: str) -> None:
        real(name, moment)
        if (name, moment, world.coordinator.state) == ("publish", "after", State.COMMIT):
            group.store.on_call = real
            group._down_until = group.now + POLICY.step_s + 1  # longer than one try in COMMIT
            group.kill(2)  # and by the time it answers, another plan is due
            raise StoreUnavailable("the reply is lost")

    group.store.on_call = lost_and_down
    assert world.lose(1).state is State.SERVING
    assert world.died() == {1: 1, 2: 1}
    # 1 founded; 2 claimed, 3 published, nobody knew; 4 claimed upon it, 5 published
    assert [m.settled for m in group.store.history] == [True, False, True, False, True]
