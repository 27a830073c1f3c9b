"""KV of expert-parallel ranks is stored behind steps that count; a lost rank's requests go on elsewhere from what is stored and whole, and no token changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.events import NotProtectedEvent  # noqa: E402
from tests.engines.expert_streams import Streams  # noqa: E402
from tests.engines.expert_world import Drill, Fault, Oracle, judge  # noqa: E402
from tests.engines.reference_world import BLOCK, tiny_mixtral  # noqa: E402

VICTIM = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mixtral(tmp_path_factory.mktemp("kv"), experts=8)


@pytest.fixture(scope="module")
def oracle(model: Path) -> Oracle:
    return Oracle(model)


@pytest.fixture
def drill(model: Path, memory_folder: Path) -> Iterator[Drill]:
    """Four ranks with two copies of everything."""
    with Drill(model, memory_folder, ep=4, slots=4, name="kv") as made:
        assert made.engine.group.not_protected == dict.fromkeys(range(4), "")
        yield made


def facts(drill: Drill) -> dict[str, Any]:
    return drill.engine.group.facts


def test_every_stream_has_its_next_token_from_the_step_that_validates_the_recovery(
    drill: Drill, oracle: Oracle
) -> None:
    streams = Streams(drill)
    for _ in range(4):
        streams.step()
    lost = streams.of(VICTIM)
    known = {r.id: r.computed for r in drill.engine.traffic.open(VICTIM)}
    drill.hurt(Fault("kill", "expert", VICTIM))
    assert streams.recovers() == set(streams.got)
    assert lost
    # Of each, the newest token's KV was to be stored before the step that was lost, and may have been or not.
    assert 0 <= sum(known.values()) - facts(drill)["restored_tokens"] <= len(lost)
    streams.to_the_end(oracle)


def test_without_tails_whole_blocks_are_restored(
    model: Path, memory_folder: Path, oracle: Oracle
) -> None:
    with Drill(model, memory_folder, ep=4, slots=4, name="blocks", tail_every=0) as drill:
        report = drill.run(2, [Fault("kill", "expert", 1, step=9)], tokens=30)
        judge(oracle, report, instant=True)
        restored = facts(drill)["restored_tokens"]
        assert restored > 0
        assert restored % BLOCK == 0


@pytest.mark.parametrize("point", ["restore", "join", "canary"])
def test_who_takes_over_is_lost_too_and_the_next_one_goes_on_from_what_is_stored(
    drill: Drill, oracle: Oracle, point: str
) -> None:
    streams = Streams(drill)
    for _ in range(3):
        streams.step()
    twice = streams.of(VICTIM)
    other = 2  # has the fewest requests, so it is asked first, and no copies that only the victim has too
    drill.hurt(Fault("kill", "step", VICTIM))
    drill.hurt(Fault("kill", point, other))
    while drill.engine.crew.members.keys() & {VICTIM, other}:
        streams.step()
    assert set(drill.engine.crew.members) == {0, 3}
    begun = {name: drill.engine.traffic.history[name][-1].start for name in twice}
    assert all(start > 0 for start in begun.values()), begun
    streams.to_the_end(oracle)


def test_a_request_goes_from_rank_to_rank_and_takes_its_kv_along(
    drill: Drill, oracle: Oracle
) -> None:
    streams, moves = Streams(drill, tokens=40), 0
    for victim in (3, 2, 1, 0, 3, 2):
        for _ in range(2):
            streams.step()
        on = streams.of(victim)
        drill.hurt(Fault("kill", "step", victim))
        streams.recovers()
        assert facts(drill)["restored_tokens"] > 0 or not on, victim
        moves += len(on)
        drill.engine.bring_back(victim)
        assert drill.engine.settle(60)
    assert moves > len(streams.got), "some have moved twice"
    streams.to_the_end(oracle)


def test_a_rank_on_its_way_back_is_the_only_one_that_writes_in_its_name(
    drill: Drill, oracle: Oracle
) -> None:
    engine, streams = drill.engine, Streams(drill, tokens=40)
    for _ in range(3):
        streams.step()
    drill.hurt(Fault("kill", "step", VICTIM))
    streams.recovers()
    engine.bring_back(VICTIM)
    until = time.monotonic() + 60
    while VICTIM not in engine.group.ready and time.monotonic() < until:
        engine.group.look_at_returning()
    # Who took over has stored nothing yet, and is lost too.
    drill.hurt(Fault("kill", "random", 2))
    while not engine.crew.lost and time.monotonic() < until:
        engine.crew.look()
    streams.recovers()
    assert "its rank is on its way back" in facts(drill)["not_restored"]
    engine.bring_back(2)
    assert engine.settle(60)
    streams.ask(8, tokens=20)
    assert streams.of(VICTIM)
    drill.hurt(Fault("kill", "step", VICTIM))
    streams.recovers()
    assert facts(drill)["restored_tokens"] > 0
    streams.to_the_end(oracle)


def test_damaged_kv_is_refused_and_computed_again(
    drill: Drill, oracle: Oracle, memory_folder: Path
) -> None:
    streams = Streams(drill)
    for _ in range(3):
        streams.step()
    [arena] = memory_folder.glob("*kv-stage0.arena")
    data = bytearray(arena.read_bytes())
    for at in range(7 << 18, len(data), 1024):  # behind the ledger and the index
        data[at] ^= 1
    with arena.open("r+b") as file:
        file.write(data)
    drill.hurt(Fault("kill", "step", VICTIM))
    streams.recovers()
    assert facts(drill)["restored_tokens"] == 0
    assert facts(drill)["not_restored"]
    streams.to_the_end(oracle)


def test_a_step_that_does_not_count_leaves_no_kv_behind(drill: Drill, oracle: Oracle) -> None:
    """Rows met damaged experts: their KV is wrong. The same blocks have the right one when the step was computed again, and another name for it
    there is not."""
    drill.engine._scrub = drill.engine.group._scrub = -1
    streams = Streams(drill, tokens=60)
    for _ in range(4):
        for place in range(drill.engine.shape.layers * 4):
            drill.hurt(Fault("spoil", "", 2, times=place))
        assert not streams.step(), "the step is void"
        for _ in range(2):
            streams.step()
        drill.hurt(Fault("kill", "step", VICTIM))
        streams.recovers()
        drill.engine.bring_back(VICTIM)
        assert drill.engine.settle(60)
        if not drill.engine.busy:
            break
        streams.step()
    streams.to_the_end(oracle)


def test_kv_of_masked_steps_is_not_taken_for_that_of_others(
    model: Path, memory_folder: Path, oracle: Oracle
) -> None:
    """The same prompts again and again, some of them computed under a masked router: equal tokens, other KV."""
    with Drill(model, memory_folder, ep=4, slots=3, name="masked", scrub=-1) as drill:
        for shard in (1, 2):
            report = drill.run(7, [Fault("kill", "dispatch", shard, step=3)], tokens=20)
            judge(oracle, report, instant=False)
            assert report.masked
            drill.whole()
            report = drill.run(7, [Fault("kill", "reply", 3 - shard, step=12)], tokens=20)
            judge(oracle, report, instant=False)
            drill.whole()


def test_requests_that_lost_their_blocks_to_others_are_stored_anew(
    model: Path, memory_folder: Path, oracle: Oracle
) -> None:
    with Drill(model, memory_folder, ep=2, slots=8, name="few", blocks=10) as drill:
        report = drill.run(3, [Fault("kill", "expert", 1, step=10)], tokens=40, count=8)
        judge(oracle, report, instant=True)


def test_without_an_arena_the_engine_serves_on_and_says_why(
    model: Path, memory_folder: Path, oracle: Oracle
) -> None:
    # Room for two blocks: every store evicts another one or is refused.
    with Drill(model, memory_folder, ep=4, slots=4, name="small", arena_bytes="2MiB") as drill:
        judge(oracle, drill.run(4, [Fault("kill", "expert", 1)]), instant=True)
    (memory_folder / "dynamo_gpu_ft-none-stage0.arena").mkdir()
    with Drill(model, memory_folder, ep=4, slots=4, name="none") as drill:
        assert all("none-stage0.arena" in why for why in drill.engine.group.not_protected.values())
        [told] = {e.reason for e in drill.events if isinstance(e, NotProtectedEvent)}
        assert "none-stage0.arena" in told
        judge(oracle, drill.run(4, [Fault("kill", "expert", 1)]), instant=True)
        assert facts(drill)["restored_tokens"] == 0
