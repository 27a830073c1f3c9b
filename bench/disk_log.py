"""How fast blocks go to the disk log and back, durable and verified, beside plain direct I/O on the same file system.

The baseline is fio where it is installed, else a plain O_DIRECT loop: the same total in the same block size, as many operations in
flight, one job. Writes have two: `write` is beside fio that syncs as often as the log (once per group of the same bytes, by io_uring
where the log has it, so that it goes on writing meanwhile), `write_one_sync` is the same runs of the log beside fio that syncs once, at its
end, which is less work and has no target. All write into fallocated files and end durable; fio's file is made before its clock starts, the log makes its
segments, copies and digests inside. Each round measures all, in turn first, after what the other removed is durable too (a file system that
discards would make the next one pay for it); ratios are medians of pairs. Payloads have no pattern.
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
DEPTH, GROUP = 32, 16 << 20  # operations in flight, bytes committed together: the log's defaults
#: Of the baseline, and which figure of the log it is held against.
JOBS = {"write": "write", "write_one_sync": "write", "read": "read"}
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
    ours: dict[str, list[float]] = {"write": [], "read": []}
    theirs: dict[str, list[float]] = {job: [] for job in JOBS}
    backend = _backend(folder)
    said: dict[str, str] = {}
    for number in range(rounds):
        options.say(f"disk_log {size >> 10} KiB, round {number + 1} of {rounds}")
        for which in ("plain", "log") if number % 2 == 0 else ("log", "plain"):
            _settle(folder)
            if which == "log":
                for kind, value in zip(("write", "read"), _log(folder, size, total), strict=True):
                    ours[kind].append(value)
                continue
            for job in JOBS:
                _settle(folder)
                value, said[job] = plain(folder, job, size, total, backend)
                theirs[job].append(value)
    label = f"{size >> 20}MiB" if size >= 1 << 20 else f"{size >> 10}KiB"
    rows = []
    for job, kind in JOBS.items():
        pairs = zip(ours[kind], theirs[job], strict=True)
        rows.append(
            row(
                f"disk_log.{job}.{label}",
                statistics.median(ours[kind]),
                "GB/s",
                baseline=statistics.median(theirs[job]),
                ratio=statistics.median(a / b for a, b in pairs),
                target=None if job == "write_one_sync" else TARGET,
                note=f"{backend}, O_DIRECT, commits of {GROUP >> 20} MiB; lowest/median/highest {spread(ours[kind])}; "
                f"{said[job]}: {spread(theirs[job])}",
            )
        )
    return rows


def _backend(folder: Path) -> str:
    """What a log here does its I/O by."""
    log = native.load().DiskLog.open(str(folder / "log"))
    said = log.stats()
    log.close()
    shutil.rmtree(folder / "log")
    return str(said["backend"]) + (", page cache" if not said["direct"] else "")


def _settle(folder: Path) -> None:
    """Returns once what was removed from the folder before is durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _log(folder: Path, size: int, total: int) -> tuple[float, float]:
    """GB/s of appending until all is durable, and of reading it all back verified."""
    core = native.load()
    path = folder / "log"
    log = core.DiskLog.open(str(path), depth=DEPTH, group_bytes=GROUP)
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
    log.close()
    shutil.rmtree(path)
    return write, read


def plain(folder: Path, job: str, size: int, total: int, backend: str) -> tuple[float, str]:
    """GB/s of a job of JOBS over `total` bytes in pieces of `size`, and by what."""
    path = folder / "plain"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, total)
    every = GROUP // size if job == "write" else 0
    try:
        if job == "read":  # of written blocks: those that were only allocated are not read at all
            _fio(path, "write", size, total, "libaio", 0) if _has_fio() else _loop(
                path, "write", size, total, 0
            )
        if not _has_fio():
            return _loop(
                path, job, size, total, every
            ), f"O_DIRECT loop, a sync per {every or 'all'} blocks"
        engine = "io_uring" if every and backend.startswith("io_uring") else "libaio"
        value, command = _fio(
            path, "read" if job == "read" else "write", size, total, engine, every
        )
        return value, command
    finally:
        path.unlink()


def _has_fio() -> bool:
    return shutil.which("fio") is not None


def _fio(
    path: Path, kind: str, size: int, total: int, engine: str, every: int
) -> tuple[float, str]:
    job = f"fio --rw={kind} --bs={size} --size={total} --direct=1 --iodepth={DEPTH} --ioengine={engine}"
    job += " --end_fsync=1" * (kind == "write") + f" --fdatasync={every}" * bool(every)
    command = [*job.split(), "--name=plain", f"--filename={path}", "--output-format=json"]
    command += ["--overwrite=0", "--fallocate=none"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    found = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return float(total / (found["job_runtime"] / 1e3) / 1e9), job


def _loop(path: Path, kind: str, size: int, total: int, every: int) -> float:
    buffer = mmap.mmap(-1, size)
    file = os.open(path, os.O_RDWR | os.O_DIRECT)
    started = time.perf_counter()
    for number in range(total // size):
        if kind == "read":
            os.preadv(file, [buffer], number * size)
            continue
        os.pwritev(file, [buffer], number * size)
        if every and (number + 1) % every == 0:
            os.fdatasync(file)
    if kind != "read":
        os.fdatasync(file)
    took = time.perf_counter() - started
    os.close(file)
    return total / took / 1e9
