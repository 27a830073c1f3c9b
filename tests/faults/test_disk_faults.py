"""A disk that fails under the log: appends end with one reason, nothing lost is reported stored, reading goes on.

Faults come from the log's own injection (also below io_uring), from the limit on file sizes, from a small file system where
mounting is allowed, and from strace where it is installed.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft import native

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))
from disk_door import append_all, chain

core = native.load()
SMALL = {"segment_bytes": 1 << 18, "window_ms": 1}


def append_until_refused(log: Any, blocks: list[tuple[Any, bytes]]) -> tuple[set[int], str]:
    """Tickets that were reported durable, and the reason that ended it."""
    durable: set[int] = set()
    reason = ""
    for ticket, (key, data) in enumerate(blocks):
        try:
            log.append(key, data, ticket)
        except core.CoreError as error:
            reason = error.code
        log.flush()
        answers = log.poll()
        durable |= {t for t, status in answers if status == "ok"}
        reason = next((status for _, status in answers if status != "ok"), reason)
        if reason:
            break
    return durable, reason


def all_there(log: Any, blocks: list[tuple[Any, bytes]], durable: set[int]) -> None:
    for ticket in durable:
        key, data = blocks[ticket]
        entry = log.find_link(key.link)
        assert entry is not None, "a durable block is lost"
        assert log.read(entry) == data


@pytest.mark.parametrize("backend", ["best", "threads"])
@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        ("write", errno.ENOSPC, "no_space"),
        ("write", errno.EIO, "io"),
        ("sync", errno.EIO, "io"),
        ("sync", errno.EDQUOT, "no_space"),
    ],
)
def test_a_failed_write_or_sync_ends_appends_with_its_reason(
    tmp_path: Path, rng: random.Random, kind: str, error: int, reason: str, backend: str
) -> None:
    path = str(tmp_path / "log")
    log = core.DiskLog.open(path, faults=[(kind, 7, 10_000, error)], backend=backend, **SMALL)
    blocks = chain(log, rng, 60)
    durable, why = append_until_refused(log, blocks)
    assert why == reason
    stats = log.stats()
    assert stats["reason"] == reason
    assert not stats["writable"]
    assert path in stats["reason_text"]
    all_there(log, blocks, durable)
    log.close()
    log = core.DiskLog.open(path, backend=backend, **SMALL)
    all_there(log, blocks, durable)
    append_all(log, [b for b in blocks if log.find_link(b[0].link) is None])
    log.close()


def test_a_full_disk_is_tried_again(tmp_path: Path, rng: random.Random) -> None:
    log = core.DiskLog.open(str(tmp_path / "log"), faults=[("write", 5, 1, errno.ENOSPC)], **SMALL)
    blocks = chain(log, rng, 60)
    _, why = append_until_refused(log, blocks)
    assert why == "no_space"
    until(lambda: log.stats()["writable"])
    append_all(log, [b for b in blocks if log.find_link(b[0].link) is None])
    log.close()


def test_an_unreadable_record_is_an_io_error_and_no_more(
    tmp_path: Path, rng: random.Random
) -> None:
    path = str(tmp_path / "log")
    log = core.DiskLog.open(path, **SMALL)
    blocks = chain(log, rng, 10)
    append_all(log, blocks)
    log.close()
    log = core.DiskLog.open(path, read_only=True, faults=[("read", 2, 1, errno.EIO)])
    results = []
    for key, data in blocks:
        try:
            assert log.read(log.find_link(key.link)) == data
            results.append("ok")
        except core.CoreError as error:
            results.append(error.code)
    assert results.count("io") == 1
    assert results.count("ok") == 9
    log.close()


LIMITED = """
import resource, signal, sys
sys.path.insert(0, sys.argv[3])
from disk_door import core, chain, append_all
import random
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # a host that would die of it
log = core.DiskLog.open(sys.argv[1], segment_bytes=1 << 18, window_ms=1)
blocks = chain(log, random.Random(1), 100)
append_all(log, blocks[:5])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
for key, data in blocks[5:]:
    try:
        log.append(key, data)
        log.flush()
    except core.CoreError as error:
        assert error.code == "no_space", error
stats = log.stats()
assert stats["reason"] == "no_space" and "ulimit" in stats["reason_text"], stats
for key, data in blocks[:5]:
    assert log.read(log.find_link(key.link)) == data
