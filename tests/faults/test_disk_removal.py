"""Logs that no engine has any more: they are shown, and removed only when asked, old, and in nobody's hands; a stopped writer's never."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import disk_writer as work
import pytest

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli.main import main
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.kv import disk

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
from disk_door import append_all, chain

core = native.load()
SMALL = {"segment_bytes": 1 << 18, "window_ms": 1}
DAY = 86400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A `disk_dir`."""
    return tmp_path / "kv"


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    def run(*arguments: Any) -> tuple[int, Any, str]:
        status = main(["inspect", *(str(a) for a in arguments), "--json"])
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else None, err

    return run


def make(folder: Path, shard: int, rng: random.Random, arena: str = "default") -> Path:
    """A log of ten blocks that nobody has open."""
    path = folder / arena / f"shard-{shard}"
    log = core.DiskLog.open(str(path), **SMALL)
    append_all(log, chain(log, rng, 10, size=5000))
    assert log.close()
    return path


def age(path: Path, days: float) -> None:
    for file in path.iterdir():
        then = file.stat().st_mtime - days * DAY
        os.utime(file, (then, then))


def states(said: Any) -> dict[str, str]:
    return {"/".join(Path(log["path"]).parts[-2:]): log["state"] for log in said["logs"]}


def test_unused_logs_are_shown_and_only_old_ones_removed_when_asked(
    folder: Path, rng: random.Random, answer: Any
) -> None:
    old, young, live, other = (
        make(folder, 4, rng),
        make(folder, 5, rng),
        make(folder, 0, rng),
        make(folder, 0, rng, arena="former"),
    )
    for path in (old, live, other):
        age(path, 8)
    writer = core.DiskLog.open(str(live), **SMALL)
    expected = {
        "default/shard-0": "written",
        "default/shard-4": "unused",
        "default/shard-5": "unused",
        "former/shard-0": "unused",
    }
    status, said, _ = answer(folder)
    assert (status, states(said)) == (0, expected)
    by_path = {log["path"]: log for log in said["logs"]}
    assert by_path[str(live)]["pid"] == os.getpid()
    assert by_path[str(old)]["bytes"] >= 10 * 5000
    assert 7.9 * DAY < by_path[str(old)]["age_s"] < 8.1 * DAY
    assert old.is_dir(), "looking removes nothing"
    status, said, _ = answer(folder / "default", "--remove-unused", "--older-than", "9d")
    assert (status, said["removed"]) == (0, [])
    status, said, _ = answer(folder, "--remove-unused")
    assert (status, sorted(said["removed"])) == (0, sorted([str(old), str(other)]))
    assert not other.parent.exists()
    assert sorted(p.name for p in old.parent.iterdir()) == ["shard-0", "shard-5"]
    append_all(writer, chain(writer, rng, 20, size=5000)[10:])
    assert writer.close()
    status, said, _ = answer(folder, "--remove-unused", "--older-than", "0s")
    assert sorted(said["removed"]) == sorted([str(live), str(young)])


def test_a_log_that_somebody_reads_stays_unless_that_is_said_too(
    folder: Path, rng: random.Random, answer: Any
) -> None:
    """What an engine of another TP converts from; a reader whose log goes computes instead."""
    path = make(folder, 7, rng)
    age(path, 30)
    config = Config.load({"disk_dir": str(folder)}, environ={})
    reader = disk.open_reader(config, 7)
    assert reader is not None
    entries = reader.entries()
    kept = [reader.read(entry) for entry in entries]
    status, said, _ = answer(folder, "--remove-unused")
    assert (status, said["removed"], states(said)) == (0, [], {"default/shard-7": "read"})
    assert [reader.read(entry) for entry in entries] == kept
    status, said, _ = answer(folder, "--remove-unused", "--even-if-read")
    assert said["removed"] == [str(path)]
    reader.refresh()
    for entry, data in zip(entries, kept, strict=True):
        try:
            assert reader.read(entry) == data
        except core.CoreError as error:
            assert error.code == "not_found"
    reader.close()
    assert disk.open_reader(config, 7) is None


