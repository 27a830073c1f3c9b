"""The reference engine loses a rank, by every kind of fault at every phase, and goes on with the same tokens and the same survivors."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from dynamo_gpu_ft.cli.models import tiny_llama  # noqa: E402
from dynamo_gpu_ft.engines.reference.sampling import Sampling  # noqa: E402
from dynamo_gpu_ft.errors import GpuFtError, RecoveryFailed  # noqa: E402
from dynamo_gpu_ft.recovery import processes  # noqa: E402
from tests.engines.reference_drill import DEADLINE_S, KINDS, Drill, Fault, prompts  # noqa: E402
from tests.engines.reference_world import greedy_of_transformers, tiny_mixtral  # noqa: E402

#: To the others a crash looks as a kill does.
SOME_KINDS = [pytest.param(k, marks=[pytest.mark.long] if k == "segv" else []) for k in KINDS]

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(
        tempfile.mkdtemp(prefix="gft-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    )
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[Drill]:
    """Two ranks in tensor parallel, one standby; used by many drills one after the other."""
    with Drill(tiny_llama(), folder, tp=2, standbys=1, arena_name="pair") as drill:
        yield drill


@pytest.fixture(scope="module")
def undisturbed(pair: Drill) -> list[list[int]]:
    return pair.run(1).tokens


def test_served_tokens_are_those_of_transformers(pair: Drill, undisturbed: list[list[int]]) -> None:
    for prompt, tokens in zip(prompts(1), undisturbed, strict=True):
        assert tokens == greedy_of_transformers(tiny_llama(), prompt, 24)


def _same(report, undisturbed: list[list[int]], *, lost: set[int]) -> None:
    assert not report.failed
    assert report.tokens == undisturbed
    assert {e.shard for e in report.deaths} == lost
    assert all(kept for shard, kept in report.kept.items() if shard not in lost)
    assert not any(kept for shard, kept in report.kept.items() if shard in lost)
    assert report.longest_step_s < DEADLINE_S


@pytest.mark.parametrize("phase", ["prefill", "decode", "collective"])
@pytest.mark.parametrize("kind", SOME_KINDS)
def test_a_rank_lost_while_serving_is_replaced(
    pair: Drill, undisturbed: list[list[int]], kind: str, phase: str
) -> None:
    shard = KINDS.index(kind) % 2
    _same(pair.run(1, [Fault(kind, phase, shard)]), undisturbed, lost={shard})


@pytest.mark.parametrize("phase", ["quiesce", "plan", "rebuild", "validate", "commit"])
@pytest.mark.parametrize("kind", SOME_KINDS)
def test_a_second_rank_lost_during_the_recovery_is_replaced_too(
    pair: Drill, undisturbed: list[list[int]], kind: str, phase: str
) -> None:
    report = pair.run(1, [Fault("kill", "decode", 1), Fault(kind, phase, 0)])
    _same(report, undisturbed, lost={0, 1})


@pytest.mark.parametrize("phase", ["validate", "commit"])
def test_a_replacement_lost_before_it_serves_is_replaced_again(
    pair: Drill, undisturbed: list[list[int]], phase: str
) -> None:
    report = pair.run(1, [Fault("kill", "decode", 1), Fault("kill", phase, 1)])
    _same(report, undisturbed, lost={1})
    assert len(report.deaths) == 2


def test_seeded_draws_are_the_same_whoever_dies(pair: Drill) -> None:
    how = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}
    wanted = pair.run(5, **how).tokens
    for shard in (0, 1):
        assert pair.run(5, [Fault("kill", "reply", shard, step=9)], **how).tokens == wanted
    assert wanted != pair.run(5).tokens


def test_a_condemned_rank_is_replaced_though_it_lives(
    pair: Drill, undisturbed: list[list[int]]
) -> None:
    old = pair.engine.crew.members[0].pid
    report = pair.run(1, condemned="XID 79: the GPU has fallen off the bus")
    assert report.tokens == undisturbed
    assert report.deaths[0].reason.startswith("XID 79")
    assert not Path(f"/proc/{old}").exists()


def test_only_the_lost_stage_loads_and_at_most_open_blocks_are_computed_again(folder: Path) -> None:
    with Drill(tiny_llama(), folder, tp=2, pp=2, standbys=1, arena_name="square") as drill:
        wanted = drill.run(2).tokens
        for shard in (3, 0):
            report = drill.run(2, [Fault("kill", "decode", shard, step=20)])
            _same(report, wanted, lost={shard})
            facts = drill.engine.group.facts
            assert list(facts["loads"]) == [shard]
            source, read, needed, _ = facts["loads"][shard]
            assert source == "neighbour"
            assert read <= 1.05 * needed
            assert facts["recomputed_tokens"] <= 3 * drill.engine.options.block + 3
            assert facts["kv_bytes"] > 0


def test_a_mixtral_recovers_without_snapshots_by_computing_again(
    folder: Path, tmp_path: Path
) -> None:
    model = tiny_mixtral(tmp_path)
    with Drill(model, folder, tp=2, arena_name="mixtral", snapshot=False) as drill:
        report = drill.run(3, [Fault("kill", "decode", 0)])
        assert report.tokens == [greedy_of_transformers(model, p, 24) for p in prompts(3)]
        assert drill.engine.group.facts["kv_bytes"] == 0


def test_damaged_neighbour_copies_and_snapshots_are_refused_and_the_tokens_stay_right(
    folder: Path,
) -> None:
    with Drill(tiny_llama(), folder, tp=2, arena_name="damaged") as drill:
        wanted = drill.run(4).tokens
        for path in folder.glob("dynamo_gpu_ft-damaged.weights-1"):
            data = bytearray(path.read_bytes())
            data[-1000] ^= 4
            path.write_bytes(bytes(data))
        arena = next(folder.glob("dynamo_gpu_ft-damaged-stage0.arena"))

        def spoil() -> None:
            with arena.open("r+b") as file:
                size = arena.stat().st_size
                for at in range(size // 4, size, 4096 * 3 + 17):
                    file.seek(at)
                    file.write(b"\xa5")

        names = [
            drill.engine.submit(p, Sampling(max_tokens=24), f"s{i}")
            for i, p in enumerate(prompts(4))
        ]
        outputs = {name: list[int]() for name in names}
        for step in range(10_000):
            if step == 16:
                spoil()
                os.kill(drill.engine.crew.members[1].pid, signal.SIGKILL)
            for output in drill.engine.step():
                assert output.token is not None
                outputs[output.request].append(output.token)
            if not drill.engine.busy:
                break
        assert list(outputs.values()) == wanted
        source, *_, refused = drill.engine.group.facts["loads"][1]
        assert source == "checkpoint"
        assert "damaged" in refused[0][1]


def test_the_whole_engine_restarted_keeps_its_requests_and_its_kv(folder: Path) -> None:
    with Drill(tiny_llama(), folder, tp=2, arena_name="restart", in_place=False) as drill:
        wanted = drill.run(6).tokens
        before = drill.addresses()
        report = drill.run(6, [Fault("kill", "decode", 0, step=14)])
        assert report.tokens == wanted
        assert not any(report.kept.values())
        assert len(before) == 2
        assert drill.engine.group.facts["kv_bytes"] > 0


def test_a_shard_that_keeps_dying_ends_in_failed_with_the_reason(folder: Path) -> None:
    with Drill(tiny_llama(), folder, tp=2, arena_name="dying", max_restarts=2) as drill:
        report = drill.run(7, [Fault("kill", "decode", 1), Fault("kill", "commit", 1)])
        assert "died 2 times" in report.failed
        with pytest.raises(RecoveryFailed, match="died 2 times"):
            drill.engine.submit([1, 2], Sampling())
        tag = drill.engine._tag
    assert not processes.find(tag)


def test_an_engine_that_is_closed_leaves_no_process(folder: Path) -> None:
    drill = Drill(tiny_llama(), folder, tp=2, standbys=1, arena_name="closed")
    tag = drill.engine._tag
    assert len(processes.find(tag)) >= 3
    os.kill(drill.engine.crew.members[0].pid, signal.SIGSTOP)
    drill.close()
    assert not processes.find(tag)


def test_requests_beyond_what_fits_wait_and_are_preempted_without_changing_a_token(
    folder: Path,
) -> None:
    wanted = [greedy_of_transformers(tiny_llama(), p, 40) for p in prompts(8, 6)]
    from dynamo_gpu_ft.engines.reference.driver import Engine
    from dynamo_gpu_ft.engines.reference.options import Options
    from dynamo_gpu_ft.recovery.membership.memory import MemoryStore

    settings = {
        "arena_dir": str(folder),
        "arena_name": "few",
        "arena_bytes": "24MiB",
        "ledger_bytes": "1MiB",
    }
    options = Options(model=str(tiny_llama()), blocks=14, rows=16, settings=settings, name="few")
    with Engine(options, MemoryStore()) as engine:
        assert engine.generate(prompts(8, 6), Sampling(max_tokens=40)) == wanted
        with pytest.raises(GpuFtError, match="cannot be served"):
            engine.submit([1] * 300, Sampling())
        with pytest.raises(GpuFtError, match="unknown tokens"):
            engine.submit([1, 1000], Sampling())


def test_a_hang_behind_a_replacement_costs_who_hangs_and_nobody_else(folder: Path) -> None:
    """The replacement has begun fewer steps than the others since it was born, and holds nobody up."""
    with Drill(tiny_llama(), folder, tp=3, arena_name="hang") as drill:
        wanted = drill.run(8).tokens
        _same(drill.run(8, [Fault("kill", "decode", 2)]), wanted, lost={2})
        _same(drill.run(8, [Fault("stop", "decode", 1)]), wanted, lost={1})
