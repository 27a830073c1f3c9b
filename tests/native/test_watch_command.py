"""The `watch` command as people run it: on the simulated NVML, with an engine's heartbeat, and where there is nothing to see."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from door import core
from nvml_world import LONG_S, NvmlWorld

from dynamo_gpu_ft.sim.nvml import build

Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[NvmlWorld]:
    with TemporaryDirectory(prefix="gft-nvml-") as made:  # short: sockets lie in it
        monkeypatch.setenv(build.CONTROL, str(Path(made) / "c"))
        monkeypatch.setenv("DYN_GPU_FT_ARENA_DIR", made)
        yield NvmlWorld(Path(made))


@pytest.fixture
def watch() -> Iterator[Run]:
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dynamo_gpu_ft", "watch", "--log", "none", *arguments]
        # NOTE: a shell's background hands SIGINT down as ignored.
        running.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_faults_come_as_lines_and_the_state_at_the_end(world: NvmlWorld, watch: Run) -> None:
    process = watch("--json", "--library", str(world.library))
    state = line(process)["state"]
    assert [gpu["index"] for gpu in state["gpus"]] == list(range(8))
    assert state["sources"]["nvml"]["active"]
    assert world.send("xid gpu=1 code=79") >= 1
    incident = line(process)["incident"]
    assert (incident["name"], incident["devices"][0]["index"]) == ("xid 79", 1)
    process.send_signal(signal.SIGINT)
    lines = process.communicate(timeout=LONG_S)[0].splitlines()
    assert json.loads(lines[-1])["state"]["usable"] is False
    assert process.returncode == 1


def test_people_get_a_table_and_a_sentence_for_each_fault(world: NvmlWorld, watch: Run) -> None:
    process = watch("--library", str(world.library))
    assert process.stdout is not None
    seen = ""
    while "Step heartbeats" not in seen:
        seen += process.stdout.readline()
    assert "0000:23:00" in seen
    world.send("xid gpu=1 code=79")
    sentence = process.stdout.readline()
    assert "xid 79 on gpu 0000:23:00: unusable: this gpu; to do: reboot node" in sentence


def test_the_newest_heartbeat_file_is_shown_and_judged(
    world: NvmlWorld, watch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_GPU_FT_HANG_UNKNOWN_S", "0.1")
    beat = core.Beat(str(world.folder / "dynamo_gpu_ft-t.beats"), rank=0, ranks=1)
    beat.begin(1)
    process = watch("--json", "--library", str(world.library))
    assert line(process)["state"]["heartbeat"]["ranks"][0]["phase"] == "step"
    assert line(process)["incident"]["name"] == "hang"


def test_without_a_gpu_it_says_what_is_missing(watch: Run, tmp_path: Path) -> None:
    process = watch("--once", "--library", str(tmp_path / "none.so"))
    text = process.communicate(timeout=LONG_S)[0]
    assert process.returncode == 0
    assert "GPUs: none can be seen: " in text
    assert "none.so" in text


def test_it_ends_by_itself_after_the_time_it_was_given(world: NvmlWorld, watch: Run) -> None:
    process = watch("--json", "--for", "0.2", "--library", str(world.library))
    lines = process.communicate(timeout=LONG_S)[0].splitlines()
    assert [next(iter(json.loads(each))) for each in lines] == ["state", "state"]
    assert process.returncode == 0
