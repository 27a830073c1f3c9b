"""Seats after losses: what must hold for any losses, tried on thousands, and the callables that rest on it."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import ConfigError, NvrxError
from dynamo_gpu_ft.health.incidents import Action, Incident, Unusable
from dynamo_gpu_ft.nvrx.inprocess.callables import Callables, Process, too_few, unfit
from dynamo_gpu_ft.nvrx.inprocess.kept import Kept
from dynamo_gpu_ft.nvrx.inprocess.shards import Seating
from dynamo_gpu_ft.nvrx.inprocess.wrapper import times
from tests.nvrx.incidents import incident, lost_gpu


@st.composite
def losses(draw: st.DrawFn) -> tuple[int, int, list[set[int]]]:
    """(shards, ranks, the ranks lost in each turn); at least one rank is left."""
    shards = draw(st.integers(1, 8))
    ranks = draw(st.integers(shards, shards + 4))
    left, turns = ranks, []
    for _ in range(draw(st.integers(1, 4))):
        dead = draw(st.sets(st.integers(0, left - 1), max_size=left - 1))
        turns.append(dead)
        left -= len(dead)
    return shards, ranks, turns


@given(losses())
def test_survivors_keep_their_shards_and_holes_are_filled_by_spares_alone(
    case: tuple[int, int, list[set[int]]],
) -> None:
    shards, ranks, turns = case
    seating = Seating.first(shards, ranks)
    for dead in turns:
        after, numbers = seating.without(dead)
        left = set(range(len(seating.holders))) - dead
        assert set(numbers) == left
        assert sorted(numbers.values()) == list(range(len(left)))
        held = [shard for shard in after.holders if shard is not None]
        assert len(set(held)) == len(held)
        assert set(after.holders[: after.active]) == set(held)  # the active ones come first
        spares = [rank for rank in left if seating.holders[rank] is None]
        for rank in left:
            before, now = seating.holders[rank], after.holders[numbers[rank]]
            if before is not None:
                assert now == before
                if before < after.active:
                    assert numbers[rank] == before  # and its number, where there is no gap
        survivors = sum(1 for rank in left if seating.holders[rank] is not None)
        assert after.active == min(shards, survivors + len(spares))
        seating = after


def test_fewer_ranks_than_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="3 shards cannot be held by 2 ranks"):
        Seating.first(3, 2)


def test_too_few_shards_end_the_engine_unless_it_may_go_on_with_fewer() -> None:
    degraded, _ = Seating.first(3, 3).without({1})
    assert "shards [1] are lost" in too_few(degraded, Config())
    assert too_few(degraded, Config.load({"min_shards": 2})) == ""
    assert "min_shards = 3" in too_few(degraded, Config.load({"min_shards": 3}))
    assert too_few(Seating.first(2, 2), Config.load({"min_shards": 8})) == ""


@pytest.mark.parametrize(
    ("case", "ends"),
    [
        (lost_gpu(1), True),
        (lost_gpu(0), False),
        (incident(Unusable.CONTEXT, Action.RESTART_CONTEXT), True),
        (incident(Unusable.NODE, Action.REBOOT_NODE, shards=()), True),
        (incident(Unusable.LINK, Action.REBUILD_GROUP), False),
        (incident(Unusable.GPU, Action.RESET_GPU, cleared=True), False),
    ],
)
def test_a_verdict_ends_exactly_the_process_it_is_about(case: Incident, ends: bool) -> None:
    assert bool(unfit([case], 1)) is ends


class GiveUp(BaseException):
    pass


@dataclass
class State:
    rank: int
    world_size: int
    iteration: int = 0
    mode: object = None
    active_rank: int | None = None
    active_world_size: int | None = None


@dataclass
class Ctx:
    state: State
    terminated_ranks: set[int] = field(default_factory=set)


MODES = SimpleNamespace(ACTIVE="active", INACTIVE="inactive")


def test_the_assignment_gives_a_spare_the_lost_shard_and_the_state_of_an_active_rank() -> None:
    process = Process(2, Config())
    calls = Callables(process, MODES, GiveUp)
    ctx = calls.rank_assignment(Ctx(State(rank=2, world_size=3)))
    assert (ctx.state.mode, ctx.state.active_rank, process.shard) == ("inactive", None, None)
    with pytest.raises(NvrxError, match="has no shard"):
        process.rank  # noqa: B018
    ctx = calls.rank_assignment(Ctx(ctx.state, {0}))
    assert (ctx.state.mode, ctx.state.active_rank, ctx.state.active_world_size) == ("active", 0, 2)
    assert (process.shard, process.rank, ctx.terminated_ranks) == (0, 0, set())


def test_a_rank_that_the_others_terminated_does_not_come_back() -> None:
    calls = Callables(Process(2, Config()), MODES, GiveUp)
    with pytest.raises(NvrxError, match="terminated by the others"):
        calls.rank_assignment(Ctx(State(rank=1, world_size=2), {1}))


def test_losses_beyond_the_limit_end_the_process_with_the_reason() -> None:
    process = Process(1, Config.load({"max_restarts": 2}))
    calls = Callables(process, MODES, GiveUp)
    calls.rank_assignment(Ctx(State(rank=0, world_size=1)))
    for iteration in range(3):
        calls.initialize(State(rank=0, world_size=1, iteration=iteration))
    with pytest.raises(GiveUp, match="more than max_restarts = 2"):
        calls.initialize(State(rank=0, world_size=1, iteration=3))


def test_finalize_lets_go_of_groups_and_keeps_weights() -> None:
    process, freed = Process(1, Config()), []
    process.on_lost = lambda: freed.append("lost")
    process.communicators.add(SimpleNamespace(revoke=lambda: freed.append("comm")))
    weights = process.kept.once("weights", 0, object)
    Callables(process, MODES, GiveUp).finalize(State(rank=0, world_size=1))
    assert freed == ["comm", "lost"]
    assert process.kept.once("weights", 0, object) is weights
    assert process.communicators.revoke() == 0


def test_what_failed_to_load_is_not_kept_and_another_shards_is_let_go() -> None:
    kept = Kept()
    with pytest.raises(OSError):
        kept.once("weights", 0, lambda: Path("/nonexistent").read_text())
    one = kept.once("weights", 1, object)
    kept.once("weights", 0, object)
    kept.keep_only(1)
    assert kept.once("weights", 1, object) is one
    assert kept.loads == 2


@given(st.floats(0.01, 1000), st.floats(0.001, 1000))
def test_the_wrappers_times_keep_nvrxs_own_rules_or_are_refused(hang: float, tick: float) -> None:
    try:
        t = times(hang, tick)
    except ConfigError:
        assert tick * 4 > hang
        return
    assert t["soft_timeout"] < t["hard_timeout"] < t["barrier_timeout"]
    assert t["heartbeat_timeout"] < t["barrier_timeout"]
    assert t["heartbeat_interval"] < t["heartbeat_timeout"]
    for name in (
        "monitor_thread_interval",
        "monitor_process_interval",
        "progress_watchdog_interval",
    ):
        assert t[name] < t["soft_timeout"]
    assert t["monitor_process_interval"] < t["heartbeat_timeout"]
