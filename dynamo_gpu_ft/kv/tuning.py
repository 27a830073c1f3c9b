"""When small pieces are packed by a kernel and when each goes by DMA: thresholds from a few measured transfers, kept per device.

Pure but for `measured` and the cache file, which is untrusted input: what does not hold is measured again.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

#: Sizes and counts of the measured transfers: the range in which peers saw the crossover, on either side.
SIZES = (4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10)
COUNTS = (16, 64, 256)
VERSION = 1
LARGEST_FILE = 16384
#: Packed although nothing was measured, when it cannot be: below this, one call per piece costs more than its bytes.
DEFAULT = ((16, 28 << 10),)

Thresholds = tuple[tuple[int, int], ...]
"""Ascending (count, below): transfers of at least `count` pieces pack pieces shorter than `below` bytes."""


class Sample(msgspec.Struct, frozen=True):
    """One measured transfer: `count` pieces of `bytes` bytes, in seconds, packed by a kernel and each by DMA."""

    count: int
    bytes: int
    kernel: float
    direct: float


class Tuned(msgspec.Struct, frozen=True):
    """The cache file's content, and what a copy engine is made with."""

    version: int
    key: str
    out: Thresholds
    load: Thresholds


def thresholds(samples: Sequence[Sample]) -> Thresholds:
    """For each count: pack all sizes up to the largest one at which packing was faster; none where it never was.

    A size between two measured ones counts as the next larger, because packing is the smaller risk of the two."""
    rows = []
    sizes = sorted({sample.bytes for sample in samples})
    for count in sorted({sample.count for sample in samples}):
        won = [s.bytes for s in samples if s.count == count and s.kernel < s.direct]
        larger = [size for size in sizes if won and size > max(won)]
        below = (larger[0] if larger else max(won) + 1) if won else 0
        rows.append((count, below))
    return tuple(rows)


def measured(measure: Callable[..., float], direct: str, *, load: bool) -> list[Sample]:
    """Asks `measure(way, load=, bytes=, count=)` for every size and count; `direct` is "batch" or "plain"."""
    samples = []
    for count in COUNTS:
        for size in SIZES:
            kernel = measure("kernel", load=load, bytes=size, count=count)
            samples.append(
                Sample(count, size, kernel, measure(direct, load=load, bytes=size, count=count))
            )
    return samples


def key_of(facts: Mapping[str, str]) -> str:
    """What a measurement is valid for: this device, this driver, these ways of copying."""
    return "/".join(facts[name] for name in ("uuid", "driver", "batch", "compute"))


def read(path: Path, key: str) -> Tuned | None:
    """The cached thresholds, or None when there are none, or none that can be trusted. Never raises."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        tuned = msgspec.json.decode(data, type=Tuned)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return None
    whole = len(data) <= LARGEST_FILE and tuned.version == VERSION and tuned.key == key
    return tuned if whole and _sane(tuned.out) and _sane(tuned.load) else None


def write(path: Path, tuned: Tuned) -> None:
    """Puts the file in place whole, or not at all. Never raises: the cost is to measure again."""
    temporary = None
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(tuned))
        os.replace(temporary, path)
        temporary = None
    if temporary is not None:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _sane(rows: Thresholds) -> bool:
    counts = [count for count, _below in rows]
    return (
        len(rows) <= 64
        and counts == sorted(set(counts))
        and all(0 < count < 2**32 and 0 <= below < 2**32 for count, below in rows)
    )
