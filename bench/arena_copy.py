"""How fast KV blocks go into the arena and back, digest and seal included, beside memcpy of the same buffers.

The engine side is a buffer larger than the processor's caches; the arena is one file in /dev/shm. Both sides are warm before
anything is measured, and each repetition measures memcpy (the faster of two ways) and the copy engine one after the other.
"""

import ctypes
import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft import native
from dynamo_gpu_ft.errors import GpuFtError

BLOCK_SIZES = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
TARGET = 0.8
TARGET_FROM = 256 << 10
DEADLINE_S = 120.0
FRAGMENTS = 30  # a block of a 30-layer model lies in 30 places


def measure(options: Options) -> list[Row]:
    total = (64 if options.quick else 256) << 20
    rounds = 3 if options.quick else 15
    threads = [1] if (os.cpu_count() or 1) < 2 else [1, 2]
    rows = []
    for count in threads:
        for size in BLOCK_SIZES if count == 1 else (1 << 20,):
            for fragments in (1, FRAGMENTS) if size == 1 << 20 and count == 1 else (1,):
                options.say(f"blocks of {size >> 10} KiB, {fragments} fragments, {count} threads")
                rows += _measure(size, fragments, count, total, rounds)
    return rows


def _measure(size: int, fragments: int, threads: int, total: int, rounds: int) -> list[Row]:
    """Rows `store` and `load` for one block size. A block's payload is `fragments` equal pieces, `blocks` apart."""
    piece = size // fragments // 64 * 64
    blocks = total // (piece * fragments)
    with _Bench(piece, fragments, blocks, threads) as bench:
        for _ in range(
            2
        ):  # both generations of slots, so that no page is touched for the first time later
            bench.store()
            bench.load()
            bench.memcpy_out()
            bench.memcpy_in()
        figures: dict[str, list[float]] = {"store": [], "load": [], "out": [], "in": []}
        for _ in range(rounds):
            figures["out"].append(bench.memcpy_out())
            figures["store"].append(bench.store())
            figures["in"].append(bench.memcpy_in())
            figures["load"].append(bench.load())
    label = size_name(size) + (f".{fragments}fragments" if fragments > 1 else "")
    label += f".{threads}threads" if threads > 1 else ""
    rows = []
    for kind, plain in (("store", "out"), ("load", "in")):
        ours, theirs = figures[kind], figures[plain]
        rows.append(
            row(
                f"arena_copy.{kind}.{label}",
                statistics.median(ours),
                "GB/s",
                baseline=statistics.median(theirs),
                ratio=statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
                target=TARGET if size >= TARGET_FROM and fragments == 1 else None,
                note=f"lowest/median/highest {spread(ours)}; memcpy {spread(theirs)}; ratio is the median of pairs",
            )
        )
    return rows


def size_name(size: int) -> str:
    return f"{size >> 20}MiB" if size >= 1 << 20 else f"{size >> 10}KiB"


