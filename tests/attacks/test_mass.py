"""Data faults by the hundred thousand, in C++ over the native door: none is accepted, none crashes, none hangs.

GFT_ATTACKS=1000000 sets the number of faults over all programs together; the default fits a test run. README.md in `mass` lists the
kinds; a failure prints kind, seed and case, and `PROGRAM 0 SEED KIND CASE` repeats it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import SEED

HERE = Path(__file__).parent / "mass"
FAULTS = int(os.environ.get("GFT_ATTACKS", "100000"))
SHARE = {"arena": 0.9, "disk": 0.1}  # of the faults: a disk log is opened anew for each
# What hits bytes on which little depends is noticed less often.
SELDOM = {"flip_control_or_lane", "flip_stamp_hold_or_mark", "flip_ledger", "lying_control"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        shutil.which("make") is None or shutil.which("g++") is None, reason="make or g++ is missing"
    ),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="the programs bring their own runtime"),
]


@pytest.fixture(scope="module")
def programs() -> Path:
    """Builds the programs; what other test programs built of the core is used again."""
    out = subprocess.run(
        ["make", "-s", f"-j{os.cpu_count()}", "-C", str(HERE), "programs", "where"],
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    return Path(out.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def ended(programs: Path) -> dict[str, tuple[int, str, str]]:
    """Exit status, answer and complaints of each program: they run side by side."""
    running = {}
    for program, share in SHARE.items():
        seed = random.Random(f"{SEED}:{program}").randrange(2**32)
        running[program] = subprocess.Popen(
            [str(programs / program), str(int(FAULTS * share)), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        said = {name: each.communicate(timeout=3500) for name, each in running.items()}
    finally:
        for each in running.values():
            each.kill()
    return {name: (running[name].returncode, *texts) for name, texts in said.items()}


@pytest.mark.parametrize("program", sorted(SHARE))
def test_no_fault_is_accepted(program: str, ended: dict[str, tuple[int, str, str]]) -> None:
    status, answer, complaints = ended[program]
    assert status == 0, complaints[-2000:]
    print(answer)
    result = json.loads(answer)
    assert result["accepted"] == 0
    assert sum(kind["cases"] for kind in result["kinds"].values()) == int(FAULTS * SHARE[program])
    for name, kind in result["kinds"].items():
        if kind.get("mild"):  # everything is there twice, or was a shortcut: not noticing is right
            continue
        least = 0.1 if name in SELDOM else 0.3
        assert kind["noticed"] > least * kind["cases"], f"{name}: {kind}, it tests little"


def test_every_kind_is_explained(programs: Path) -> None:
    explained = set()
    for line in (HERE / "README.md").read_text().splitlines():
        if line.startswith("| `"):
            explained.add(line.split("`")[1])
    kinds = set()
    for program in SHARE:
        out = subprocess.run(
            [str(programs / program), "0", "1"], capture_output=True, text=True, timeout=60
        )
        kinds |= set(json.loads(out.stdout)["kinds"])
    assert explained == kinds
