"""Decisions after a death: how often, how long to wait, when to give up; and what remains of a request."""

from hypothesis import given
from hypothesis import strategies as st

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.recovery.plan import GiveUp, Restart, after_death
from dynamo_gpu_ft.recovery.requests import remainder, split

CONFIG = Config(
    max_restarts=3,
    restart_window_s=100.0,
    backoff_initial_s=1.0,
    backoff_max_s=3.0,
    recovery_deadline_s=50.0,
)


def test_the_first_death_restarts_at_once() -> None:
    assert after_death([10.0], now=10.0, recovery_began=10.0, config=CONFIG) == Restart(0.0)


def test_later_deaths_in_the_window_back_off_up_to_a_limit() -> None:
    config = Config(max_restarts=10, backoff_initial_s=1.0, backoff_max_s=3.0)
    delays = []
    for count in range(1, 6):
        answer = after_death([1.0] * count, now=1.0, recovery_began=1.0, config=config)
        assert isinstance(answer, Restart)
        delays.append(answer.delay_s)
    assert delays == [0.0, 1.0, 2.0, 3.0, 3.0]


def test_too_many_deaths_in_the_window_give_up_with_the_numbers() -> None:
    answer = after_death([1.0, 2.0, 3.0, 4.0], now=4.0, recovery_began=4.0, config=CONFIG)
    assert isinstance(answer, GiveUp)
    assert "4 deaths" in answer.reason
    assert "max_restarts = 3" in answer.reason


def test_old_deaths_do_not_count() -> None:
    deaths = [1.0, 2.0, 3.0, 200.0]
    assert after_death(deaths, now=200.0, recovery_began=200.0, config=CONFIG) == Restart(0.0)


def test_a_recovery_past_its_deadline_gives_up() -> None:
    answer = after_death([100.0], now=151.0, recovery_began=100.0, config=CONFIG)
    assert isinstance(answer, GiveUp)
    assert "recovery_deadline_s" in answer.reason


def test_the_rest_of_a_request_has_smaller_limits() -> None:
    rest = remainder([1, 2], [3, 4, 5], max_tokens=10, min_tokens=4)
    assert rest.prompt_token_ids == [1, 2, 3, 4, 5]
    assert (rest.max_tokens, rest.min_tokens, rest.generated, rest.done) == (7, 1, 3, False)


def test_a_request_that_had_all_its_tokens_is_done() -> None:
    assert remainder([1], [2, 3], max_tokens=2, min_tokens=0).done
    assert not remainder([1], [2, 3], max_tokens=None, min_tokens=0).done


ids = st.lists(st.integers(0, 2**31), max_size=30)


@given(ids, ids, st.integers(0, 60), st.integers(0, 60))
def test_no_token_is_lost_or_counted_twice(
    prompt: list[int], generated: list[int], limit: int, least: int
) -> None:
    rest = remainder(prompt, generated, max_tokens=limit, min_tokens=least)
    assert rest.prompt_token_ids == prompt + generated
    assert rest.max_tokens == limit - len(generated)
    assert 0 <= rest.min_tokens <= least
    assert rest.done == (len(generated) >= limit)


@given(st.integers(0, 1000), st.integers(-5, 2000))
def test_restored_and_recomputed_add_up(before: int, cached: int) -> None:
    parts = split(before, cached)
    assert parts.restored + parts.recomputed == before
    assert 0 <= parts.restored <= before
