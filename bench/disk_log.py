"""How fast blocks go to the disk log and back, durable and verified, beside plain direct I/O on the same file system.

The baseline is fio where it is installed (O_DIRECT, as many operations in flight as the log has, one job), else a plain O_DIRECT loop. Both
write the same bytes into fallocated files and end durable; fio's file is made before its clock starts, the log makes its segments, copies
and digests inside. Each round measures both, in turn first, after what the other removed is durable too (a file system that
discards would make the next one pay for it); the ratio is the median of pairs. Payloads have no pattern.
"""

import ctypes
import json
import mmap
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft import native

BLOCK_SIZES = (256 << 10, 1 << 20, 4 << 20)
TARGET = 0.9
DEPTH = 32  # the log's default
NAMESPACE = b'{"engine": {"model": "bench"}}'


def measure(options: Options) -> list[Row]:
    total = (256 if options.quick else 512) << 20
    rounds = 2 if options.quick else 7
    folder = Path(tempfile.mkdtemp(prefix="gft-bench-", dir=os.environ.get("GFT_BENCH_DISK")))
    try:
        return [
            each for size in BLOCK_SIZES for each in _measure(folder, size, total, rounds, options)
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(folder: Path, size: int, total: int, rounds: int, options: Options) -> list[Row]:
    figures: dict[str, list[float]] = {"write": [], "read": [], "raw_write": [], "raw_read": []}
    backend = baseline = ""
    for number in range(rounds):
        options.say(f"disk_log {size >> 10} KiB, round {number + 1} of {rounds}")
        for which in ("plain", "log") if number % 2 == 0 else ("log", "plain"):
            _settle(folder)
            if which == "plain":
                raw_write, raw_read, baseline = plain(folder, size, total)
                figures["raw_write"].append(raw_write)
                figures["raw_read"].append(raw_read)
            else:
                write, read, backend = _log(folder, size, total)
                figures["write"].append(write)
                figures["read"].append(read)
    label = f"{size >> 20}MiB" if size >= 1 << 20 else f"{size >> 10}KiB"
    rows = []
    for kind in ("write", "read"):
        ours, theirs = figures[kind], figures[f"raw_{kind}"]
        rows.append(
            row(
                f"disk_log.{kind}.{label}",
                statistics.median(ours),
                "GB/s",
                baseline=statistics.median(theirs),
                ratio=statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
                target=TARGET,
                note=f"{backend}; lowest/median/highest {spread(ours)}; {baseline} {spread(theirs)}",
            )
        )
    return rows


def _settle(folder: Path) -> None:
    """Returns once what was removed from the folder before is durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _log(folder: Path, size: int, total: int) -> tuple[float, float, str]:
    """GB/s of appending until all is durable, and of reading it all back verified."""
    core = native.load()
    path = folder / "log"
    log = core.DiskLog.open(str(path))
    namespace = log.add_namespace(NAMESPACE)
    count = total // size
    blocks = []
    for number in range(count):
        data = os.urandom(4096) * (size // 4096)
        key = core.DiskKey.seal(
            namespace=namespace,
            shard=0,
            position=0,
            epoch=1,
            block_hash=b"%d" % number,
            parent_link=namespace,
            payload=data,
        )
        blocks.append((key, data))
    started = time.perf_counter()
    for number, (key, data) in enumerate(blocks):
        log.append(key, data, number)
    assert log.flush(600)
    write = total / (time.perf_counter() - started) / 1e9
    assert len(log.poll()) == count
    target = mmap.mmap(-1, total)
    target.write(bytes(total))
    at = ctypes.addressof(ctypes.c_char.from_buffer(target))
    wanted: list[Any] = []
    for number, (key, _) in enumerate(blocks):
        entry = log.find_link(key.link)
        assert entry is not None
        wanted.append((entry, [(0, size, at + number * size)]))
    started = time.perf_counter()
    answers = log.read_into(wanted, 600)
    read = total / (time.perf_counter() - started) / 1e9
    assert {status for status, _ in answers} == {"ok"}
    backend = f"{log.stats()['backend']}, direct {log.stats()['direct']}"
    log.close()
    shutil.rmtree(path)
    return write, read, backend


def plain(folder: Path, size: int, total: int) -> tuple[float, float, str]:
    """GB/s of writing (synced at the end) and reading `total` bytes in pieces of `size`, and by what."""
    path = folder / "plain"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, total)
    try:
        if shutil.which("fio"):
            return _fio(path, "write", size, total), _fio(path, "read", size, total), "fio"
        return (*_loop(path, size, total), "O_DIRECT loop")
    finally:
        path.unlink()


def _fio(path: Path, kind: str, size: int, total: int) -> float:
    command = ["fio", "--name=plain", f"--filename={path}", f"--rw={kind}", f"--bs={size}"]
    command += [f"--size={total}", "--direct=1", f"--iodepth={DEPTH}", "--ioengine=libaio"]
    command += ["--output-format=json", "--overwrite=0", "--fallocate=none"]
    command += ["--end_fsync=1"] * (kind == "write")
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return float(total / (job["job_runtime"] / 1e3) / 1e9)


def _loop(path: Path, size: int, total: int) -> tuple[float, float]:
    buffer = mmap.mmap(-1, size)
    file = os.open(path, os.O_RDWR | os.O_DIRECT)
    started = time.perf_counter()
    for at in range(0, total, size):
        os.pwritev(file, [buffer], at)
    os.fdatasync(file)
    write = total / (time.perf_counter() - started) / 1e9
    started = time.perf_counter()
    for at in range(0, total, size):
        os.preadv(file, [buffer], at)
    read = total / (time.perf_counter() - started) / 1e9
    os.close(file)
    return write, read
