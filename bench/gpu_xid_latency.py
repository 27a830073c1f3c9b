"""How soon an illegal access on a GPU is heard through NVML, beside CUDA's own error in the process that made it. Needs a GPU.

Every run is a process of its own, since its context is lost. The watcher is in this process, as in a worker that watches its neighbours.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.gpu_world import has_gpu
from bench.rows import Options, Row, row
from bench.watch_latency import at, late, spread_of
from dynamo_gpu_ft import native
from dynamo_gpu_ft.errors import GpuFtError

CHILD = Path(__file__).resolve().parents[1] / "tests" / "gpu" / "fault_child.py"


def measure(options: Options) -> list[Row]:
    if not has_gpu():
        raise GpuFtError(
            "gpu_xid_latency needs an NVIDIA GPU, torch with CUDA and triton",
            value="none here",
            rule="a simulated XID says nothing about a driver",
            remedy="bench watch_latency, which measures this project's part",
        )
    runs = 5 if options.quick else 100
    queue = native.load().WatchQueue(4096)
    watcher = native.load().NvmlWatcher(queue)
    watcher.start()
    heard, returned, missed = [], [], 0
    for number in range(runs):
        options.say(f"run {number + 1} of {runs}")
        answer = broken(queue)
        returned.append((answer["returned"] - answer["launched"]) / 1e6)
        first = (
            next((r for r in queue.take() if r.what == "xid"), None) if queue.wait(5.0) else None
        )
        if first is None:
            missed += 1
        else:
            heard.append((first.at_ns - answer["launched"]) / 1e6)
    watcher.stop(5.0)
    if not heard:
        raise GpuFtError("no XID was heard", value=f"{runs} illegal accesses", remedy="doctor")
    return [
        late("gpu_xid_latency.p99", at(heard, 0.99), 100.0, baseline=at(returned, 0.99),
             note=f"launch to callback, {spread_of(heard)}; baseline: launch to CUDA's error, {spread_of(returned)}"),
        row("gpu_xid_latency.missed", missed, "events", ratio=1.0 if not missed else 0.0, target=1.0, note=f"of {runs}"),
    ]  # fmt: skip


def broken(queue: Any) -> dict[str, Any]:
    """One process that breaks its context; what it says of it. Records of the run before are dropped first."""
    with subprocess.Popen(
        [sys.executable, str(CHILD), "plain"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        queue.take()
        out, _ = process.communicate("go\n", timeout=120)
    answer: dict[str, Any] = json.loads(out)
    return answer
