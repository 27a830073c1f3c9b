"""The reference engine's start: with fewer devices than shards, to which it grows later; and one that fails, of which nothing is left."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.cli.models import tiny_llama  # noqa: E402
from dynamo_gpu_ft.engines.reference import messages as say  # noqa: E402
from dynamo_gpu_ft.engines.reference.crew import Process  # noqa: E402
from dynamo_gpu_ft.engines.reference.driver import Engine  # noqa: E402
from dynamo_gpu_ft.engines.reference.options import Options  # noqa: E402
from dynamo_gpu_ft.engines.reference.sampling import Sampling  # noqa: E402
from dynamo_gpu_ft.errors import (  # noqa: E402
    ConfigError,
    GpuFtError,
    RecoveryFailed,
    StoreUnavailable,
)
from dynamo_gpu_ft.recovery import processes  # noqa: E402
from dynamo_gpu_ft.recovery.membership.base import MembershipStore  # noqa: E402
from dynamo_gpu_ft.recovery.membership.memory import MemoryStore  # noqa: E402
from tests.engines.reference_drill import Drill, Fault, prompts  # noqa: E402

FAULT = "XID 79: the GPU has fallen off the bus"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(
        tempfile.mkdtemp(prefix="gft-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    )
    yield made
    shutil.rmtree(made, ignore_errors=True)


# -- with fewer devices than shards ------------------------------------------------------------------------------------------


def test_an_engine_started_with_fewer_ranks_grows_to_all_of_them_with_equal_tokens(
    folder: Path,
) -> None:
    with Drill(tiny_llama(), folder, tp=3, arena_name="whole") as drill:
        wanted = drill.run(2).tokens
    with Drill(
        tiny_llama(), folder, tp=3, min_shards=2, arena_name="short", condemned={2: FAULT}
    ) as drill:
        engine = drill.engine
        assert sorted(engine.crew.members) == [0, 1]
        assert engine.coordinator.membership.shards == 3
        names = [
            engine.submit(p, Sampling(max_tokens=24), f"s{i}") for i, p in enumerate(prompts(2))
        ]
        outputs = {name: list[int]() for name in names}
        for step in range(10_000):
            if step == 10:
                assert engine.returned(2) == []
                assert sorted(engine.crew.members) == [0, 1, 2]
                assert {x[0] for x in engine.group.facts["loads"].values()} == {"neighbour"}
            for output in engine.step():
                assert output.token is not None
                outputs[output.request].append(output.token)
            if not engine.busy:
                break
        assert list(outputs.values()) == wanted
        # From here on it is as one that was started whole.
        report = drill.run(2, [Fault("kill", "decode", 1)])
        assert report.tokens == wanted
        assert report.kept == {0: True, 1: False, 2: True}


# -- a start that fails ------------------------------------------------------------------------------------------------------


class Hurt(Engine):
    """Its second rank is ordered to hurt itself when it loads."""

    how = "kill"

    def _hire(self) -> None:
        super()._hire()
        crew, forked, born = self.crew, self.crew.fork, list[Process]()

        def fork() -> Process:
            born.append(forked())
            if len(born) == 2:
                born[-1].send(say.Arm(point="load", how=self.how))
            return born[-1]

        crew.fork = fork  # type: ignore[method-assign]


class Stopped(Hurt):
    how = "stop"


def _children() -> set[int]:
    threads = Path("/proc/self/task").iterdir()
    return {int(pid) for each in threads for pid in (each / "children").read_text().split()}


def _ranks() -> list[str]:
    """Processes, whoever's children, that carry the tag of an engine of these tests."""
    found, tag = [], f"{processes.TAG_VARIABLE}=fails-{os.getpid()}-".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if tag in (entry / "environ").read_bytes():
                found.append(entry.name)
    return found


def _fails(
    folder: Path, error: type[GpuFtError], match: str, *, within_s: float, kind: type[Engine] = Engine,
    store: MembershipStore | None = None, tp: int = 2, model: Path | None = None, **settings: Any,
) -> None:  # fmt: skip
    """The start raises, in time, and leaves no child, no process of the engine and no file that only a live one has."""
    chosen = {"arena_dir": str(folder), "arena_name": "fails", "arena_bytes": "24MiB", "ledger_bytes": "1MiB", "start_timeout_s": 60, **settings}  # fmt: skip
    options = Options(
        model=str(model or tiny_llama()), tp=tp, faults=True, name="fails", settings=chosen
    )
    began, before = time.monotonic(), _children()
    with pytest.raises(error, match=match):
        kind(options, store)
    assert time.monotonic() - began < within_s
    assert _children() <= before
    assert not _ranks()
    assert not [file for file in os.listdir(folder) if f"fails-{os.getpid()}-" in file]


@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.long)])
def test_a_rank_that_is_lost_while_it_starts_ends_the_start(folder: Path, how: str) -> None:
    kind = {"kill": Hurt, "stop": Stopped}[how]
    why = {"kill": "shard 1: its process is gone", "stop": "shard 1: it is stopped"}[how]
    _fails(folder, RecoveryFailed, why, within_s=30, kind=kind, store=MemoryStore())


def test_a_model_without_weights_ends_the_start_with_the_ranks_own_words(
    folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "no-weights"
    shutil.copytree(tiny_llama(), model, ignore=shutil.ignore_patterns("*.safetensors"))
    _fails(
        folder,
        RecoveryFailed,
        "no source has this shard",
        within_s=30,
        model=model,
        store=MemoryStore(),
    )


def test_a_cut_that_is_not_possible_starts_nothing(folder: Path) -> None:
    _fails(folder, ConfigError, "tp = 64", within_s=10, tp=64, store=MemoryStore())


def test_an_arena_folder_that_is_not_there_starts_nothing(folder: Path, tmp_path: Path) -> None:
    _fails(
        folder, GpuFtError, "heartbeat file", within_s=10, arena_dir=str(tmp_path / "not-there"), store=MemoryStore(),
    )  # fmt: skip


@pytest.mark.long
def test_a_port_that_is_not_the_stores_ends_the_start(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        _fails(
            folder, StoreUnavailable, "store", within_s=30, membership=where, step_deadline_s=1.0
        )


def test_a_restart_that_fails_is_the_end_and_leaves_nothing(folder: Path) -> None:
    with Drill(tiny_llama(), folder, tp=1, arena_name="restarted", in_place=False) as drill:
        engine = drill.engine

        def hire() -> None:
            raise OSError("no process can be started")

        engine._hire = hire  # type: ignore[method-assign]
        report = drill.run(1, [Fault("kill", "decode", 0)])
        assert "no process can be started" in report.failed
        assert not processes.find(engine._tag)
