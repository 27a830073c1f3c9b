"""The heartbeat file with real processes: stopped, hung, killed, left, waiting for each other, on a full machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from door import code_of, core

WRITER = """
import sys, time
from dynamo_gpu_ft import native
path, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
beat = native.load().Beat(path, rank=rank, ranks=ranks, tick=0.02)
def steps(count, seconds=0.002, kind=3):
    for _ in range(count):
        beat.begin(kind); time.sleep(seconds); beat.end()
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""
DEADLINE_S = 30.0


class Writer:
    """A rank in a process of its own that does as it is told, line by line."""

    def __init__(self, path: Path, rank: int, ranks: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(rank), str(ranks)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def do(self, line: str) -> None:
        self.start(line)
        assert self.answer() == "done"

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "beats"


@pytest.fixture
def writers(path: Path) -> Iterator[Callable[[int], list[Writer]]]:
    started: list[Writer] = []

    def start(ranks: int) -> list[Writer]:
        started.extend(Writer(path, rank, ranks) for rank in range(ranks))
        return started

    yield start
    for writer in started:
        writer.end()


class Watch:
    """A watch with its queue; `hear` waits for one record, with a deadline."""

    def __init__(self, path: Path, ranks: int, **rules: float) -> None:
        self.queue = core.WatchQueue()
        self.watch = core.HangWatch(self.queue, str(path), ranks=ranks, **rules)
        self.heard: list[Any] = []

    def hear(self, what: str) -> Any:
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            for record in self.queue.take():
                self.heard.append(record)
                if record.what == what:
                    return record
            self.queue.wait(until - time.monotonic())
        raise AssertionError(f"no {what!r} among {[r.what for r in self.heard]}")


def test_a_stopped_process_is_hung_and_fine_again_when_it_goes_on(path: Path, writers: Any) -> None:
    (writer,) = writers(1)
    writer.do("steps(100)")
    watch = Watch(path, 1)
    writer.start("steps(10**9)")
    stopped = time.monotonic_ns()
    writer.process.send_signal(signal.SIGSTOP)
    record = watch.hear("hang")
    assert record.facts["cause"] == "stopped"
    assert record.facts["process_state"] == "T"
    assert record.facts["shard"] == "0"
    assert record.pid == writer.process.pid
    assert record.at_ns - stopped > 0.3e9, "a short stop is no hang"
    writer.process.send_signal(signal.SIGCONT)
    assert watch.hear("fine").facts["shard"] == "0"


def test_an_idle_process_that_is_stopped_is_hung_too(path: Path, writers: Any) -> None:
    (writer,) = writers(1)
    watch = Watch(path, 1)
    writer.process.send_signal(signal.SIGSTOP)
    assert watch.hear("hang").facts["cause"] == "stopped"


def test_a_step_that_never_ends_is_hung_although_the_process_lives(
    path: Path, writers: Any
) -> None:
    (writer,) = writers(1)
    writer.do("steps(200)")
    watch = Watch(path, 1)
    writer.start("beat.begin(3); time.sleep(3600)")
    record = watch.hear("hang")
    assert record.facts["cause"] == "step"
    assert record.facts["process_state"] in "SRD"
    assert int(record.facts["elapsed_ms"]) >= int(record.facts["limit_ms"])


def test_who_holds_up_a_collective_is_named(path: Path, writers: Any) -> None:
    first, second = writers(2)
    for writer in (first, second):
        writer.do("steps(200)")
    watch = Watch(path, 2)
    first.start("beat.begin(3); time.sleep(3600)")  # waits for the other, which never comes
    record = watch.hear("hang")
    assert record.facts["shard"] == "0"
    assert record.facts["laggards"] == "1"


def test_a_replaced_rank_is_not_named_for_the_one_that_holds_up_a_collective(
    path: Path, writers: Any
) -> None:
    first, second, third = writers(3)
    for writer in (first, second, third):
        writer.do("steps(200)")
    third.end()
    fresh = Writer(path, 2, 3)
    try:
        watch = Watch(path, 3)
        for writer in (first, fresh):
            writer.start("beat.begin(3, 201); time.sleep(3600)")  # the second never comes
        assert watch.hear("hang").facts["laggards"] == "1"
    finally:
        fresh.end()


def test_a_killed_process_is_gone_and_one_that_left_is_not(path: Path, writers: Any) -> None:
    first, second = writers(2)
    watch = Watch(path, 2)
    first.do("del beat")
    second.process.kill()
    record = watch.hear("gone")
    assert record.facts["shard"] == "1"
    assert [r.facts["shard"] for r in watch.heard if r.what == "gone"] == ["1"]


def test_work_that_waits_for_a_step_that_never_begins_is_a_hang(path: Path, writers: Any) -> None:
    writers(1)
    watch = Watch(path, 1, no_step=0.3)
    watch.watch.expect(True)
    record = watch.hear("hang")
    assert record.facts["cause"] == "no_step"
    assert "shard" not in record.facts


def test_a_full_machine_is_no_hang(path: Path, writers: Any) -> None:
    """Four busy processes per processor take the time away from a rank that makes short steps."""
    (writer,) = writers(1)
    writer.do("steps(500)")
    watch = Watch(path, 1)
    count = 4 * len(os.sched_getaffinity(0))
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        for _ in range(4):
            writer.do("steps(300, 0.001)")
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    watch.watch.stop()
    assert not [r.facts for r in watch.queue.take() if r.what == "hang"]


def test_a_successor_takes_the_slot_and_the_former_process_writes_no_more(path: Path) -> None:
    first = Writer(path, 0, 1)
    second = Writer(path, 0, 1)
    try:
        first.do("assert not beat.ours; steps(5)")
        second.do("assert beat.ours; steps(3); assert beat.steps == 3, beat.steps")
    finally:
        first.end()
        second.end()


def test_a_forked_child_neither_writes_nor_hangs(path: Path) -> None:
    beat = core.Beat(str(path), rank=0, ranks=1)
    queue = core.WatchQueue()
    watch = core.HangWatch(queue, str(path), ranks=1)
    beat.begin(3)
    beat.end()
    child = os.fork()
    if child == 0:
        beat.begin(3)
        watch.stop()
        del beat
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert beat.steps == 1
    assert beat.ours


def test_a_file_that_is_none_of_ours_is_refused_with_the_reason(tmp_path: Path) -> None:
    def open_it(path: Path, ranks: int = 1) -> None:
        core.Beat(str(path), rank=0, ranks=ranks)

    text = tmp_path / "text"
    text.write_text("no heartbeat" * 10)
    text.chmod(0o600)
    shared = tmp_path / "shared"
    core.Beat(str(shared), rank=0, ranks=1)
    shared.chmod(0o666)
    small = tmp_path / "small"
    core.Beat(str(small), rank=0, ranks=1)
    cut = tmp_path / "cut"
    core.Beat(str(cut), rank=0, ranks=1)
    os.truncate(cut, 4096)
    assert code_of(open_it, text) == "damaged"
    assert code_of(open_it, shared) == "damaged"
    assert code_of(open_it, cut) == "damaged"
    assert code_of(open_it, small, 2) == "mismatch"
    assert code_of(open_it, tmp_path / "absent" / "x") == "io"
    assert code_of(open_it, tmp_path / "many", 5000) == "invalid"
    (tmp_path / "link").symlink_to(small)
    assert code_of(open_it, tmp_path / "link") == "io"


def test_many_processes_that_make_the_file_at_once_share_one(path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(rank), "8"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(8)
    ]  # fmt: skip
    for writer in writers:
        out, _ = writer.communicate("steps(3); assert beat.ours and beat.steps == 3\n", timeout=60)
        assert out.split() == ["ready", "done"]
    assert [p.name for p in path.parent.iterdir()] == ["beats"]
