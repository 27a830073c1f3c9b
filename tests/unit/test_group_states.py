"""The state machine as a graph: what can happen where, where it leads, and that no way round is without a bound."""

from __future__ import annotations

import pytest

from dynamo_gpu_ft.recovery.group.states import ENDS, NEXT, WORKING, Happening, State, after


def reachable(start: State, happenings: set[Happening]) -> set[State]:
    seen, todo = {start}, [start]
    while todo:
        state = todo.pop()
        new = {NEXT[state, h] for h in happenings if (state, h) in NEXT} - seen
        seen |= new
        todo += new
    return seen


def test_without_anything_else_happening_a_loss_leads_straight_back_to_serving() -> None:
    walk, state = [], after(State.SERVING, Happening.LOST)
    while state is not State.SERVING:
        walk.append(state)
        state = after(state, Happening.DONE)
    assert walk == [State.SUSPECT, *WORKING]


def test_every_state_is_reached_and_from_every_state_but_failed_both_ends_are() -> None:
    every = set(Happening)
    assert reachable(State.SERVING, every) == set(State)
    for state in set(State) - {State.FAILED}:
        assert set(ENDS) <= reachable(state, every)


def test_failed_is_final_and_only_a_loss_ends_serving() -> None:
    assert not [key for key in NEXT if key[0] is State.FAILED]
    assert [key[1] for key in NEXT if key[0] is State.SERVING] == [Happening.LOST]


@pytest.mark.parametrize("state", WORKING)
def test_a_loss_in_any_working_state_frees_the_survivors_first_and_plans_again(
    state: State,
) -> None:
    assert after(state, Happening.LOST) is State.QUIESCE
    assert after(State.QUIESCE, Happening.DONE) is State.PLAN


def test_serving_is_entered_only_by_a_commit_or_a_false_alarm() -> None:
    ways = {key for key, state in NEXT.items() if state is State.SERVING}
    assert ways == {(State.COMMIT, Happening.DONE), (State.SUSPECT, Happening.CLEARED)}


def test_a_way_round_always_counts_against_a_limit() -> None:
    """Steps that are done lead forward only; what leads back is a loss, a failure or the store, and each of those is counted."""
    order = list(State)
    for (state, happening), follows in NEXT.items():
        back = order.index(follows) <= order.index(state)
        if back and follows is not State.SERVING:
            assert happening in {
                Happening.LOST,
                Happening.STANDBY_LOST,
                Happening.TIMED_OUT,
                Happening.ERROR,
                Happening.STORE_DOWN,
            }


def test_the_end_of_the_deadline_ends_every_state_that_works() -> None:
    for state in (State.SUSPECT, *WORKING):
        for happening in (Happening.DEADLINE, Happening.HOPELESS, Happening.SUPERSEDED):
            assert after(state, happening) is State.FAILED


def test_what_cannot_happen_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'cleared' cannot happen in state 'commit'"):
        after(State.COMMIT, Happening.CLEARED)
