"""How soon a hang is noticed: processes that stop, steps that never end, collectives that wait for one rank, and a real frozen engine.

Times count from what is usual (999 of 1000 steps), as the promise does. The baseline is a fixed timeout, as short as it may be
without calling the slowest step seen in the run a hang.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.arena_copy import memory_folder
from bench.offline import Engine
from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli.models import smollm2
from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.health import heartbeat
from dynamo_gpu_ft.recovery import processes

TARGET_S = 0.5
DEADLINE_S = 60.0
#: One rank: short steps of two kinds with some jitter; after `count` of them it does what it is told.
RANK = """
import random, sys, time
from dynamo_gpu_ft import native
path, rank, ranks, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
beat = native.load().Beat(path, rank=rank, ranks=ranks)
lot = random.Random(rank)
slowest = 0.0
def step(kind, seconds):
    global slowest
    began = time.monotonic()
    beat.begin(kind); time.sleep(seconds); beat.end()
    slowest = max(slowest, time.monotonic() - began)
for number in range(count):
    step(3, lot.uniform(0.002, 0.006))
    if number % 50 == 0:
        step(11, lot.uniform(0.03, 0.06))
print(slowest, flush=True)
order = sys.stdin.readline().strip()
if order == "begin":
    print(time.monotonic_ns(), flush=True)
    beat.begin(3)
    time.sleep(3600)
while order == "work":
    step(3, lot.uniform(0.002, 0.006))
