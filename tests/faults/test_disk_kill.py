"""Writers of a disk log killed or stopped at random instants: no durable block is lost, none is wrong, no stale writer harms.

Each run is one life of a writer in a folder that lives through several. GFT_DISK_KILL_RUNS sets the number of kills (30 in the
ordinary test run); a failing run prints its seed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import disk_writer as work
import pytest

from dynamo_gpu_ft import native

RUNS = int(os.environ.get("GFT_DISK_KILL_RUNS", "30"))
LIVES = 5  # of one folder
MODES = ["best", "threads", "best+zstd", "threads+zstd", "best+cap", "threads+cap+zstd"]

core = native.load()


class World:
    """One folder with its notes, through the lives of its writers."""

    def __init__(self, folder: Path, seed: int, rng: random.Random) -> None:
        self.path, self.seed, self.rng = folder / "log", seed, rng
        self.notes = folder / "notes"
        self.notes.write_bytes(bytes(work.BLOCKS + 1))
        self.mode = rng.choice(MODES)

    def start(self, *, endless: bool = False) -> subprocess.Popen[bytes]:
        with self.notes.open("r+b") as file:
            file.seek(work.READY)
            file.write(b"\0")
        what = [str(Path(work.__file__)), core.__file__, str(self.path), str(self.notes)]
        mode = self.mode + "+endless" * endless
        command = [sys.executable, "-S", *what, str(self.seed), mode]
        return subprocess.Popen(command, stderr=subprocess.PIPE)

    def await_ready(self, writer: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while not self.noted()[work.READY]:
            assert writer.poll() is None or self.noted()[work.READY], said(writer)
            assert time.monotonic() < deadline, "the writer did not start"
            os.sched_yield()

    def a_random_instant(self) -> None:
        """Not a synchronisation: nothing depends on how far the writer got."""
        until = time.perf_counter() + self.rng.random() ** 2 * 0.6
        while time.perf_counter() < until:
            os.sched_yield()

    def noted(self) -> bytes:
        return self.notes.read_bytes()

    def check(self, log: Any, noted: bytes) -> Counter[str]:
        """Whatever the log holds is right, and what was reported as durable is there (unless a cap may forget it)."""
        found: Counter[str] = Counter()
        names = set()
        for entry in log.entries():
            number = int(entry.key.block_hash.split(b"/")[1])
            if number < work.BLOCKS:
                try:
                    data = log.read(entry)
                except core.CoreError as error:
                    assert (error.code, "cap" in self.mode) == ("not_found", True), error
                    continue  # forgotten between the two calls
                assert data == work.payload_of(self.seed, number), "a wrong block"
                names.add(number)
                found[entry.codec] += 1
        lost = [n for n in range(work.BLOCKS) if noted[n] == work.DURABLE and n not in names]
        if "cap" not in self.mode:
            assert not lost, f"durable blocks are lost: {lost}"
        return found


def said(writer: subprocess.Popen[bytes]) -> str:
    _, text = writer.communicate(timeout=60)
    return f"exit {writer.returncode}: {text.decode()}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_durable_block_is_lost_or_wrong_when_writers_are_killed(
    tmp_path: Path, rng: random.Random
) -> None:
    totals: Counter[str] = Counter()
    world = None
    for run in range(RUNS):
        if run % LIVES == 0:
            folder = tmp_path / f"world{run}"
            folder.mkdir()
            world = World(folder, rng.randrange(2**32), rng)
        assert world is not None
        print(f"run {run}: seed {world.seed}, {world.mode}")
        writer = world.start(
            endless=rng.random() < 0.8
        )  # others may be done before they are killed
        if rng.random() < 0.9:
            world.await_ready(writer)
        world.a_random_instant()
        writer.kill()
        text = said(writer)
        assert writer.returncode in (0, -signal.SIGKILL), text
        totals["killed"] += writer.returncode != 0
        noted = world.noted()
        read_only = rng.random() < 0.5 and (world.path / "lock").exists()
        try:
            log = core.DiskLog.open(
                str(world.path), read_only=read_only, **work.options(world.mode)
            )
        except core.CoreError as error:
            assert (error.code, work.DURABLE in noted) == ("not_found", False), error
            continue
        totals.update(world.check(log, noted))
        totals["collected"] += log.stats()["collected"]
        assert log.close()
    print(dict(totals))
    assert totals["killed"] > RUNS // 2
    assert totals["none"] > RUNS


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["best+endless", "threads+zstd+endless"])
def test_a_stopped_writer_that_goes_on_after_a_takeover_is_fenced_and_harms_nothing(
    tmp_path: Path, rng: random.Random, mode: str
) -> None:
    for run in range(max(4, RUNS // 10)):
        folder = tmp_path / f"world{run}"
        folder.mkdir()
        world = World(folder, rng.randrange(2**32), rng)
        world.mode = mode
        print(f"run {run}: seed {world.seed}")
        writer = world.start()
        world.await_ready(writer)
        world.a_random_instant()
        os.kill(writer.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert writer.poll() is None, said(writer)
        noted = world.noted()
        with pytest.raises(core.CoreError) as caught:
            core.DiskLog.open(str(world.path), **work.options(mode))
        assert caught.value.code == "busy"
        assert str(writer.pid) in str(caught.value)
        log = core.DiskLog.open(str(world.path), takeover=True, **work.options(mode))
        world.check(log, noted)
        namespace = log.add_namespace(work.RECORD)
        mine = [work.key_of(core, namespace, world.seed, work.BLOCKS + n) for n in range(50)]
        for number, (key, payload) in enumerate(mine):
            if number == 10:
                writer.send_signal(signal.SIGCONT)
            assert log.append(key, payload, number) in ("ok", "present")
        assert log.flush()
        text = said(writer)
        assert writer.returncode == 3, f"not fenced: {text}"
        later = world.noted()
        assert {s for _, s in log.poll()} == {"ok"}
        assert log.close()
        log = core.DiskLog.open(str(world.path), **work.options(mode))
        for key, payload in mine:
            entry = log.find_link(key.link)
            assert entry is not None, "the successor's block is lost"
            assert log.read(entry) == payload
        # Nothing that the stale writer reported after the stop may have come too late to count.
        world.check(log, later)
        log.close()
