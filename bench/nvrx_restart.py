"""How soon two ranks compute again after one was killed: under the built-in monitor, NVRx's launcher, and NVRx's in-process wrapper.

Two gloo ranks in a loop of all_reduce; rank 1 is killed by SIGKILL; timed until the first all_reduce after it on both. Baseline of every row:
`ft_launcher` of the same run with our limits. Most of a restart is Python and torch starting; the in-process wrapper keeps the survivor
and has a spare rank wait.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.rows import Options, Row, row, spread

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ROOT / ".venv-vllm" / "nvrx"
DEADLINE_S = 90.0
#: A rank under a launcher: writes "round rank pid" at its first result, and ends when there is a file named `end`.
LAUNCHED = """
import os, sys, time, torch, torch.distributed as dist
from dynamo_gpu_ft.nvrx.rank import Rank
folder, rank = sys.argv[1], os.environ["RANK"]
with Rank() as own:
    with own.section("weights"):
        dist.init_process_group("gloo")
    first = True
    while True:
        word = torch.zeros(1) + (rank == "0" and os.path.exists(folder + "/end"))
        with own.step():
            dist.all_reduce(word)
        if first:
            name = f"{folder}/{os.environ['TORCHELASTIC_RESTART_COUNT']}.{rank}"
            open(name + ".new", "w").write(f"{os.getpid()} {time.monotonic()}")
            os.rename(name + ".new", name)
            first = False
        if word.item():
            break
dist.destroy_process_group()
"""
WRAPPED = """
import os, sys, time, torch, torch.distributed as dist
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.nvrx.inprocess.callables import Process
from dynamo_gpu_ft.nvrx.inprocess.wrapper import wrapper
folder, process = sys.argv[1], Process(2, Config())
@wrapper(process, folder=folder, hang_s=30.0, tick_s=0.1)
def serve():
    rank = int(os.environ["RANK"])
    with process.communicators.opening():
        store = dist.FileStore(f"{folder}/group{process.turn}", 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    first = True
    while True:
        word = torch.zeros(1) + (rank == 0 and os.path.exists(folder + "/end"))
        dist.all_reduce(word)
        if first:
            name = f"{folder}/{process.turn}.{rank}"
            open(name + ".new", "w").write(f"{os.getpid()} {time.monotonic()}")
            os.rename(name + ".new", name)
            first = False
        if word.item():
            break
    dist.destroy_process_group()
serve()
"""


def measure(options: Options) -> list[Row]:
    repeats = 1 if options.quick else 5
    versions = [
        p.name for p in sorted(VERSIONS.glob("*")) if (p / "nvidia_resiliency_ext").is_dir()
    ]
    if not versions:
        options.lacking.append("nvrx_restart: NVRx is not there to compare with: make beside")
    figures: dict[str, list[float]] = {}
    # In turns, so that what else the machine does hits all of them.
    for number in range(repeats):
        options.say(f"round {number + 1} of {repeats}")
        figures.setdefault("builtin", []).append(_launched("builtin", ""))
        for version in versions:
            figures.setdefault(version, []).append(_launched("nvrx", version))
            figures.setdefault(f"inprocess {version}", []).append(_wrapped(version))
    rows = [_row("builtin", figures["builtin"], figures.get(versions[-1]) if versions else None)]
    for version in versions:
        rows.append(_row(f"ft_launcher_{version}", figures[version], None))
        rows.append(_row(f"inprocess_{version}", figures[f"inprocess {version}"], figures[version]))
    return rows


def _row(name: str, times: list[float], baseline: list[float] | None) -> Row:
    value = statistics.median(times)
    against = None if baseline is None else statistics.median(baseline)
    note = f"SIGKILL of one of 2 gloo ranks to both ranks' next all_reduce; {spread(times)}"
    if baseline is not None:
        note += f"; baseline: ft_launcher, {spread(baseline)}"
    ratio = None if against is None else against / value
    return row(f"nvrx_restart.{name}", value, "s", baseline=against, ratio=ratio, note=note)


def _environ(version: str, **more: str) -> dict[str, str]:
    path = [*([str(VERSIONS / version)] if version else []), str(ROOT)]
    quiet = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(path), **more}


def _launched(backend: str, version: str) -> float:
    with tempfile.TemporaryDirectory(prefix="gft-bench-") as folder:
        own = [sys.executable, "-c", LAUNCHED, folder]
        options = ["--backend", backend, "--ranks", "2", "--stop", "2", "--heartbeat", "5"]
        command = [sys.executable, "-m", "dynamo_gpu_ft.nvrx", *options, "--", *own]
        return _timed(Path(folder), [(command, _environ(version))])


def _wrapped(version: str) -> float:
    with tempfile.TemporaryDirectory(prefix="gft-bench-") as folder:
        command = [sys.executable, "-c", WRAPPED, folder]
        return _timed(
            Path(folder),
            [(command, _environ(version, RANK=str(r), WORLD_SIZE="3")) for r in range(3)],
        )


def _timed(folder: Path, starts: list[tuple[list[str], dict[str, str]]]) -> float:
    log = (folder / "log").open("wb")
    processes = [
        subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        for command, environ in starts
    ]
    try:
        pids = [int(_told(folder, 0, rank)[0]) for rank in range(2)]
        began = time.monotonic()
        os.kill(pids[1], signal.SIGKILL)
        after = max(_told(folder, 1, rank)[1] for rank in range(2)) - began
        (folder / "end").touch()
        for process in processes:
            process.wait(DEADLINE_S)
        return after
    finally:
        log.close()
        for process in processes:
            process.terminate()
            process.wait(DEADLINE_S)


def _told(folder: Path, turn: int, rank: int) -> tuple[float, float]:
    """(pid, moment) of a rank's first result in a turn."""
    give_up = time.monotonic() + DEADLINE_S
    path = folder / f"{turn}.{rank}"
    while not path.exists():
        if time.monotonic() > give_up:
            raise RuntimeError(f"no result: {(folder / 'log').read_text()[-2000:]}")
        threading.Event().wait(0.005)
    pid, at = path.read_text().split()
    return float(pid), float(at)
