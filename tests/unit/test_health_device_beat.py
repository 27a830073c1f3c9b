"""The device's half of the heartbeat, with the CPU in the device's place: what it writes is what the judge reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_gpu_ft import native
from dynamo_gpu_ft.health.device_beat import DeviceBeat

pytest.importorskip("torch")
core = native.load()


def device_step(path: Path) -> int:
    (seen,) = core.look_at_heartbeats(str(path))
    return int(seen["device_step"])


def test_the_device_marks_the_steps_that_were_begun(tmp_path: Path) -> None:
    path = tmp_path / "beats"
    beat = core.Beat(str(path), rank=0, ranks=1)
    device = DeviceBeat(beat, "cpu")
    assert device_step(path) == 0, "no device writes until the first mark"
    for number in range(1, 4):
        beat.begin(3)
        device.mark()
        beat.end()
        assert device_step(path) == number
    beat.begin(3)
    device.count()
    assert device_step(path) == beat.steps == 4
    device.close()
    device.close()
