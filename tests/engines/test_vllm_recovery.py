"""A real vLLM engine dies under open streams in several ways; the streams go on token for token, with KV from the arena."""

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

PROGRAM = Path(__file__).with_name("recovery_scenarios.py")
BLOCK = 32
SCENARIOS = [
    "undisturbed",
    "engine_and_worker_killed",
    "worker_killed",
    "killed_again_while_starting_and_a_client_leaves",
]


def run(
    model: Path,
    folder: Path,
    scenarios: list[str],
    restart_tp: int = 0,
    more: dict[str, Any] | None = None,
    **llm: Any,
) -> dict[str, Any]:
    """What the scenarios saw, with the settings `more` beside the test's own."""
    settings = {"arena_dir": str(folder), "arena_bytes": "128MiB", "ledger_bytes": "1MiB"}
    settings |= {"max_restarts": 10, "journal": str(folder / "journal"), "restart_tp": restart_tp}
    settings |= {"restore_by_cost": False, **(more or {})}
    environment = engine_environment()
    if 2 in (llm.get("tensor_parallel_size"), restart_tp):
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
    orders = [json.dumps(settings), json.dumps({"scenarios": scenarios, "llm": llm})]
    with (folder / "log").open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(model), *orders],
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
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
    folder = Path(tempfile.mkdtemp(prefix="gft-recovery-", dir="/dev/shm"))
    yield run(tiny_model, folder, SCENARIOS)
    shutil.rmtree(folder, ignore_errors=True)


def check_streams(seen: dict[str, Any], scenario: str, *, streams: int) -> None:
    got, expected = seen[scenario], seen["undisturbed"]["tokens"]
    assert got["finish"] == ["length"]
    assert len(got["tokens"]) == streams
    for name, tokens in got["tokens"].items():
        if name in expected:
            assert tokens == expected[name], f"stream {name} of {scenario} differs"
        assert len(tokens) == 100


def check_restored(seen: dict[str, Any], scenario: str, *, streams: int) -> None:
    last = {r["request_id"]: r for r in seen[scenario]["resumed"]}
    assert len(last) == streams
    for resumed in last.values():
        had = 300 + resumed["tokens_before"]
        assert resumed["tokens_restored"] + resumed["tokens_recomputed"] == had
        assert resumed["tokens_recomputed"] <= BLOCK + had % BLOCK + 1, resumed


def test_killing_engine_and_worker_changes_no_token_and_costs_at_most_a_block_and_the_tail(
    seen: dict[str, Any],
) -> None:
    assert seen["engine_and_worker_killed"]["victims"] >= 2
    check_streams(seen, "engine_and_worker_killed", streams=3)
    check_restored(seen, "engine_and_worker_killed", streams=3)


def test_killing_only_the_worker_is_recovered_the_same_way(seen: dict[str, Any]) -> None:
    check_streams(seen, "worker_killed", streams=3)
    check_restored(seen, "worker_killed", streams=3)


def test_a_second_kill_while_starting_and_a_client_that_leaves_change_nothing_for_the_others(
    seen: dict[str, Any],
) -> None:
    scenario = "killed_again_while_starting_and_a_client_leaves"
    check_streams(seen, scenario, streams=3)
    check_restored(seen, scenario, streams=3)
    assert seen[scenario]["left_open"] == []
    assert not seen[scenario]["cancelled_was_resumed"]
    failed = [e for e in seen["events"] if e["event"] == "step_done" and not e["ok"]]
    assert [e["step"] for e in failed] == ["start"], failed


def test_the_ledger_knows_that_nothing_is_open_at_the_end(seen: dict[str, Any]) -> None:
    assert seen["ledger_open"] == []


def test_no_process_is_left_behind(seen: dict[str, Any]) -> None:
    assert seen["processes_left"] == []


def test_every_process_of_an_engine_is_known_to_the_one_that_must_end_it(
    seen: dict[str, Any],
) -> None:
    ready = [e for e in seen["events"] if e["event"] == "engine_ready"]
    assert len(ready) == 4
    assert all(len(e["pids"]) >= 2 for e in ready)


def test_every_recovery_is_told_by_phase(seen: dict[str, Any]) -> None:
    steps = {e["step"] for e in seen["events"] if e["event"] == "step_done" and e["ok"]}
    assert {"reap", "start", "resubmit", "first_token"} <= steps
    recovered = [e for e in seen["events"] if e["event"] == "recovered"]
    assert [e["requests"] for e in recovered] == [3, 3, 3]


@pytest.mark.long
def test_two_tensor_parallel_ranks_are_recovered_from_both_ranks_kv(tiny_model: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="gft-recovery-tp2-", dir="/dev/shm"))
    try:
        seen = run(
            tiny_model,
            folder,
            ["undisturbed", "engine_and_worker_killed"],
            tensor_parallel_size=2,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert seen["engine_and_worker_killed"]["victims"] >= 3
    assert seen["segments_left"] == []
    check_streams(seen, "engine_and_worker_killed", streams=3)
    check_restored(seen, "engine_and_worker_killed", streams=3)


@pytest.mark.long  # test_vllm_layouts changes the number of ranks in the ordinary run
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_an_engine_that_comes_back_with_another_number_of_ranks_restores_the_kv_of_the_former(
    tiny_model: Path, before: int, after: int
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="gft-recovery-resized-", dir="/dev/shm"))
    try:
        seen = run(
            tiny_model,
            folder,
            ["undisturbed", "engine_and_worker_killed"],
            restart_tp=after,
            tensor_parallel_size=before,
        )
        arenas = sorted(path.suffix for path in folder.glob("*.arena*"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    check_streams(seen, "engine_and_worker_killed", streams=3)
    check_restored(seen, "engine_and_worker_killed", streams=3)
    assert seen["ledger_open"] == []
    assert arenas == [".arena", ".former"]
