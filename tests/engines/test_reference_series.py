"""Series of random faults on reference engines: one to three per run, any kind, any moment, in serving and in recoveries.

Every run has to end with the undisturbed run's tokens, or in a clean FAILED when no more than that was possible; never past the deadline.
"""

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
from dynamo_gpu_ft.recovery import processes  # noqa: E402
from tests.conftest import SEED  # noqa: E402
from tests.engines.reference_drill import (  # noqa: E402
    DEADLINE_S,
    KINDS,
    RECOVERING,
    SERVING,
    Drill,
    Fault,
    Report,
)
from tests.engines.reference_world import tiny_mixtral  # noqa: E402

SHAPES = {"pair": (2, 1), "three": (3, 1), "stages": (1, 2), "square": (2, 2)}


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(
        tempfile.mkdtemp(prefix="gft-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    )
    yield made
    shutil.rmtree(made, ignore_errors=True)


def schedule(random_: random.Random, shards: int) -> list[Fault]:
    """One to three faults, the first while serving."""
    faults = [
        Fault(
            random_.choice(KINDS),
            random_.choice((*SERVING, "random")),
            random_.randrange(shards),
            random_.randrange(1, 30),
        )
    ]
    for _ in range(random_.choice((0, 0, 1, 1, 2))):
        phase = random_.choice((*RECOVERING, *RECOVERING, *SERVING, "random"))
        faults.append(
            Fault(random_.choice(KINDS), phase, random_.randrange(shards), random_.randrange(1, 30))
        )
    return faults


def judge(report: Report, wanted: list[list[int]], faults: list[Fault]) -> None:
    told = [f"shard {e.shard}: {e.reason}" for e in report.deaths]
    where = f"seed {SEED}, {faults}, deaths {told}"
    assert report.longest_step_s < DEADLINE_S + 20, where
    if report.failed:
        # All members lost within one recovery, or attempts used up: nothing else may end a run.
        assert len(faults) > 1, f"{where}: {report.failed}"
        return
    assert report.tokens == wanted, where
    touched = {e.shard for e in report.deaths}
    assert touched <= {fault.shard for fault in faults}, where
    for shard, kept in report.kept.items():
        assert kept or shard in touched, where


def series(folder: Path, model: Path, shape: str, runs: int) -> tuple[int, int]:
    """(runs, how many of them ended in FAILED)."""
    tp, pp = SHAPES[shape]
    random_ = random.Random(f"{SEED}:{shape}")
    drill, failed, number, wanted = None, 0, 0, dict[int, list[list[int]]]()
    try:
        for run in range(runs):
            if drill is None:
                number += 1
                drill = Drill(
                    model,
                    folder,
                    tp=tp,
                    pp=pp,
                    standbys=run % 3,
                    arena_name=f"{shape}{number}",
                    restart_window_s=1.0,
                )
            seed = random_.randrange(4)
            if seed not in wanted:
                wanted[seed] = drill.run(seed).tokens
            faults = schedule(random_, tp * pp)
            report = drill.run(seed, faults)
            judge(report, wanted[seed], faults)
            if report.failed:
                failed += 1
                tag = drill.engine._tag
                drill.close()
                assert not processes.find(tag)
                drill = None
    finally:
        if drill is not None:
            drill.close()
    print(f"{shape}: {runs} runs, {failed} of them ended in FAILED, seed {SEED}")
    return runs, failed


@pytest.mark.timeout(400)
def test_eight_random_schedules_end_with_equal_tokens_or_a_clean_end(folder: Path) -> None:
    _, failed = series(folder, tiny_llama(), "pair", 5)
    _, others = series(folder, tiny_llama(), "square", 3)
    assert failed + others <= 2


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_three_hundred_random_schedules_end_with_equal_tokens_or_a_clean_end(
    folder: Path, shape: str, tmp_path: Path
) -> None:
    _, first = series(folder, tiny_llama(), shape, 50)
    _, second = series(folder, tiny_mixtral(tmp_path), shape, 25)
    assert first + second <= 15
