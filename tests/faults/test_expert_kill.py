"""SIGKILL in the middle of a refill and of a commit: the next process finds the old expert or the new one in each slot, never half of one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def killed(folder: Path, rng: random.Random, trials: int, spare: int) -> int:
    done = subprocess.run(
        [sys.executable, str(HERE / "expert_writer.py"), str(folder), str(rng.randrange(2**32)), str(trials), str(spare)],
        capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "unit")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("spare", [0, 1], ids=["no spare row", "one spare row"])
def test_a_kill_at_any_byte_leaves_the_old_expert_or_the_new_one(
    spare: int, rng: random.Random, memory_folder: Path
) -> None:
    assert killed(memory_folder, rng, 60, spare) >= 30, "most trials did kill"


@pytest.mark.long
def test_a_thousand_kills(rng: random.Random, memory_folder: Path) -> None:
    assert killed(memory_folder, rng, 1000, 1) >= 500
