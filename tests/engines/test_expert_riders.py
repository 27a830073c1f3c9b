"""The step that validates a recovery carries the requests' next rows beside the canary: tokens that count once the canary was heard, and no sooner."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.engines.reference.experts.engine import ExpertEngine  # noqa: E402
from dynamo_gpu_ft.engines.reference.options import Options  # noqa: E402
from dynamo_gpu_ft.errors import ConfigError  # noqa: E402
from tests.engines.expert_streams import Streams  # noqa: E402
from tests.engines.expert_world import Drill, Fault, Oracle  # noqa: E402
from tests.engines.reference_world import tiny_mixtral  # noqa: E402

VICTIM = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mixtral(tmp_path_factory.mktemp("riders"), experts=8)


@pytest.fixture(scope="module")
def oracle(model: Path) -> Oracle:
    return Oracle(model)


@pytest.fixture
def drill(model: Path, memory_folder: Path) -> Iterator[Drill]:
    """Four ranks with two copies of everything, and no KV stored: a lost rank's requests begin anew."""
    with Drill(model, memory_folder, ep=4, slots=4, name="riders", snapshot=False) as made:
        yield made


def test_survivors_requests_have_their_next_token_from_the_step_that_validates_the_recovery(
    drill: Drill, oracle: Oracle
) -> None:
    streams = Streams(drill)
    lost = streams.of(VICTIM)
    drill.hurt(Fault("kill", "expert", VICTIM))
    had = streams.recovers()
    assert lost
    assert had == set(streams.got) - lost
    streams.to_the_end(oracle)


def test_a_rank_that_comes_back_costs_nobody_a_step(drill: Drill, oracle: Oracle) -> None:
    drill.run(2, [Fault("kill", "expert", VICTIM)])
    streams = Streams(drill)
    engine = drill.engine
    engine.bring_back(VICTIM)
    until = time.monotonic() + 60
    while VICTIM not in engine.group.ready and time.monotonic() < until:
        engine.group.look_at_returning()
    assert streams.recovers() == set(streams.got)
    assert VICTIM in engine.crew.members
    streams.to_the_end(oracle)


@pytest.mark.parametrize("point", ["canary", "dispatch", "reply"])
def test_a_second_rank_lost_in_that_step_costs_its_tokens_and_no_stream(
    drill: Drill, oracle: Oracle, point: str
) -> None:
    streams = Streams(drill)
    other = 2
    lost = streams.of(VICTIM) | streams.of(other)
    # The other's own count of the step begins with the one that breaks: at "dispatch" it is in a layer of the next one.
    times = {"canary": 1, "dispatch": drill.engine.shape.layers + 1, "reply": 1}[point]
    drill.hurt(Fault("kill", "step", VICTIM))
    drill.hurt(Fault("kill", point, other, times=times))
    had = streams.recovers()
    while drill.engine.crew.members.keys() & {VICTIM, other}:
        had = streams.recovers()
    assert had <= set(streams.got) - lost
    streams.to_the_end(oracle)


def test_no_token_leaves_when_the_canary_is_not_what_it_was(drill: Drill) -> None:
    streams = Streams(drill)
    group = drill.engine.group
    assert group.song is not None
    group.song = msgspec.structs.replace(group.song, logits=b"\0" * 16)
    before = {name: list(tokens) for name, tokens in streams.got.items()}
    drill.hurt(Fault("kill", "step", VICTIM))
    while not drill.engine.failed:
        assert not streams.step()
    assert "canary" in drill.engine.failed
    assert streams.got == before


def test_slots_damaged_under_that_step_void_it_and_it_is_computed_again(
    drill: Drill, oracle: Oracle
) -> None:
    drill.engine._scrub = drill.engine.group._scrub = -1  # every step vouches for all its bytes
    streams = Streams(drill)
    for place in range(drill.engine.shape.layers * 4):
        drill.hurt(Fault("spoil", "", 2, times=place))
    drill.hurt(Fault("kill", "step", VICTIM))
    streams.recovers()
    assert any("damaged" in why for why in drill.engine.mending.refused)
    streams.to_the_end(oracle)


def test_who_waits_for_the_engine_to_be_whole_loses_no_token_by_it(
    drill: Drill, oracle: Oracle
) -> None:
    streams = Streams(drill)
    drill.hurt(Fault("kill", "random", VICTIM))
    drill.engine.bring_back(VICTIM)
    assert drill.engine.settle(60)
    assert drill.engine.busy
    streams.to_the_end(oracle)


def test_blocks_of_one_token_have_no_place_for_the_canary(model: Path) -> None:
    with pytest.raises(ConfigError, match="at least two tokens"):
        ExpertEngine(Options(model=str(model), ep=4, slots=4, block=1))
