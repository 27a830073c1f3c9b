"""A real vLLM engine with two tensor-parallel workers loses one at a time; EngineCore and the other keep running, streams go on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import engine_environment

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

PROGRAM = Path(__file__).with_name("inplace_scenarios.py")
BLOCK = 32


def run(
    model: Path, folder: Path, scenarios: list[str], settings: dict[str, Any], **environment: str
) -> dict[str, Any]:
    """What the scenarios saw, and the journal."""
    ours = {"arena_dir": str(folder), "arena_bytes": "128MiB", "ledger_bytes": "1MiB"}
    ours |= {"max_restarts": 30, "journal": str(folder / "journal"), "restore_by_cost": False}
    engine = {"scenarios": scenarios, "llm": {"tensor_parallel_size": 2}}
    orders = [json.dumps(ours | settings), json.dumps(engine)]
    with (folder / "log").open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(model), *orders],
            stdout=subprocess.PIPE,
            stderr=log,
            env=engine_environment(VLLM_CPU_OMP_THREADS_BIND="0|1", **environment),
            start_new_session=True,
        )
    try:
        answer, _ = program.communicate(timeout=500)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    assert program.returncode == 0, (folder / "log").read_text(errors="replace")[-4000:]
    return dict(json.loads(answer))


@pytest.fixture(scope="module")
def seen(tiny_model: Path) -> Iterator[dict[str, Any]]:
    folder = Path(tempfile.mkdtemp(prefix="gft-inplace-", dir="/dev/shm"))
    yield run(tiny_model, folder, ["undisturbed", "rank_1", "rank_0", "again"], {})
    shutil.rmtree(folder, ignore_errors=True)


def check_streams(seen: dict[str, Any], scenario: str) -> None:
    got, expected = seen[scenario], seen["undisturbed"]["tokens"]
    assert got["finish"] == ["length"]
    for name, tokens in got["tokens"].items():
        assert tokens == expected[name[-1]], f"stream {name} of {scenario} differs"


@pytest.mark.parametrize(("scenario", "rank"), [("rank_1", "1"), ("rank_0", "0")])
def test_a_killed_worker_is_replaced_and_everybody_else_keeps_their_process(
    seen: dict[str, Any], scenario: str, rank: str
) -> None:
    check_streams(seen, scenario)
    core_before, core_after = seen[scenario]["core"]
    before, after = seen[scenario]["workers"]
    assert core_before == core_after
    assert sorted(before) == sorted(after) == ["0", "1"]
    assert {r: before[r] == after[r] for r in before} == {rank: False, str(1 - int(rank)): True}


def test_no_engine_was_restarted(seen: dict[str, Any]) -> None:
    kinds = [event["event"] for event in seen["events"]]
    assert "engine_died" not in kinds
    recovered = [event for event in seen["events"] if event["event"] == "group_recovered"]
    assert [(e["kind"], e["outcome"]) for e in recovered] == [("respawn", "serving")] * 2


def test_the_prefix_cache_is_right_afterwards(seen: dict[str, Any]) -> None:
    check_streams(seen, "again")


def test_nothing_is_left_behind(seen: dict[str, Any]) -> None:
    assert seen["ledger_open"] == []
    assert seen["processes_left"] == []
    assert seen["segments_left"] == []
