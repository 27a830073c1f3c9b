"""Recovery in place as users of a server meet it: HTTP streams, the fault tolerance endpoints, and vLLM's own server with our executor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import engine_environment, prompt

from dynamo_gpu_ft.cli.demo.load import Ask, Stream, run_streams
from dynamo_gpu_ft.cli.demo.processes import Process
from dynamo_gpu_ft.cli.demo.progress import Phase
from dynamo_gpu_ft.cli.demo.server import PLAIN, PROTECTED, Server, free_port
from dynamo_gpu_ft.engines.vllm.inplace.http import APPLY, STATUS
from dynamo_gpu_ft.engines.vllm.inplace.support import EXECUTOR
from dynamo_gpu_ft.recovery.membership.base import Membership
from tests.contracts.membership_world import opened, server

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]


FLAGS = "--dtype float32 --max-model-len 1024 --block-size 32 --max-num-seqs 4 --enforce-eager"
FLAGS += " --tensor-parallel-size 2 --served-model-name tiny"
TOKENS, KILL_AT, DEADLINE_S = 80, 30, 120.0


class Told:
    """One server, asked and disturbed."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def ask(self, path: str, instruction: Any = None, method: str = "") -> tuple[int, Any]:
        body = None if instruction is None else json.dumps(instruction).encode()
        request = urllib.request.Request(
            self.server.url + path, body, method=method or ("POST" if body else "GET")
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status), json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def engine(self) -> dict[str, Any]:
        status, answer = self.ask(STATUS)
        assert status == 200
        (found,) = answer["engines"]
        return dict(found)

    def worker(self, rank: int) -> Process:
        title = f"VLLM::Worker_TP{rank}"
        (found,) = (p for p in self.server.engine() if p.title().startswith(title))
        return found

    def streams(self, label: str, watch: Any = lambda streams: None) -> list[Stream]:
        asks = [Ask(f"{label}{i}", prompt(i), TOKENS) for i in range(3)]
        return asyncio.run(run_streams(self.server.url, "tiny", asks, watch=watch))


def until(condition: Any, what: str) -> None:
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


def same(got: list[Stream], expected: list[Stream]) -> None:
    assert [s.error for s in got] == [None] * len(expected)
    assert [s.tokens for s in got] == [s.tokens for s in expected]
    assert [s.text for s in got] == [s.text for s in expected]


def started(
    entry: tuple[str, ...], model: Path, folder: Path, flags: list[str], **environ: str
) -> Server:
    base = engine_environment(VLLM_CPU_OMP_THREADS_BIND="0|1", **environ)
    port = free_port()
    return Server(
        entry, model, [*FLAGS.split(), *flags], port=port, environ=base, log=folder / "log"
    )


class Killed:
    """Watches streams and kills the worker of `rank` once all of them are in mid-decode."""

    def __init__(self, told: Told, rank: int, number: int = signal.SIGKILL) -> None:
        self.before = told.server.engine()
        self._victim, self._number, self.done = told.worker(rank), number, False

    def __call__(self, streams: list[Stream]) -> None:
        if not self.done and all(len(s.tokens) >= KILL_AT for s in streams):
            self.done = True
            os.kill(self._victim.pid, self._number)

    def check(self, told: Told) -> None:
        after = set(told.server.engine())
        assert self.done
        assert [p for p in self.before if p not in after] == [self._victim]


# -- dynamo-gpu-ft serve, epochs kept by a server ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server("tcp", tmp_path_factory.mktemp("epochs")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def protected(
    tiny_model: Path, place: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("serve")
    settings = {
        "ARENA_DIR": str(folder),
        "ARENA_BYTES": "128MiB",
        "LEDGER_BYTES": "1MiB",
        "ARENA_NAME": "tp2",
        "MEMBERSHIP": place,
        "MAX_RESTARTS": "20",
    }
    environ = {f"DYN_GPU_FT_{name}": value for name, value in settings.items()}
    with started(PROTECTED, tiny_model, folder, [], **environ) as it, Phase("starting") as phase:
        it.wait_ready(phase)
        yield Told(it)


@pytest.fixture(scope="module")
def undisturbed(protected: Told) -> list[Stream]:
    return protected.streams("plain")


def newest(place: str) -> Membership:
    found = opened(place).read("tp2")
    assert found is not None
    return found


