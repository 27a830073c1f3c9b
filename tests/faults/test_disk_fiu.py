"""System calls made to fail by libfiu under a whole worker's disk: it ends in "NOT PROTECTED on disk" with the reason, reading goes on,
and no committed block is lost. Faults are switched while it runs, by `fiu-ctrl`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(
        shutil.which("fiu-run") is None or shutil.which("fiu-ctrl") is None,
        reason="libfiu is not installed (package fiu-utils)",
    ),
    pytest.mark.skipif(
        "LD_PRELOAD" in os.environ, reason="another preloaded library is in the way"
    ),
]
HERE = Path(__file__).parent


class Worker:
    """fiu_engine.py under fiu-run; every answer has a deadline through the test's own."""

    def __init__(self, folder: Path) -> None:
        self.control = str(folder / "ctrl")
        arena = folder / f"arena-{time.monotonic_ns()}"
        command = ["fiu-run", "-x", "-f", self.control]
        command += [sys.executable, str(HERE / "fiu_engine.py"), str(arena), str(folder / "kv")]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        )

    def greet(self, *faults: str) -> Worker:
        """Opens the log with these faults on; `first` is what was said about it."""
        self.pid = self._read()["pid"]
        for fault in faults:
            self.switch(fault)
        self.first = self.ask("open")
        return self

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker ended: {self.process.wait(30)}"
        return json.loads(line)

    def ask(self, command: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._read()

    def switch(self, command: str) -> None:
        subprocess.run(
            ["fiu-ctrl", "-f", self.control, "-c", command, str(self.pid)],
            check=True,
            timeout=30,
            capture_output=True,
        )

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def make(*faults: str) -> Worker:
        started.append(Worker(tmp_path))
        return started[-1].greet(*faults)

    yield make
    for worker in started:
        if worker.process.poll() is None:
            worker.process.kill()
        worker.process.communicate(timeout=30)


def spilled_until_refused(worker: Worker) -> Any:
    for _ in range(60):
        said = worker.ask("spill 5")
        if said["said"]:
            return said
    raise AssertionError("no fault ever showed")


def refusal(said: Any) -> str:
    (line,) = said["said"]
    assert line.startswith(
        "NOT PROTECTED on disk: blocks stay in memory only, the engine serves on"
    )
    return str(line)


@pytest.mark.timeout(300)
def test_a_full_disk_is_said_once_reading_goes_on_and_room_ends_it(
    start: Callable[..., Worker],
) -> None:
    worker = start()
    before = worker.ask("spill 20")
    assert (before["spilled"], before["said"]) == (20, [])
    worker.switch(f"enable name=posix/io/rw/pwrite,failinfo={errno.ENOSPC}")
    said = spilled_until_refused(worker)
    line = refusal(said)
    assert os.strerror(errno.ENOSPC) in line
    assert "free room" in line
    assert not said["writable"]
    assert said["reason"] == "no_space"
    said = worker.ask("read")
    assert (len(said["good"]), said["bad"]) == (20, [])
    worker.switch("disable name=posix/io/rw/pwrite")
    deadline = time.monotonic() + 120
    while not worker.ask("read")["writable"]:
        assert time.monotonic() < deadline, "the log does not try again"
    said = worker.ask("spill 20")
    assert said["spilled"] == 40
    assert len(said["said"]) == 1
    said = worker.ask("read")
    assert (len(said["good"]), said["bad"]) == (40, [])
    worker.end()


@pytest.mark.timeout(300)
def test_a_sync_that_fails_now_and_then_ends_the_log_for_good_and_loses_nothing(
    start: Callable[..., Worker],
) -> None:
    """What was committed before is read by this worker and found by the next; what was under way was never called stored."""
    worker = start()
    worker.ask("spill 20")
    worker.switch(
        f"enable_random name=posix/io/sync/fdatasync,probability=0.3,failinfo={errno.EIO}"
    )
    said = spilled_until_refused(worker)
    line = refusal(said)
    assert os.strerror(errno.EIO) in line
    assert "sync" in line
    assert said["reason"] == "io"
    spilled = said["spilled"]
    worker.switch("disable name=posix/io/sync/fdatasync")
    said = worker.ask("spill 20")
    assert (said["spilled"], said["writable"]) == (spilled, False)
    assert len(said["said"]) == 1
    said = worker.ask("read")
    assert (len(said["good"]), said["bad"]) == (spilled, [])
    worker.end()
    following = start()
    found = following.ask("read")
    assert set(said["good"]) <= set(found["good"])
    assert found["bad"] == []
    assert following.ask("spill 5")["spilled"] == 5
    following.end()


@pytest.mark.timeout(300)
def test_a_disk_that_fails_from_the_start_leaves_what_is_there_readable(
    start: Callable[..., Worker],
) -> None:
    worker = start()
    kept = worker.ask("spill 20")["spilled"]
    names = worker.ask("read")["good"]
    worker.end()
    failing = start(f"enable name=posix/io/rw/pwrite,failinfo={errno.EIO}")
    said = failing.ask("spill 3")
    assert os.strerror(errno.EIO) in refusal(said)
    assert said["sealed"] == 3
    said = failing.ask("read")
    assert (sorted(said["good"]), said["bad"], len(names)) == (sorted(names), [], kept)
    failing.end()


@pytest.mark.timeout(300)
def test_a_new_log_on_a_disk_that_fails_is_said_at_the_start(start: Callable[..., Worker]) -> None:
    worker = start(f"enable name=posix/io/rw/pwrite,failinfo={errno.ENOSPC}")
    (line,) = worker.first["said"]
    assert line.startswith("NOT PROTECTED on disk")
    assert os.strerror(errno.ENOSPC) in line
    assert worker.ask("spill 3")["sealed"] == 3
    worker.end()


@pytest.mark.timeout(300)
def test_cut_reads_and_writes_and_unreadable_records_are_no_wrong_answers(
    start: Callable[..., Worker],
) -> None:
    worker = start(
        "enable_random name=posix/io/rw/pwrite/reduce,probability=0.5",
        "enable_random name=posix/io/rw/pread/reduce,probability=0.5",
    )
    said = worker.ask("spill 60")
    assert (said["spilled"], said["said"]) == (60, [])
    said = worker.ask("read")
    assert (len(said["good"]), said["bad"]) == (60, [])
    worker.switch(f"enable name=posix/io/rw/pread,failinfo={errno.EIO}")
    said = worker.ask("read")
    assert said["good"] == []
    assert len(said["bad"]) == 60
    assert all(os.strerror(errno.EIO) in text for text in said["bad"])
    worker.switch("disable name=posix/io/rw/pread")
    said = worker.ask("read")
    assert (len(said["good"]), said["bad"]) == (60, [])
    worker.end()