time.sleep(3600)
"""


def measure(options: Options) -> list[Row]:
    runs = 3 if options.quick else 20
    steps = 300 if options.quick else 1500
    rows = []
    for name, what in CASES.items():
        options.say(f"{name}, {runs} times")
        seen = [_once(what, steps) for _ in range(runs)]
        late = [noticed - usual for noticed, usual, _ in seen]
        fixed = [slowest for _, _, slowest in seen]
        rows.append(
            row(
                f"hang.{name}",
                max(late),
                "s",
                baseline=statistics.median(fixed),
                ratio=TARGET_S / max(late),
                target=1.0,
                note=f"longest from the usual time of a step to HANG, lowest/median/highest {spread(late)}; target ≤ "
                f"{TARGET_S:g} s; baseline: slowest step of the run, below which no fixed timeout may be",
            )
        )
    rows.append(_false_alarms(steps * (4 if options.quick else 20)))
    return [*rows, *_loaded_engine(options), *_real_engine(options)]


def _stop(ranks: list[subprocess.Popen[str]]) -> int:
    _tell(ranks[0], "work")
    now = time.monotonic_ns()
    ranks[0].send_signal(signal.SIGSTOP)
    return now


def _never_end(ranks: list[subprocess.Popen[str]]) -> int:
    return int(_tell(ranks[0], "begin", answer=True))


def _wait_for_one(ranks: list[subprocess.Popen[str]]) -> int:
    """Rank 1 never comes to the collective that rank 0 is in."""
    _tell(ranks[1], "nothing")
    return int(_tell(ranks[0], "begin", answer=True))


CASES = {"stopped": (1, _stop), "endless_step": (1, _never_end), "missing_rank": (2, _wait_for_one)}


def _once(case: tuple[int, Any], steps: int) -> tuple[float, float, float]:
    """(seconds from the fault to HANG, usual seconds of a step, slowest step)."""
    count, fault = case
    core = native.load()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, ExitStack() as stack:
        path = os.path.join(folder, "beats")
        ranks = [stack.enter_context(_rank(path, number, count, steps)) for number in range(count)]
        slowest = max(float(_line(rank)) for rank in ranks)
        queue = core.WatchQueue()
        watch = core.HangWatch(queue, path, ranks=count)
        began = fault(ranks)
        ends = time.monotonic() + DEADLINE_S
        while time.monotonic() < ends:
            for record in queue.take():
                if record.what == "hang":
                    watch.stop()
                    limit = float(record.facts["limit_ms"]) / 1000
                    usual = 0.0 if record.facts["cause"] == "stopped" else max(limit - 0.45, 0.05)
                    return (record.at_ns - began) / 1e9, usual, slowest
            queue.wait(1.0)
    raise GpuFtError("a hang was not noticed", value=f"{DEADLINE_S:g} s", where=fault.__name__)


def _false_alarms(steps: int) -> Row:
    core = native.load()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, ExitStack() as stack:
        path = os.path.join(folder, "beats")
        core.make_heartbeat_file(path, 2)
        queue = core.WatchQueue()
        watch = core.HangWatch(queue, path, ranks=2)
        ranks = [stack.enter_context(_rank(path, number, 2, steps)) for number in range(2)]
        for rank in ranks:
            _line(rank)
        watch.stop()
        alarms = sum(record.what == "hang" for record in queue.take())
    return row(
        "hang.false_alarms",
        alarms,
        "alarms",
        note=f"{2 * steps} short steps of two processes on this machine as busy as it was",
    )


def _loaded_engine(options: Options) -> list[Row]:
    """A real vLLM under load: decode, prompts of very different lengths, and for half of the time twice as many busy processes as
    processors. The watch is in this process, as it is in a server."""
    if importlib.util.find_spec("vllm") is None:
        options.lacking.append("a real engine under load (needs vLLM)")
        return []
    seconds = 20.0 if options.quick else 300.0
    options.say(f"a real engine under load, {seconds:g} s")
    core, lot, tag = native.load(), random.Random(0), f"bench-{os.getpid()}"
    with memory_folder(256 << 20) as folder, ExitStack() as stack:
        beats, _ = heartbeat.files(str(folder), tag)
        core.make_heartbeat_file(beats, 1)
        settings = {"arena_dir": str(folder), "arena_bytes": "128MiB", "ledger_bytes": "1MiB"}
        with processes.tagged(tag):
            engine = stack.enter_context(Engine(smollm2(), settings=settings, dtype="bfloat16"))
        queue = core.WatchQueue()
        watch = core.HangWatch(queue, beats, ranks=1)
        ends = time.monotonic() + seconds
        busy = False
        while (left := ends - time.monotonic()) > 0:
            if left < seconds / 2 and not busy:
                busy = True
                for _ in range(2 * len(os.sched_getaffinity(0))):
                    stack.enter_context(_busy_process())
            lengths = [lot.choice((8, 64, 500, 2000)) for _ in range(lot.randrange(1, 5))]
            prompts = [[lot.randrange(3, 49_000) for _ in range(length)] for length in lengths]
            engine.ask(prompts, lot.choice((1, 16, 48)))
        watch.stop()
        steps = core.look_at_heartbeats(beats)[0]["step"]
        told = [record.what for record in queue.take()]
    return [
        row(
            "hang.vllm_false_alarms",
            told.count("hang"),
            "alarms",
            note=f"{steps} steps of a real engine in {seconds:g} s, half of them on an overloaded machine; told slow "
            f"{told.count('slow')} times",
        )
    ]


@contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _real_engine(options: Options) -> list[Row]:
    """A real vLLM server frozen by SIGSTOP under open streams: the demo's own scenario."""
    options.say("demo --freeze")
    with tempfile.TemporaryDirectory(prefix="gft-bench-") as folder:
        file = Path(folder) / "demo.json"
        command = [sys.executable, "-m", "dynamo_gpu_ft", "demo", "--freeze", "--json", str(file)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=1800)
        if done.returncode not in (0, 1) or not file.exists():
            options.lacking.append("demo --freeze did not run (needs vLLM)")
            return []
        result = json.loads(file.read_text())
    phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["recovery_s"].items())
    gaps = [stream["gap_s"] for stream in result["streams"]]
    same = sum(stream["identical"] for stream in result["streams"])
    return [
        row(
            "hang.vllm_notice",
            result["recovery_s"].get("notice", float("nan")),
            "s",
            note="SIGSTOP of a real engine to its end being ordered; steps of this engine take tens of milliseconds",
        ),
        row(
            "hang.vllm_gap",
            max(gaps),
            "s",
            note=f"longest pause of an open stream; {same} of {len(gaps)} identical; {phases}; without protection the "
            "streams wait for ever",
        ),
    ]


@contextmanager
def _rank(path: str, number: int, ranks: int, steps: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, path, str(number), str(ranks), str(steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _tell(process: subprocess.Popen[str], order: str, *, answer: bool = False) -> str:
    assert process.stdin is not None
    process.stdin.write(order + "\n")
    process.stdin.flush()
    return _line(process) if answer else ""
