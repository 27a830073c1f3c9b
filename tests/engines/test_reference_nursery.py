"""The process that forks the ranks dies or hangs: nobody else does; and the driver's death leaves nothing, whatever state the others are in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.cli.models import tiny_llama  # noqa: E402
from dynamo_gpu_ft.recovery import processes  # noqa: E402
from tests.engines.reference_drill import Drill, Fault  # noqa: E402

DRIVER = """
import sys, time
from dynamo_gpu_ft.engines.reference.driver import Engine
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.sim.membership import MemoryStore
settings = {"arena_dir": sys.argv[2], "arena_name": "killed", "arena_bytes": "24MiB", "ledger_bytes": "1MiB", "standbys": 1}
engine = Engine(Options(model=sys.argv[1], tp=2, settings=settings), MemoryStore())
until = time.monotonic() + 60
while not engine.crew.standbys:
    assert time.monotonic() < until, "no standby"
    engine.crew.look()
pids = [p.pid for p in (*engine.crew.members.values(), *engine.crew.standbys)]
print(engine._tag, engine.crew.nursery.process.pid, *pids, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(
        tempfile.mkdtemp(prefix="gft-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    )
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.usefixtures("many_files")
def test_a_driver_with_many_files_starts_ranks_and_replaces_one(folder: Path) -> None:
    with Drill(tiny_llama(), folder, tp=2, arena_name="many") as drill:
        wanted = drill.run(1).tokens
        report = drill.run(1, [Fault("kill", "decode", 1)])
        assert (report.tokens, report.failed) == (wanted, "")


def test_the_death_of_the_nursery_hurts_nobody_and_the_next_loss_is_recovered(folder: Path) -> None:
    with Drill(tiny_llama(), folder, tp=2) as drill:
        wanted = drill.run(1).tokens
        for how in (signal.SIGKILL, signal.SIGSTOP):
            nursery = drill.engine.crew.nursery.process
            nursery.send_signal(how)
            report = drill.run(1)
            assert report.tokens == wanted
            assert not report.deaths
            assert all(report.kept.values())
            report = drill.run(1, [Fault("kill", "decode", 1)])
            assert report.tokens == wanted
            assert report.kept == {0: True, 1: False}
            assert not Path(f"/proc/{nursery.pid}").exists()
        tag = drill.engine._tag
    assert not processes.find(tag)


def test_a_nursery_that_dies_in_the_middle_of_a_recovery_is_replaced_in_it(folder: Path) -> None:
    with Drill(tiny_llama(), folder, tp=2) as drill:
        wanted = drill.run(1).tokens
        crew = drill.engine.crew
        forked = crew.fork

        def fork() -> object:
            """The order is sent and nobody is left to carry it out."""
            crew.nursery.process.send_signal(signal.SIGSTOP)
            crew.fork = forked  # type: ignore[method-assign]
            made = forked()
            crew.nursery.process.kill()
            return made

        crew.fork = fork  # type: ignore[assignment]
        report = drill.run(1, [Fault("kill", "decode", 0)])
        assert report.tokens == wanted
        assert report.kept == {0: False, 1: True}


def test_a_killed_driver_leaves_no_process_though_all_the_others_are_stopped(folder: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tiny_llama()), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert driver.stdout is not None
        tag, nursery, *ranks = driver.stdout.readline().split()
        for pid in (*ranks, nursery):
            os.kill(int(pid), signal.SIGSTOP)
        assert len(processes.find(tag)) == 4
        driver.kill()
        until = time.monotonic() + 10
        while processes.find(tag) and time.monotonic() < until:
            os.sched_yield()
        assert not processes.find(tag)
    finally:
        driver.kill()
        driver.communicate(timeout=10)
