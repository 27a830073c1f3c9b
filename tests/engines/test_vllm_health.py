"""A real vLLM engine beside a simulated driver: each fault gets the answer its verdict asks for, and open streams go on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from harness import engine_environment

from dynamo_gpu_ft.sim.nvml import build

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PROGRAM = Path(__file__).with_name("health_scenarios.py")


def run(model: Path, scenarios: list[str], **llm: Any) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="gft-health-", dir="/dev/shm"))
    log = folder / "kernel.log"
    log.touch()
    (folder / "control").mkdir()  # every process listens there from its start
    settings = {
        "arena_dir": str(folder), "arena_bytes": "128MiB", "ledger_bytes": "1MiB", "restore_by_cost": False,
        "max_restarts": 20, "health_library": str(build.library()), "health_log": str(log),
        "health_devices": "0,1",
    }  # fmt: skip
    environment = engine_environment(**{build.CONTROL: str(folder / "control")})
    orders = [json.dumps(settings), json.dumps({"scenarios": scenarios, "llm": llm})]
    with (folder / "log").open("wb") as output:
        program = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(model), *orders],
            stdout=subprocess.PIPE, stderr=output, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        answer, _ = program.communicate(timeout=500)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    said = (folder / "log").read_text(errors="replace")
    left = sorted(path.name for path in folder.glob("dynamo_gpu_ft-*") if path.suffix != ".arena")
    shutil.rmtree(folder, ignore_errors=True)
    assert program.returncode == 0, said[-4000:]
    return {**json.loads(answer), "said": said, "left": left}


@pytest.fixture(scope="module")
def seen(tiny_model: Path) -> dict[str, Any]:
    return run(
        tiny_model,
        ["undisturbed", "row_remapped", "illegal_access", "frozen", "off_the_bus_by_log", "the_last_gpu_too"],
    )  # fmt: skip


def check_identical(seen: dict[str, Any], scenario: str) -> None:
    got = seen[scenario]
    assert got["finish"] == ["length"]
    assert got["tokens"] == seen["undisturbed"]["tokens"]


def test_a_remapped_row_is_only_reported(seen: dict[str, Any]) -> None:
    check_identical(seen, "row_remapped")
    assert seen["row_remapped"]["deaths"] == 0
    assert [e for e in seen["events"] if e["event"] == "incident" and e["name"] == "xid 63"]


def test_an_illegal_access_restarts_the_context_on_the_same_gpu(seen: dict[str, Any]) -> None:
    check_identical(seen, "illegal_access")
    assert seen["illegal_access"]["deaths"] == 1
    assert seen["illegal_access"]["devices"] == seen["row_remapped"]["devices"]


def test_a_frozen_engine_is_noticed_and_its_streams_go_on(seen: dict[str, Any]) -> None:
    check_identical(seen, "frozen")
    assert seen["frozen"]["deaths"] == 1
    assert seen["frozen"]["noticed_s"] < 5, "half a second where the machine is not full"
    died = [e for e in seen["events"] if e["event"] == "engine_died"]
    assert any("hang" in e["reason"] for e in died)


def test_a_gpu_that_fell_off_the_bus_is_fenced_and_the_engine_goes_on_on_another(
    seen: dict[str, Any],
) -> None:
    check_identical(seen, "off_the_bus_by_log")
    assert seen["off_the_bus_by_log"]["deaths"] == 1
    assert seen["off_the_bus_by_log"]["devices"] != seen["illegal_access"]["devices"]


def test_without_a_gpu_left_everything_ends_with_the_reason(seen: dict[str, Any]) -> None:
    last = seen["the_last_gpu_too"]
    assert last["errored"]
    assert last["failed"].startswith("0 of 2 GPUs can be used, 1 are needed")
    assert "xid 79" in last["failed"]


def test_nothing_is_left_behind(seen: dict[str, Any]) -> None:
    assert seen["left"] == []
    assert seen["processes_left"] == []


@pytest.mark.long
def test_the_same_fault_through_the_driver_itself(tiny_model: Path) -> None:
    seen = run(tiny_model, ["undisturbed", "off_the_bus_by_driver"])
    check_identical(seen, "off_the_bus_by_driver")
    assert seen["off_the_bus_by_driver"]["deaths"] == 1