@pytest.mark.parametrize("fenced", [False, True])
def test_the_log_of_a_stopped_writer_is_never_removed(
    folder: Path, rng: random.Random, answer: Any, fenced: bool
) -> None:
    """Stopped, and also when another process has taken over and ended since: it lives, and may go on."""
    path = folder / "default" / "shard-0"
    path.parent.mkdir(parents=True)
    notes = folder / "notes"
    notes.write_bytes(bytes(work.BLOCKS + 1))
    what = [str(Path(work.__file__)), core.__file__, str(path), str(notes), "7", "threads"]
    writer = subprocess.Popen([sys.executable, "-S", *what])
    try:
        until(lambda: work.DURABLE in notes.read_bytes()[: work.BLOCKS])
        os.kill(writer.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert writer.poll() is None
        if fenced:
            core.DiskLog.open(str(path), takeover=True, **SMALL).close()
        age(path, 300)
        how = ["--remove-unused", "--older-than", "0s", "--even-if-read"]
        status, said, _ = answer(folder, *how)
        assert (status, said["removed"]) == (0, [])
        assert states(said) == {"default/shard-0": "written"}
        with pytest.raises(core.CoreError) as caught:
            core.disk_set_aside(str(path), str(path) + ".x")
        assert caught.value.code == "busy"
        writer.send_signal(signal.SIGCONT)
        assert writer.wait(60) == (3 if fenced else 0)
    finally:
        if writer.poll() is None:
            writer.kill()
            writer.wait(60)
    log = core.DiskLog.open(str(path), read_only=True)
    assert log.entries()
    log.close()
    status, said, _ = answer(folder, *how)
    assert said["removed"] == [str(path)]


def test_opening_while_logs_are_removed_gives_a_whole_log_or_says_busy(
    folder: Path, rng: random.Random
) -> None:
    """Whoever got a log keeps it: what it reports as durable is there until it has closed."""
    path = folder / "default" / "shard-0"
    path.parent.mkdir(parents=True)
    over, removed, failures = threading.Event(), [0], []

    def remove() -> None:
        number = 0
        while not over.is_set():
            number += 1
            aside = folder / "default" / f"gone-{threading.get_ident()}-{number}"
            try:
                core.disk_set_aside(str(path), str(aside))
                removed[0] += 1
            except core.CoreError as error:
                if error.code not in ("busy", "not_found"):
                    failures.append(str(error))

    threads = [threading.Thread(target=remove) for _ in range(2)]
    for thread in threads:
        thread.start()
    opened = busy = 0
    try:
        deadline = time.monotonic() + 120
        while opened < 60:
            assert time.monotonic() < deadline
            try:
                log = core.DiskLog.open(str(path), **SMALL)
            except core.CoreError as error:
                assert error.code in ("busy", "not_found"), error
                busy += 1
                continue
            opened += 1
            blocks = chain(log, rng, 3, size=2000)
            missing = [b for b in blocks if log.find_link(b[0].link) is None]
            append_all(log, missing)
            assert all(log.read(log.find_link(k.link)) == data for k, data in blocks)
            assert (path / "lock").exists()
            log.close()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    print(f"{opened} opened, {busy} told to wait, {removed[0]} removed")
    assert not failures
    assert removed[0] > 0


def test_a_removal_cut_short_leaves_nothing_that_is_taken_for_a_log(
    folder: Path, rng: random.Random, answer: Any
) -> None:
    path = make(folder, 3, rng)
    aside = path.with_name("shard-3.removed-00000000")
    core.disk_set_aside(str(path), str(aside))
    for file in sorted(aside.iterdir())[:2]:
        file.unlink()
    config = Config.load({"disk_dir": str(folder)}, environ={})
    assert disk.shards_on_disk(config) == []
    fresh = make(folder, 3, rng)
    status, said, _ = answer(folder)
    assert states(said) == {
        "default/shard-3": "unused",
        "default/shard-3.removed-00000000": "left over",
    }
    status, said, _ = answer(folder, "--remove-unused")
    assert (status, said["removed"]) == (0, [str(aside)])
    assert fresh.is_dir()


def test_what_is_not_a_log_or_holds_more_than_one_is_not_touched(
    folder: Path, rng: random.Random, answer: Any
) -> None:
    path = make(folder, 1, rng)
    (path / "mine.txt").write_text("precious")
    age(path, 30)
    link = folder / "default" / "shard-2"
    link.symlink_to(make(folder, 9, rng, arena="other"))
    status, said, err = answer(folder, "--remove-unused")
    assert status == 1
    assert "mine.txt" in err
    assert (path / "mine.txt").read_text() == "precious"
    assert said["removed"] == []
    assert states(said)["default/shard-2"] == "refused"
    assert len(core.DiskLog.open(str(path), read_only=True).entries()) == 10
    status, _, err = answer(path, "--remove-unused")
    assert status == 2
    assert "folder of disk logs" in err
    (folder / "default" / "shard-8").mkdir(mode=0o755)
    (folder / "default" / "shard-8").chmod(0o755)
    status, said, _ = answer(folder, "--remove-unused", "--older-than", "0s", "--even-if-read")
    assert states(said)["default/shard-8"] == "refused"
    assert (folder / "default" / "shard-8").is_dir()


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)
