"""The device's half of the heartbeat on a real GPU: an endless kernel is a hang in half a second, and a CUDA graph counts by itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dynamo_gpu_ft import native
from dynamo_gpu_ft.health.device_beat import DeviceBeat

pytestmark = pytest.mark.gpu
STEP_CYCLES = 20_000_000  # about ten milliseconds


def test_an_endless_kernel_is_a_hang_in_half_a_second(tmp_path: Path) -> None:
    import torch

    core = native.load()
    beat = core.Beat(str(tmp_path / "beats"), rank=0, ranks=1)
    device = DeviceBeat(beat, "cuda")
    queue = core.WatchQueue()
    watch = core.HangWatch(queue, str(tmp_path / "beats"), ranks=1)
    for _ in range(200):
        beat.begin(3)
        torch.cuda._sleep(STEP_CYCLES)
        device.mark()
        beat.end()
        torch.cuda.synchronize()
    assert not [record for record in queue.take() if record.what == "hang"]
    beat.begin(3)
    began = time.monotonic_ns()
    torch.cuda._sleep(STEP_CYCLES * 500)  # about five seconds: endless beside a step
    device.mark()
    beat.end()
    while not (hangs := [record for record in queue.take() if record.what == "hang"]):
        assert queue.wait(10.0)
    assert hangs[0].facts["cause"] == "device"
    assert (hangs[0].at_ns - began) / 1e9 < 0.6
    watch.stop()
    device.close()


def test_a_graph_of_a_step_counts_by_itself(tmp_path: Path) -> None:
    import torch

    core = native.load()
    path = str(tmp_path / "beats")
    beat = core.Beat(path, rank=0, ranks=1)
    device = DeviceBeat(beat, "cuda")
    beat.begin(3)
    device.mark()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        device.count()
    for _ in range(9):
        graph.replay()
    torch.cuda.synchronize()
    (seen,) = core.look_at_heartbeats(path)
    assert seen["device_step"] == 10
    device.close()
