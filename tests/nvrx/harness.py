"""Runs the launcher's command line in a process of its own, with one NVRx version or none on the path, and reads what the ranks told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dynamo_gpu_ft.recovery import processes

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ROOT / ".venv-vllm" / "nvrx"
GLOO_RANK = Path(__file__).with_name("gloo_rank.py")
PLAIN_RANK = Path(__file__).with_name("plain_rank.py")
DEADLINE_S = 100.0


def folder_of(version: str) -> Path:
    return VERSIONS / version


def environ(version: str = "", **more: str) -> dict[str, str]:
    """`version`: a folder of NVRx, or none. One thread for torch: the machine may be small."""
    path = [*([version] if version else []), str(ROOT)]
    base = {k: v for k, v in os.environ.items() if not k.startswith(("GPU_FT_", "FT_", "RANK"))}
    return {**base, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", **more}


@dataclass
class Ended:
    """What a launcher's run left: its exit status, its words, and the ranks' lines as (round, rank, word)."""

    status: int
    said: str
    lines: list[tuple[int, int, str]] = field(default_factory=list)

    def who(self, word: str) -> set[tuple[int, int]]:
        return {(round_, rank) for round_, rank, said in self.lines if said == word}

    def pids(self) -> list[int]:
        return [int(w.partition("=")[2]) for _, _, w in self.lines if w.startswith("pid=")]


def command(options: Sequence[str], script: Path, report: Path, faults: str) -> list[str]:
    start = [sys.executable, "-m", "dynamo_gpu_ft.nvrx", *options, "--"]
    return [*start, sys.executable, str(script), str(report), faults]


def launch(
    options: Sequence[str], script: Path, report: Path, faults: str, *, version: str = ""
) -> Ended:
    """Blocks until the launcher has ended; a run that outlasts the deadline is an error of the test."""
    done = subprocess.run(
        command(options, script, report, faults),
        env=environ(version),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        cwd=report.parent,
    )
    return Ended(done.returncode, done.stdout, read(report))


def read(report: Path) -> list[tuple[int, int, str]]:
    if not report.exists():
        return []
    parts = (line.split(" ", 2) for line in report.read_text().splitlines())
    return [(int(round_), int(rank), word) for round_, rank, word in parts]


def alive(pids: list[int]) -> list[int]:
    """Those of `pids` that still run; a zombie does not."""
    left = []
    for pid in pids:
        try:
            if processes._stat(Path("/proc") / str(pid))[0] != "Z":
                left.append(pid)
        except OSError:
            continue
    return left


def until(true: Callable[[], bool], what: str, deadline_s: float = 40.0) -> None:
    give_up = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < give_up, what
        time.sleep(0.01)


def started(
    options: Sequence[str], report: Path, faults: str, *, version: str = ""
) -> subprocess.Popen[bytes]:
    """A launcher with both plain ranks ready; its own files are in `tmp` beside the report."""
    folder = report.parent / "tmp"
    folder.mkdir()
    launcher = subprocess.Popen(
        command(options, PLAIN_RANK, report, faults),
        env=environ(version, TMPDIR=str(folder)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=report.parent,
    )
    ready = {(0, 0), (0, 1)}
    until(
        lambda: {(a, b) for a, b, word in read(report) if word == "ready"} == ready,
        "ranks did not start",
    )
    return launcher


def pids(report: Path) -> list[int]:
    return Ended(0, "", read(report)).pids()
