"""The planner answers the same bytes in every process, with every hash seed, and however the compiler optimises it.

The digests here change when the algorithm does; then they are written anew, once, and every machine must agree with them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: What tests/native/programs/placement.cpp prints for 2000 cases of seed 1; test_programs.py compares with it as well.
PROGRAM = "b608f7bb503d59f0"
PLANS = "d125fde234c92913beef8da4e4e20154"

SHIM = """
#include <string>
static std::string text;
namespace gft { void remember_error(const std::string &why) noexcept { text = why; } }
extern "C" const char *gft_last_error() { return text.c_str(); }
"""

PLAN = """
import hashlib
from dynamo_gpu_ft.experts import planner, traces
from dynamo_gpu_ft.experts.base import Aim, Domains
whole = hashlib.blake2b(digest_size=16)
for alpha in ("0.3", "1.0"):
    first, second = traces.windows(traces.Recipe(layers=4, alpha=alpha, drift=20), 2)
    for ranks, slots, aim in ((32, 9, Aim(mode="refill")), (32, 17, Aim(domain="node")), (72, 8, Aim())):
        domains = Domains.regular(ranks)
        found = planner.plan(first, ranks=ranks, slots=slots, domains=domains, aim=aim)
        alive = [rank != 3 for rank in range(ranks)]
        after = planner.repair(found.placement, first, alive=alive, domains=domains)
        again = planner.plan(second, ranks=ranks, slots=slots, domains=domains, aim=aim, old=found.placement, budget_bytes=100)
        lost = planner.recover(found.placement, first, alive=alive, domains=domains, aim=aim, budget_bytes=500)
        for plan in (found, after, again, lost.repaired, lost.rebalanced):
            whole.update(plan.placement.table + repr(plan.moves).encode() + repr(plan.certificate).encode())
print(whole.hexdigest())
"""


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_processes_with_any_hash_seed_plan_the_same(seed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAN],
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == PLANS


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is missing")
@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_levels_of_optimisation_plan_the_same(level: str, tmp_path: Path) -> None:
    """Everything in one translation unit, warnings are errors; test_programs.py does the same at -O2."""
    files = [*sorted((ROOT / "csrc" / "place").glob("*.cpp")), ROOT / "csrc" / "door_place.cpp",
             ROOT / "tests" / "native" / "programs" / "placement.cpp"]  # fmt: skip
    source = tmp_path / "all.cpp"
    source.write_text("".join(f'#include "{file}"\n' for file in files) + SHIM)
    program = tmp_path / "placement"
    flags = ["-std=c++20", level, "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["g++", *flags, str(source), "-o", str(program)], timeout=110, check=True)
    done = subprocess.run(
        [program, "2000", "1"], capture_output=True, text=True, timeout=60, check=True
    )
    print(done.stdout)
    assert done.stdout.startswith("placement: ok")
    assert f"digest {PROGRAM}" in done.stdout
