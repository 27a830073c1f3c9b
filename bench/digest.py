"""GB/s of our digests by instruction set and block size, beside reading and copying the same memory and other checksums.

Blocks lie one behind the other in a buffer larger than the processor's caches, as KV blocks do; every way goes over the same
blocks in turn, repetition by repetition, called from Python in the same manner.
"""

import ctypes
import hashlib
import importlib.util
import mmap
import statistics
import time
import zlib
from collections.abc import Callable
from typing import Any

from bench.arena_copy import address_of, fill, size_name
from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft import native

SIZES = (4 << 10, 64 << 10, 1 << 20, 4 << 20)
OTHERS_FROM = 1 << 20  # other checksums are measured at one size: they are bound by the processor
TARGET = 0.5  # of read bandwidth: the digest may cost a copy no more than a second look

Way = Callable[[int, int], object]  # (place, bytes) of a block in the buffer


def measure(options: Options) -> list[Row]:
    total = (32 if options.quick else 256) << 20
    rounds = 3 if options.quick else 9
    core = native.load()
    memory, target = mmap.mmap(-1, total), mmap.mmap(-1, total)
    _fill_without_zeros(memory)
    fill(target)
    rows: list[Row] = []
    for size in SIZES:
        options.say(f"blocks of {size_name(size)}")
        ways = _plain_ways(memory, target) | _our_ways(core, memory)
        if size == OTHERS_FROM:
            ways |= _other_ways(memory)
        figures: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                figures[name].append(_speed(way, total, size, slow=name in SLOW))
        rows += _rows(size, figures, core)
    return rows


SLOW = ("zlib.crc32", "hashlib.blake2b", "blake3", "xxhash.xxh3_128")


def _rows(size: int, figures: dict[str, list[float]], core: Any) -> list[Row]:
    read, copy = figures["read"], figures["memcpy"]
    chosen = f"{core.DIGEST}.{core.build_info()['digest_variant']}"
    rows = []
    for name, speeds in figures.items():
        if name in ("read", "memcpy"):
            continue
        rows.append(
            row(
                f"digest.{name}.{size_name(size)}",
                statistics.median(speeds),
                "GB/s",
                baseline=statistics.median(read),
                ratio=statistics.median(a / b for a, b in zip(speeds, read, strict=True)),
                target=TARGET if name == chosen and size >= 1 << 20 else None,
                note=f"{spread(speeds)}; baseline: reading the same bytes with memchr, {spread(read)}; "
                f"memcpy of them {spread(copy)}" + ("; what arenas use here" * (name == chosen)),
            )
        )
    return rows


def _speed(way: Way, total: int, size: int, *, slow: bool) -> float:
    part = total // 8 if slow else total
    started = time.perf_counter()
    for place in range(0, part - size + 1, size):
        way(place, size)
    return part // size * size / (time.perf_counter() - started) / 1e9


def _plain_ways(memory: mmap.mmap, target: mmap.mmap) -> dict[str, Way]:
    libc = ctypes.CDLL(None)
    libc.memchr.restype = ctypes.c_void_p
    libc.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    source, there = address_of(memory), address_of(target)
    return {
        # No byte of the buffer is zero, so memchr looks at all of them.
        "read": lambda place, size: libc.memchr(source + place, 0, size),
        "memcpy": lambda place, size: ctypes.memmove(there + place, source + place, size),
    }


def _our_ways(core: Any, memory: mmap.mmap) -> dict[str, Way]:
    view = memoryview(memory)

    def by(kind: int) -> Way:
        return lambda place, size: core.digest(view[place : place + size], kind)

    return {f"{name}.{how}": by(kind) for kind, (name, how) in enumerate(core.digest_kinds())}


def _other_ways(memory: mmap.mmap) -> dict[str, Way]:
    view = memoryview(memory)
    ways: dict[str, Way] = {
        "zlib.crc32": lambda place, size: zlib.crc32(view[place : place + size]),
        "hashlib.blake2b": lambda place, size: hashlib.blake2b(view[place : place + size]).digest(),
    }
    if importlib.util.find_spec("blake3"):
        import blake3

        ways["blake3"] = lambda place, size: blake3.blake3(view[place : place + size]).digest()
    if importlib.util.find_spec("xxhash"):
        import xxhash

        ways["xxhash.xxh3_128"] = lambda place, size: xxhash.xxh3_128_digest(
            view[place : place + size]
        )
    return ways


def _fill_without_zeros(memory: mmap.mmap) -> None:
    fill(memory)
    piece = bytes(byte or 1 for byte in memory[: 1 << 20])
    for place in range(0, len(memory), len(piece)):
        memory[place : place + len(piece)] = piece
