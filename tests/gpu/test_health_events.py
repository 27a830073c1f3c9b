"""Real XIDs through the real NVML: an illegal access is heard in the process that made it and in another one, every time and soon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft import native
from dynamo_gpu_ft.health.nvml_events import reading_of
from dynamo_gpu_ft.health.readings import State

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(1200)]
CHILD = Path(__file__).with_name("fault_child.py")
ROOT = Path(__file__).resolve().parents[2]
RUNS = 50
OF_AN_ILLEGAL_ACCESS = {13, 31, 43, 45}


def child(mode: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(CHILD), mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate("go\n", timeout=120)
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_an_illegal_access_is_heard_by_its_own_process() -> None:
    answer = end_of(child("watch"))
    codes = {record["code"] for record in answer["records"] if record["what"] == "xid"}
    assert codes
    assert codes <= OF_AN_ILLEGAL_ACCESS, codes
    assert all(record["uuid"].startswith("GPU-") for record in answer["records"])


def test_fifty_illegal_accesses_are_all_heard_by_another_process_in_time() -> None:
    queue = native.load().WatchQueue(4096)
    watcher = native.load().NvmlWatcher(queue)
    watcher.start()
    late = []
    for _ in range(RUNS):
        process = child("plain")
        queue.take()  # of the run before: the end of a context is told, too
        answer = end_of(process)
        assert queue.wait(5.0), "not heard"
        first = next(record for record in queue.take() if record.what == "xid")
        assert first.code in OF_AN_ILLEGAL_ACCESS
        assert reading_of(first).state is State.FAILED
        late.append((first.at_ns - answer["launched"]) / 1e6)
    assert sorted(late)[int(RUNS * 0.99) - 1] <= 100.0, late
    assert all(gpu.responsive for gpu in watcher.gpus())
    assert watcher.stop(5)


def test_the_driver_registers_the_events_that_the_watcher_wants() -> None:
    watcher = native.load().NvmlWatcher(native.load().WatchQueue(64))
    watcher.start()
    for gpu in watcher.gpus():
        print(
            f"GPU {gpu.index}: supported {gpu.supported:#x}, registered {gpu.registered:#x}, field 230 {gpu.recovery_action}"
        )
        assert gpu.registered & 0x8
        assert gpu.bdf
        assert gpu.uuid.startswith("GPU-")
    assert watcher.counts()["sets"] == 1
    assert watcher.stop(5)