class _Bench:
    """One arena with its copy engine, one engine-side buffer, and plain memory of the arena's kind for memcpy."""

    def __init__(self, piece: int, fragments: int, blocks: int, threads: int) -> None:
        self.piece, self.fragments, self.blocks, self.threads = piece, fragments, blocks, threads
        self.bytes = piece * fragments * blocks
        self._generation = 0
        self._job = 0
        self._pool = ThreadPoolExecutor(threads)
        self._held: list[bytes] = []

    def __enter__(self) -> "_Bench":
        core = native.load()
        size = self.piece * self.fragments
        self._stack = memory_folder(3 * self.bytes + (64 << 20))
        folder = self._stack.__enter__()
        self._arena = core.Arena.create(
            str(folder / "bench.arena"),
            slot_bytes=size,
            slots=2 * self.blocks + 2,
            ledger_bytes=1 << 20,
        )
        token = os.urandom(16)
        self._arena.begin_epoch(token)
        namespace = self._arena.add_namespace(b"bench")
        self._writer = self._arena.attach_writer(shard=0, token=token, namespace=namespace)
        self._engine_side = mmap.mmap(-1, self.bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._arena_side = shared_memory(folder / "plain", self.bytes)
        fill(self._engine_side)
        start = address_of(self._engine_side)
        whole = self.piece * self.blocks  # one region holds one fragment of every block
        regions = [
            (start + number * whole, self.piece, self.piece, self.blocks)
            for number in range(self.fragments)
        ]
        self._core = core
        self._engine = core.CopyEngine(self._writer, core.Layout(regions), threads=self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()
        self._writer.close()
        self._arena.close()
        self._pool.shutdown()
        self._stack.__exit__(None, None, None)

    def _list(self, generation: int) -> list[Any]:
        hashes = [f"{generation:08d}-{number:08d}".encode() for number in range(self.blocks)]
        parents: list[bytes | None] = [None, *hashes[:-1]]
        return [
            self._core.Block(number, name, parent, number)
            for number, (name, parent) in enumerate(zip(hashes, parents, strict=True))
        ]

    def _submit(self, submit: Callable[[int, Any], None], blocks: list[Any], wanted: str) -> float:
        """GB/s from queueing to done. A block that was not copied would make us look fast, so it is an error."""
        self._job += 1
        started = time.perf_counter()
        submit(self._job, blocks)
        done = self._engine.wait(DEADLINE_S)
        took = time.perf_counter() - started
        results = self._engine.poll()
        statuses = {status for result in results for status in result.statuses}
        if not done or statuses != {wanted} or sum(r.bytes for r in results) != self.bytes:
            raise GpuFtError(
                "the copy engine did not copy every block",
                where=f"job {self._job}",
                value=sorted(statuses),
                rule=f"all {wanted} in {DEADLINE_S:.0f} s",
                remedy="a bigger /dev/shm",
            )
        return self.bytes / took / 1e9

    def store(self) -> float:
        self._generation += 1
        blocks = self._list(self._generation)
        speed = self._submit(self._engine.store, blocks, "ok")
        # The generation before becomes room for the next one; this one stays to be loaded.
        self._engine.release(self._held)
        self._engine.wait(DEADLINE_S)
        self._held = [f"{self._generation:08d}-{n:08d}".encode() for n in range(self.blocks)]
        return speed

    def load(self) -> float:
        return self._submit(self._engine.load, self._list(self._generation), "ok")

    def memcpy_out(self) -> float:
        """Engine side to memory of the arena's kind, block by block."""
        return self._memcpy(address_of(self._arena_side), address_of(self._engine_side))

    def memcpy_in(self) -> float:
        return self._memcpy(address_of(self._engine_side), address_of(self._arena_side))

    def _memcpy(self, target: int, source: int) -> float:
        """GB/s of the faster of two ways: block by block, and in one piece per thread (where libc bypasses the caches)."""
        size = self.piece * self.fragments
        share = -(-self.blocks // self.threads) * size
        return max(
            self._timed(target, source, range(0, self.bytes, size), size),
            self._timed(target, source, range(0, self.bytes, share), share),
        )

    def _timed(self, target: int, source: int, places: range, size: int) -> float:
        def copy(part: range) -> None:
            for place in part:
                ctypes.memmove(target + place, source + place, min(size, self.bytes - place))

        started = time.perf_counter()
        if self.threads == 1:
            copy(places)
        else:
            list(self._pool.map(copy, (places[n :: self.threads] for n in range(self.threads))))
        return self.bytes / (time.perf_counter() - started) / 1e9


@contextmanager
def memory_folder(wanted: int) -> Iterator[Path]:
    """A fresh folder in /dev/shm, removed afterwards."""
    free = shutil.disk_usage("/dev/shm").free
    if free < wanted:
        raise GpuFtError(
            "no room", where="/dev/shm", value=free, rule=f"{wanted} bytes", remedy="--quick"
        )
    folder = Path(tempfile.mkdtemp(prefix="gft-bench-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shared_memory(path: Path, size: int) -> mmap.mmap:
    """`size` bytes of the same kind of memory as an arena: a mapped file in the same folder, every page touched."""
    with path.open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        memory = mmap.mmap(file.fileno(), size)
    for place in range(0, size, mmap.PAGESIZE):
        memory[place] = 1
    return memory


def fill(memory: mmap.mmap) -> None:
    """Bytes without a pattern: a page of zeros would be read from one place."""
    piece = os.urandom(1 << 20)
    for place in range(0, len(memory), len(piece)):
        memory[place : place + len(piece)] = piece[: len(memory) - place]


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
