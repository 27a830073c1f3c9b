"""Behind a loss an expert-parallel engine makes itself ready for the next one: maps are foreseen, copies come back, and a rank that returns is filled.

Real ranks over gloo, every token judged by the single process. One engine of four ranks, in which any loss leaves experts with one copy.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.cli.models import tiny_moe  # noqa: E402
from dynamo_gpu_ft.engines.reference import shape  # noqa: E402
from dynamo_gpu_ft.engines.reference.experts.routes import Map  # noqa: E402
from dynamo_gpu_ft.engines.reference.experts.slots import expert_bytes  # noqa: E402
from dynamo_gpu_ft.events import StepDone  # noqa: E402
from dynamo_gpu_ft.experts.ahead import uncovered  # noqa: E402
from dynamo_gpu_ft.experts.base import Aim  # noqa: E402
from tests.engines.expert_world import POINTS, Drill, Fault, Oracle, judge  # noqa: E402

RANKS, BUDGET = 4, 6


def tight(model: Path) -> Map:
    """Pairs of ranks hold the same experts, and the slots that three ranks would need for two copies of all are full of one expert."""
    found = shape.read(model)
    own = found.experts // 2
    slots = own + own // 2
    rows = [
        [e for rank in range(RANKS) for e in (*range(rank // 2 * own, rank // 2 * own + own), *[layer % found.experts] * (own // 2))]
        for layer in range(found.layers)
    ]  # fmt: skip
    return Map(found.experts, slots, rows)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(tiny_moe())


@pytest.fixture(scope="module")
def drill(oracle: Oracle) -> Iterator[Drill]:
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = Path(tempfile.mkdtemp(prefix="gft-test-", dir=place))
    homes, size = tight(tiny_moe()), expert_bytes(shape.read(tiny_moe()), torch.float32)
    with Drill(
        tiny_moe(),
        folder,
        ep=RANKS,
        slots=homes.slots,
        name="copies",
        scrub=-1,
        placement=homes,
        budget_bytes=BUDGET * size,
    ) as made:
        assert made.engine.planning.aim == Aim()
        assert made.engine.settle(60)
        yield made
    shutil.rmtree(folder, ignore_errors=True)


def lose(drill: Drill, oracle: Oracle, *faults: Fault, instant: bool, dead: set[int], **run: Any) -> None:  # fmt: skip
    """A run with these faults, judged, and brought to rest."""
    note = str(faults)
    report = drill.run(1, faults, **{"count": 3, "tokens": 10, **run})
    judge(oracle, report, instant=instant, note=note)
    assert {death.shard for death in report.deaths} == dead, note
    assert drill.engine.settle(60), note
    assert drill.engine.covered, note


def twice(point: str, shard: int) -> list[Any]:
    ordinary = (point, shard) == ("expert", 1)
    return [pytest.param(point, shard, marks=[] if ordinary else pytest.mark.long)]


@pytest.mark.parametrize(
    ("point", "shard"), [c for p in POINTS[:3] for s in range(RANKS) for c in twice(p, s)]
)
def test_a_second_kill_is_survived_at_once_once_copies_are_there_again(
    drill: Drill, oracle: Oracle, point: str, shard: int
) -> None:
    twin, before = shard ^ 1, len(drill.engine.mending.log)
    now = drill.engine.group.map.placement
    lose(drill, oracle, Fault("kill", point, shard, step=3), instant=True, dead={shard})
    assert {stage for stage, _ in drill.engine.mending.log[before:]} == {"rebalance"}
    assert drill.survived() == RANKS - 1
    assert uncovered(now.without([shard, twin])), (
        "without new copies this one would uncover experts"
    )
    lose(drill, oracle, Fault("kill", point, twin, step=3), instant=True, dead={twin})
    drill.whole()


def test_survivors_follow_a_loss_by_one_write_of_what_was_foreseen_and_so_the_next_one(
    drill: Drill, oracle: Oracle
) -> None:
    # Entry 0 is the map without a loss, 1 + 2 i the masked one of the i-th loss that is foreseen.
    lose(drill, oracle, Fault("kill", "expert", 2, step=3), instant=True, dead={2})
    assert drill.engine.group.facts["entries"] == {0: 5, 1: 5, 3: 5}
    lose(drill, oracle, Fault("kill", "random", 1, step=3), instant=True, dead={1})
    assert drill.engine.group.facts["entries"] == {0: 3, 3: 3}, "of those left: 0, 1, 3"
    drill.whole()


def among(point: str, shard: int) -> list[Any]:
    ordinary = (point, shard) in (("refill", 0), ("commit", 3))
    return [pytest.param(point, shard, marks=[] if ordinary else pytest.mark.long)]


@pytest.mark.parametrize(
    ("point", "shard"), [c for p in POINTS[3:] for s in range(RANKS) for c in among(p, s)]
)
def test_a_kill_while_copies_come_back_is_survived_too(
    drill: Drill, oracle: Oracle, point: str, shard: int
) -> None:
    # The other one's twin has most to bring, and of what both had there may be no copy for a while.
    first = Fault("kill", "dispatch", (shard + 2) % RANKS, step=3)
    second = Fault("kill", point, shard, step=2, times=2)
    lose(drill, oracle, second, first, instant=False, dead={first.shard, shard}, tokens=20)
    drill.whole()


def test_a_copy_that_is_damaged_between_landing_and_commit_is_never_routed_to(
    drill: Drill, oracle: Oracle
) -> None:
    engine = drill.engine
    places = range(engine.shape.layers * engine.options.slots)
    spoils = [Fault("spoil-landing", "", s, step=0, times=p) for s in (0, 1, 2) for p in places]
    before = len(engine.mending.refused)
    lose(drill, oracle, *spoils, Fault("kill", "combine", 3, step=3), instant=True, dead={3})
    refused = engine.mending.refused[before:]
    assert refused
    assert all("what had landed was damaged" in why for why in refused)
    assert drill.survived() == RANKS - 1
    drill.whole()


def test_a_rank_that_returns_is_filled_behind_the_steps_in_rounds_of_the_budget(
    drill: Drill, oracle: Oracle
) -> None:
    engine, begun = drill.engine, len(drill.events)
    lose(drill, oracle, Fault("kill", "combine", 0, step=3), instant=True, dead={0})
    before = len(engine.mending.log)
    engine.bring_back(0)
    while not engine.group.ready:
        engine.group.look_at_returning()
    judge(oracle, drill.run(1, count=3, tokens=10), instant=True)
    assert set(engine.crew.members) == set(range(RANKS))
    drill.back()
    brought = engine.mending.log[before:]
    assert {stage for stage, _ in brought} == {"rebalance"}
    assert not any(-1 in engine.group.map.row_of(0, layer) for layer in range(engine.shape.layers))
    rounds = [e for e in drill.events[begun:] if isinstance(e, StepDone) and e.step == "rebalance"]
    assert len(rounds) >= len(brought) / BUDGET
    drill.whole()
