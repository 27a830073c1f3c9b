"""Expert parallelism of the reference engine: the bits of a single process whatever the placement, and no wrong token when ranks are lost."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.cli.models import tiny_llama  # noqa: E402
from dynamo_gpu_ft.engines.reference.experts.engine import ExpertEngine  # noqa: E402
from dynamo_gpu_ft.engines.reference.experts.routes import Map  # noqa: E402
from dynamo_gpu_ft.engines.reference.options import Options  # noqa: E402
from dynamo_gpu_ft.errors import ConfigError  # noqa: E402
from dynamo_gpu_ft.recovery import processes  # noqa: E402
from tests.conftest import SEED  # noqa: E402
from tests.engines.expert_world import POINTS, Drill, Fault, Oracle, judge, spread  # noqa: E402
from tests.engines.reference_world import tiny_mixtral  # noqa: E402

LAYERS, EXPERTS = 4, 8


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    made = Path(tempfile.mkdtemp(prefix="gft-test-", dir=place))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny_mixtral(folder / "model", experts=EXPERTS)


@pytest.fixture(scope="module")
def oracle(model: Path) -> Oracle:
    return Oracle(model)


@pytest.fixture(scope="module")
def instant(model: Path, folder: Path) -> Iterator[Drill]:
    """Four ranks with two copies of everything."""
    with Drill(model, folder, ep=4, slots=4, name="instant") as drill:
        yield drill


@pytest.fixture(scope="module")
def refill(model: Path, folder: Path) -> Iterator[Drill]:
    """Four ranks with four spare slots: a loss uncovers experts, and there is room for them."""
    with Drill(model, folder, ep=4, slots=3, name="refill", scrub=-1) as drill:
        yield drill


@pytest.mark.parametrize("point", ["step", "dispatch", "expert", "combine", "reply"])
def test_with_two_copies_a_killed_rank_costs_no_token_and_waits_for_no_weights(
    instant: Drill, oracle: Oracle, point: str
) -> None:
    shard = len(point) % 4
    before = len(instant.engine.mending.log)
    report = instant.run(1, [Fault("kill", point, shard, step=4)])
    judge(oracle, report, instant=True)
    assert [death.shard for death in report.deaths] == [shard]
    assert report.pids == dict.fromkeys({0, 1, 2, 3} - {shard}, True)
    assert {stage for stage, _ in instant.engine.mending.log[before:]} <= {"rebalance"}
    instant.whole()


@pytest.mark.parametrize("kind", ["stop", "segv", "raise"])
def test_a_rank_that_hangs_or_fails_is_left_behind_too(
    instant: Drill, oracle: Oracle, kind: str
) -> None:
    report = instant.run(2, [Fault(kind, "expert", 2, step=3)])
    judge(oracle, report, instant=True)
    assert [death.shard for death in report.deaths] == [2]
    instant.whole()


def test_a_rank_that_comes_back_while_others_serve_changes_no_token(
    instant: Drill, oracle: Oracle
) -> None:
    instant.run(3, [Fault("kill", "expert", 1, step=2)])
    instant.engine.bring_back(1)
    epoch = instant.engine.group.epoch
    report = instant.run(4, tokens=40)
    judge(oracle, report, instant=True)
    instant.whole()
    assert set(instant.engine.crew.members) == {0, 1, 2, 3}
    assert instant.engine.group.epoch > epoch


def test_a_rank_that_dies_while_it_comes_back_is_brought_back_again(
    instant: Drill, oracle: Oracle
) -> None:
    instant.run(3, [Fault("kill", "expert", 1, step=2)])
    instant.engine.bring_back(1)
    process = instant.engine.group.returning[1]
    while not process.pid:
        process.look()
    instant.hurt(Fault("kill", "random", 1))
    judge(oracle, instant.run(5), instant=True)
    assert 1 not in instant.engine.crew.members
    instant.whole()
    judge(oracle, instant.run(6), instant=True)


def test_both_ranks_with_copies_lost_at_once_are_refilled_on_the_others(
    instant: Drill, oracle: Oracle
) -> None:
    homes = instant.engine.homes
    twin = next(s for s in (0, 2, 3) if set(homes.row_of(s, 0)) == set(homes.row_of(1, 0)))
    report = instant.run(7, [Fault("kill", "random", 1, 3), Fault("kill", "random", twin, 3)])
    judge(oracle, report, instant=False)
    assert report.masked
    assert instant.engine.settle(20)
    assert instant.engine.covered
    judge(oracle, instant.run(8), instant=True)
    instant.whole()


@pytest.mark.parametrize(
    ("point", "shard"),
    [
        pytest.param(point, 1 + (index + other) % 2, marks=[pytest.mark.long] * other)
        for other in (0, 1)
        for index, point in enumerate(POINTS)
    ],
)
def test_with_one_copy_the_router_is_masked_until_experts_are_refilled(
    refill: Drill, oracle: Oracle, point: str, shard: int
) -> None:
    faults = [Fault("kill", point, shard, step=3, times=2)]
    if point in ("refill", "commit"):
        # Whoever brings the lost experts dies of it too; then there is no room for all of them, and the rest stays masked.
        others = {0, 3}  # of those left they have slots to spare, and the least to do
        faults = [Fault("kill", point, each, step=3) for each in others]
        faults.append(Fault("kill", "dispatch", shard, step=3, times=2))
    report = refill.run(9, faults)
    judge(oracle, report, instant=False)
    assert shard in {death.shard for death in report.deaths}
    assert len(report.deaths) > len(faults) - 2
    assert report.masked
    assert refill.engine.settle(20)
    if len(report.deaths) == 1:
        assert refill.engine.covered
        judge(oracle, refill.run(10), instant=True)
    refill.whole()
    judge(oracle, refill.run(11), instant=True)


def test_a_damaged_slot_is_never_routable_and_its_step_is_computed_again(
    refill: Drill, oracle: Oracle
) -> None:
    for place in (0, 4, 8):
        before = len(refill.engine.mending.log)
        report = refill.run(12, [Fault("spoil", "", 2, step=4, times=place)])
        judge(oracle, report, instant=False)
        assert not report.deaths
        assert refill.engine.settle(20)
        assert refill.engine.covered
        assert len(refill.engine.mending.log) == before + 1
        assert refill.engine.group.map.table == refill.engine.homes.table
    judge(oracle, refill.run(13), instant=True)


@pytest.mark.parametrize("point", ["step", "reply"])
def test_slots_damaged_in_a_step_that_another_rank_fails_in_are_found_by_the_recovery(
    instant: Drill, oracle: Oracle, point: str
) -> None:
    # At "step" nobody gets as far as digesting them, at "reply" the answer that tells of them may be lost.
    spoils = [Fault("spoil", "", 2, step=4, times=place) for place in range(LAYERS * 4)]
    report = instant.run(21, [*spoils, Fault("raise", point, 1, step=4)])
    judge(oracle, report, instant=False)
    assert [death.shard for death in report.deaths] == [1]
    assert all("bytes were damaged" in why for why in instant.engine.mending.refused[-LAYERS * 4 :])
    instant.whole()
    judge(oracle, instant.run(22), instant=True)


def test_experts_damaged_on_their_way_into_a_rank_that_came_back_are_brought_again(
    instant: Drill, oracle: Oracle
) -> None:
    instant.run(3, [Fault("kill", "expert", 1, step=2)])
    instant.engine.bring_back(1)
    while 1 not in instant.engine.group.ready:
        instant.engine.group.look_at_returning()
    for place in range(LAYERS * 4):
        instant.hurt(Fault("spoil-landing", "", 1, times=place))
    before = len(instant.engine.mending.refused)
    judge(oracle, instant.run(23), instant=True)
    instant.back()
    refused = instant.engine.mending.refused[before:]
    assert any("shard 1" in why and "what had landed was damaged" in why for why in refused)
    instant.whole()
    judge(oracle, instant.run(24), instant=True)


def test_an_expert_damaged_between_landing_and_commit_is_not_committed(
    refill: Drill, oracle: Oracle
) -> None:
    # Whichever of these brings a lost expert: the first that lands on it is damaged before it is committed.
    spoils = [
        Fault("spoil-landing", "", shard, step=0, times=place)
        for shard in (0, 2, 3)
        for place in range(LAYERS * 3)
    ]
    report = refill.run(14, [*spoils, Fault("kill", "dispatch", 1, step=2)])
    judge(oracle, report, instant=False)
    assert refill.engine.settle(20)
    assert refill.engine.covered
    refused = refill.engine.mending.refused
    assert any("what had landed was damaged" in why for why in refused)
    judge(oracle, refill.run(15), instant=True)
    refill.whole()


def test_damaged_host_copies_are_refused_and_the_checkpoint_is_read(
    model: Path, folder: Path, oracle: Oracle
) -> None:
    with Drill(model, folder, ep=4, slots=3, name="forged") as drill:
        for path in folder.glob("*forged.weights-*"):
            data = bytearray(path.read_bytes())
            for at in range(20_000, len(data), 20_000):  # each tensor is larger
                data[at] ^= 4
            path.write_bytes(bytes(data))
        report = drill.run(16, [Fault("kill", "expert", 1, step=3)])
        judge(oracle, report, instant=False)
        assert drill.engine.settle(20)
        assert drill.engine.covered
        log = drill.engine.mending.log
        assert {each.source for stage, each in log if stage == "refill"} == {"checkpoint"}


def test_any_placement_gives_the_same_tokens_and_losses_down_to_one_rank_too(
    model: Path, folder: Path, oracle: Oracle
) -> None:
    random_ = random.Random(SEED)
    table = []
    for _ in range(LAYERS):
        row = [*range(EXPERTS), *(random_.randrange(EXPERTS) for _ in range(5 * 8 - EXPERTS))]
        random_.shuffle(row)
        table.append(row)
    placement = Map(EXPERTS, 8, table)
    with Drill(model, folder, ep=5, slots=8, name="any", placement=placement) as drill:
        judge(oracle, drill.run(17), instant=True, note=f"seed {SEED}")
        for shard in (2, 4, 0, 1):
            report = drill.run(18 + shard, [Fault("kill", "random", shard, step=2)], count=3)
            judge(oracle, report, instant=False, note=f"seed {SEED}, {shard}")
            assert drill.engine.settle(20)
            assert drill.engine.covered
        judge(oracle, drill.run(17), instant=True)
        tag = drill.engine._tag
    assert not processes.find(tag)


def test_the_whole_engine_restarted_gives_the_same_tokens(
    model: Path, folder: Path, oracle: Oracle
) -> None:
    with Drill(model, folder, ep=4, slots=4, name="restart", in_place=False) as drill:
        report = drill.run(20, [Fault("kill", "combine", 3, step=4)])
        judge(oracle, report, instant=True)
        assert not any(report.pids.values())


def test_a_model_without_experts_or_with_too_few_slots_is_refused(model: Path) -> None:
    for path, slots in ((tiny_llama(), 4), (model, 1)):
        with pytest.raises(ConfigError, match="cannot be expert parallel"):
            ExpertEngine(Options(model=str(path), ep=4, slots=slots))


def schedule(random_: random.Random, ep: int) -> list[Fault]:
    """A loss while serving, then up to two faults at any point of any rank; not the last rank, so that somebody is left."""
    point = random_.choice((*POINTS[:3], "step", "reply", "random"))
    kind = "kill" if point == "random" else random_.choice(("kill", "kill", "segv", "raise"))
    step, times = random_.randrange(1, 7), random_.randrange(1, 4)
    found = [Fault(kind, point, random_.randrange(ep - 1), step, times)]
    for _ in range(random_.choice((0, 0, 1, 1, 2))):
        kind = random_.choice(("kill", "kill", "kill", "segv", "raise", "spoil", "spoil-landing"))
        point = random_.choice(
            (*POINTS, "step", "reply", "canary", "join", "fence", "restore", "random")
        )
        if point == "random":
            kind = "kill"
        times = random_.randrange(12) if kind.startswith("spoil") else random_.randrange(1, 6)
        found.append(Fault(kind, point, random_.randrange(ep - 1), random_.randrange(1, 12), times))
    return found


def series(model: Path, folder: Path, oracle: Oracle, ep: int, slots: int, runs: int) -> None:
    random_ = random.Random(f"{SEED}:{ep}:{slots}")
    lost, masked, pauses = 0, 0, list[float]()
    with Drill(model, folder, ep=ep, slots=slots, name=f"series{ep}-{slots}", scrub=-1) as drill:
        for run in range(runs):
            faults = schedule(random_, ep)
            note = f"seed {SEED}, run {run} of ep {ep} x {slots}: {faults}"
            drill.engine._come_back = random_.random() < 0.5
            report = drill.run(run % 5, faults, tokens=10, count=ep + 1)
            judge(oracle, report, instant=False, note=note)
            assert report.longest_s < 10, note
            lost, masked = lost + len(report.deaths), masked + report.masked
            pauses += [report.pause_s] if report.deaths else []
            drill.disarm()
            drill.whole()
            if run % 5 == 4:
                judge(oracle, drill.run(run % 7, count=3), instant=True, note=note)
    print(f"{ep} ranks x {slots}: {runs} runs, {lost} losses, {masked} masked, seed {SEED}")
    print(f"next token: {spread(pauses)}")
    assert lost >= runs // 2


@pytest.mark.timeout(200)
def test_some_random_schedules_give_the_oracles_tokens(
    model: Path, folder: Path, oracle: Oracle
) -> None:
    series(model, folder, oracle, 4, 3, 6)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("ep", "slots"), [(4, 4), (4, 3), (6, 3), (8, 2)])
def test_two_hundred_random_schedules_give_the_oracles_tokens(
    model: Path, folder: Path, oracle: Oracle, ep: int, slots: int
) -> None:
    series(model, folder, oracle, ep, slots, 52)