def test_the_status_tells_the_group_as_the_store_has_it(protected: Told, place: str) -> None:
    until(lambda: protected.engine()["in_place"], "the group is told")
    engine, stored = protected.engine(), newest(place)
    assert (engine["status"], engine["state"], engine["paused"]) == ("healthy", "serving", False)
    assert engine["epoch"] == stored.epoch == 1
    assert engine["members"] == {str(m.shard): m.pid for m in stored.members}
    assert engine["members"] == {str(rank): protected.worker(rank).pid for rank in (0, 1)}


def test_a_killed_worker_is_a_new_epoch_and_its_streams_go_on(
    protected: Told, place: str, undisturbed: list[Stream]
) -> None:
    before, killed = newest(place), Killed(protected, 1)
    same(protected.streams("killed", killed), undisturbed)
    killed.check(protected)
    engine, stored = protected.engine(), newest(place)
    assert engine["recoveries"] == 1
    assert engine["epoch"] == stored.epoch > before.epoch
    assert stored.settled
    assert stored.of_shard(0) == before.of_shard(0)
    assert stored.of_shard(1) != before.of_shard(1)
    assert engine["members"]["1"] == protected.worker(1).pid


def test_paused_streams_stand_still_over_the_loss_of_a_worker_and_go_on_at_retry(
    protected: Told, undisturbed: list[Stream]
) -> None:
    recoveries = protected.engine()["recoveries"]
    said: list[Any] = []
    last: list[float] = [0.0, 0.0]  # tokens of all streams, since when

    def watch(streams: list[Stream]) -> None:
        tokens, now = sum(len(s.tokens) for s in streams), time.monotonic()
        if tokens != last[0]:
            last[:] = [tokens, now]
        if not said and all(len(s.tokens) >= KILL_AT for s in streams):
            said.append(protected.ask(APPLY, {"instruction": "pause"}))
        elif len(said) == 1 and now - last[1] > 1.0:
            said.append(protected.engine()["paused"])
            os.kill(protected.worker(0).pid, signal.SIGKILL)
        elif len(said) == 2 and protected.engine()["recoveries"] > recoveries:
            said.append(tokens)
            said.append(last[0])
            said.append(protected.ask(APPLY, {"instruction": "retry"}))

    same(protected.streams("paused", watch), undisturbed)
    (paused, answer), is_paused, tokens, then, (retried, _) = said
    assert (paused, retried) == (202, 202)
    assert answer["request_id"]
    assert is_paused is True
    assert tokens == then < 3 * TOKENS, "nobody got a token meanwhile"
    assert protected.engine()["paused"] is False


def test_what_cannot_be_done_is_refused_with_the_way_out(protected: Told) -> None:
    status, answer = protected.ask(APPLY, {"instruction": "scale_down"})
    assert status == 409
    assert "DYN_GPU_FT_STANDBYS" in answer["error"]
    assert protected.ask(APPLY, {"instruction": "explode"})[0] == 400
    assert protected.ask(APPLY, method="GET")[0] == 405
    assert protected.ask(STATUS, {"instruction": "pause"})[0] == 405
    assert protected.server.healthy()


# -- vLLM's own server -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """`vllm serve` with our executor and nothing else of ours: no connector, no ledger, no server of ours."""
    folder = tmp_path_factory.mktemp("plain")
    flags = ["--distributed-executor-backend", EXECUTOR]
    environ = {
        "DYN_GPU_FT_ARENA_DIR": str(folder),
        "DYN_GPU_FT_MAX_RESTARTS": "20",
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "10",
    }
    with (
        started(PLAIN, tiny_model, folder, flags, **environ) as it,
        Phase("starting") as phase,
    ):
        it.wait_ready(phase)
        yield Told(it)


def test_plain_vllm_serve_with_the_executor_keeps_its_streams_over_killed_and_stopped_workers(
    plain: Told,
) -> None:
    """Without anybody who watches steps, a stopped worker is judged from inside once vLLM's own limit of a step is over."""
    expected = plain.streams("plain")
    for label, rank, number in (
        ("one", 1, signal.SIGKILL),
        ("zero", 0, signal.SIGKILL),
        ("stopped", 1, signal.SIGSTOP),
    ):
        killed = Killed(plain, rank, number)
        same(plain.streams(label, killed), expected)
        killed.check(plain)


def test_a_worker_that_dies_while_plain_vllm_is_idle_is_replaced_by_the_next_request(
    plain: Told,
) -> None:
    before = plain.server.engine()
    victim = plain.worker(1)
    os.kill(victim.pid, signal.SIGKILL)
    until(lambda: victim not in plain.server.engine(), "the victim is gone")
    first, again = plain.streams("idle"), plain.streams("after")
    same(again, first)
    assert [p for p in before if p not in plain.server.engine()] == [victim]
