"""Runs the programs of in-place scenarios as engines of their own, and checks what they saw. Used by the tests of vLLM in place."""

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

from harness import ROOT, engine_environment

PROGRAM = Path(__file__).with_name("inplace_scenarios.py")


def run(
    model: Path,
    folder: Path,
    scenarios: list[str],
    settings: dict[str, Any],
    *,
    program: Path = PROGRAM,
    llm: dict[str, Any] | None = None,
    deadline_s: float = 500.0,
    **environment: str,
) -> dict[str, Any]:
    """What the scenarios saw, with the program's log as "said"."""
    ours = {"arena_dir": str(folder), "arena_bytes": "128MiB", "ledger_bytes": "1MiB"}
    ours |= {"max_restarts": 30, "journal": str(folder / "journal"), "restore_by_cost": False}
    engine = {"scenarios": scenarios, "llm": {"tensor_parallel_size": 2, **(llm or {})}}
    orders = [json.dumps(ours | settings), json.dumps(engine)]
    seen_by_workers = f"{ROOT}:{PROGRAM.parent}"
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, str(program), str(model), *orders],
            stdout=subprocess.PIPE,
            stderr=log,
            env=engine_environment(
                **{"VLLM_CPU_OMP_THREADS_BIND": "0|1", "PYTHONPATH": seen_by_workers, **environment}
            ),
            start_new_session=True,
        )
    try:
        answer, _ = child.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        told = (folder / "journal").read_text(errors="replace").splitlines()
        raise AssertionError(
            f"not done after {deadline_s:g} s; the journal ends:\n" + "\n".join(told[-12:])
        ) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    said = (folder / "log").read_text(errors="replace")
    assert child.returncode == 0, said[-4000:]
    return {**json.loads(answer), "said": said}


@contextlib.contextmanager
def folder_of_its_own() -> Iterator[Path]:
    """In the memory file system; with all that is in it, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="gft-inplace-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_streams(seen: dict[str, Any], scenario: str, like: str = "undisturbed") -> None:
    got, expected = seen[scenario], seen[like]["tokens"]
    assert got["finish"] == ["length"]
    for name, tokens in got["tokens"].items():
        assert tokens == expected[name[-1]], f"stream {name} of {scenario} differs"


def check_processes(seen: dict[str, Any], scenario: str, rank: str) -> None:
    core_before, core_after = seen[scenario]["core"]
    before, after = seen[scenario]["workers"]
    assert core_before == core_after
    assert sorted(before) == sorted(after) == ["0", "1"]
    assert {r: before[r] == after[r] for r in before} == {rank: False, str(1 - int(rank)): True}
    assert seen[scenario].get("left", []) == [], "shared memory of the lost worker"


def recoveries(seen: dict[str, Any]) -> list[tuple[str, str]]:
    assert "engine_died" not in [event["event"] for event in seen["events"]]
    ended = [event for event in seen["events"] if event["event"] == "group_recovered"]
    return [(event["kind"], event["outcome"]) for event in ended if event["outcome"] != "cleared"]