print("reads go on:", stats["reason_text"])
"""


def test_the_limit_on_file_sizes_ends_appends_and_not_the_process(tmp_path: Path) -> None:
    program = tmp_path / "limited.py"
    program.write_text(LIMITED)
    native_tests = str(Path(__file__).parents[1] / "native")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "log"), str(1 << 17), native_tests],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert "reads go on" in done.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
def test_a_folder_without_write_permission_opens_for_reading(
    tmp_path: Path, rng: random.Random
) -> None:
    path = tmp_path / "log"
    log = core.DiskLog.open(str(path), **SMALL)
    blocks = chain(log, rng, 10)
    append_all(log, blocks)
    log.close()
    path.chmod(0o500)
    check_read_only(str(path), blocks)
    path.chmod(0o700)


def check_read_only(path: str, blocks: list[tuple[Any, bytes]]) -> None:
    log = core.DiskLog.open(path, **SMALL)
    stats = log.stats()
    assert not stats["writable"]
    assert stats["reason"] == "read_only"
    all_there(log, blocks, set(range(len(blocks))))
    with pytest.raises(core.CoreError) as caught:
        log.append(*blocks[0])
    assert caught.value.code == "read_only"
    log.close()


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 4 MiB of the kind named by the parameter."""
    at = tmp_path / "disk"
    at.mkdir()
    if request.param == "tmpfs":
        commands = [["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(at)]]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(8 << 20)
        commands = [["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(at)]]
    for command in commands:
        if shutil.which(command[0], path="/usr/sbin:/sbin:/usr/bin:/bin") is None or (
            subprocess.run(command, capture_output=True).returncode
        ):
            pytest.skip(f"{command[0]} is not possible here: root in a real machine is needed")
    yield at
    subprocess.run(["umount", "-l", str(at)], capture_output=True)


@pytest.mark.parametrize("small_disk", ["tmpfs", "ext4"], indirect=True)
@pytest.mark.parametrize("backend", ["best", "threads"])
def test_a_small_file_system_keeps_the_newest_or_says_no_space(
    small_disk: Path, rng: random.Random, backend: str
) -> None:
    """Others' files fill the disk in the middle of it; then it is made read-only."""
    path = str(small_disk / "log")
    log = core.DiskLog.open(path, backend=backend, **SMALL)
    blocks = chain(log, rng, 600)
    append_all(log, blocks[:30])
    try:
        with (small_disk / "theirs").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 14))
    except OSError as error:  # at once, when the log has preallocated everything
        assert error.errno == errno.ENOSPC
    _, why = append_until_refused(log, blocks[30:])
    assert why in ("no_space", "")
    assert log.entries()
    for entry in log.entries():
        try:
            assert log.read(entry) == blocks[entry.key.position][1]
        except core.CoreError as error:
            assert error.code == "not_found"  # collected between the two calls
    (small_disk / "theirs").unlink(missing_ok=True)
    until(lambda: log.stats()["writable"])
    missing = [b for b in blocks[:60] if log.find_link(b[0].link) is None]
    append_all(log, missing[-5:])
    assert log.close()
    if subprocess.run(["mount", "-o", "remount,ro", str(small_disk)]).returncode == 0:
        kept = core.DiskLog.open(path, read_only=True)
        there = [blocks[entry.key.position] for entry in kept.entries()]
        kept.close()
        check_read_only(path, there)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    ("call", "code"), [("pwrite64:error=EIO", "io"), ("fdatasync:error=EIO", "io")]
)
def test_an_error_of_the_real_system_call_ends_appends(
    tmp_path: Path, call: str, code: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, random\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from disk_door import core, chain\n"
        "log = core.DiskLog.open(sys.argv[1], segment_bytes=1 << 18, window_ms=1, backend='threads')\n"
        "for key, data in chain(log, random.Random(1), 100):\n"
        "    try:\n"
        "        log.append(key, data)\n"
        "        log.flush()\n"
        "    except core.CoreError as error:\n"
        "        print('refused:', error.code)\n"
        "        break\n"
    )
    native_tests = str(Path(__file__).parents[1] / "native")
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:when=25+"]
    done = subprocess.run(
        [*strace, sys.executable, str(program), str(tmp_path / "log"), native_tests],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    if "ptrace" in done.stderr or "PTRACE" in done.stderr:
        pytest.skip("strace may not trace here")
    assert f"refused: {code}" in done.stdout, done.stdout + done.stderr


def until(holds: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)
