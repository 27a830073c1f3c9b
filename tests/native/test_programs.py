"""The core's C++ test programs: digests against known values, conversions against a byte by byte
reference, a life under hostile bytes, everything at once from many threads,
lanes that change hands between dying processes, a disk log that is appended to, read, collected and followed at once,
watchers of a simulated NVML while it loses GPUs, sticks and storms,
a kernel log of damaged lines, placements of experts against brute force, the simulated NCCL with calls cut short.

They are built here with both digests; `make sanitize` (or GFT_SANITIZE=1) also runs them under ASan, UBSan and TSan.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import test_placement_golden

PROGRAMS = Path(__file__).parent / "programs"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("make") is None or shutil.which("g++") is None, reason="make or g++ is missing"
    ),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="the programs bring their own runtime"),
]


def make(target: str, *variables: str) -> str:
    command = ["make", "-s", f"-j{os.cpu_count()}", "-C", str(PROGRAMS), target, *variables]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_programs_pass_with_the_digest_of_this_machine() -> None:
    out = make("plain", "CASES=20000", "LINES=1000000")
    assert "relayouts: ok, 20000 cases" in out
    assert "hostile: 20000 cases" in out
    assert "hostile: ok" in out
    assert "threads: ok" in out
    assert "lanes: ok" in out
    assert "disk: ok" in out
    assert "watch: ok" in out
    assert "kernel_log: ok" in out
    assert "collectives: ok" in out
    assert f"digest {test_placement_golden.PROGRAM}" in out


@pytest.mark.long
def test_the_programs_pass_without_xxhash_io_uring_and_codecs() -> None:
    out = make("plain", "DIGEST=crc32c", "WITHOUT=uring zstd lz4")
    assert "1 variants agree, xxHash absent" in out
    assert "records compressed by nothing" in out


def test_the_programs_are_clean_under_the_sanitizers(request: pytest.FixtureRequest) -> None:
    asked = request.config.getoption("markexpr") == "slow" or os.environ.get("GFT_SANITIZE") == "1"
    if not asked:
        pytest.skip("takes two minutes: make sanitize, or GFT_SANITIZE=1")
    out = make("sanitize")
    assert out.count("threads: ok") == 2
    assert out.count("disk: ok") == 2
    assert out.count("watch: ok") == 2
    assert out.count("kernel_log: ok") == 2
    assert out.count("collectives: ok") == 2
