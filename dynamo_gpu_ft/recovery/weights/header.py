"""The header of a safetensors file, and which of a folder's files has which tensor; every word of it is checked before it is used.

The format: 8 bytes with the length of the JSON that follows, little endian; then the tensors' bytes, which the JSON's
offsets count from its end. `slices` reads the ranges that this file finds.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.recovery.weights.base import DTYPES, refuse

#: The library itself refuses longer ones.
MAX_HEADER_BYTES = 100_000_000
MAX_INDEX_BYTES = 100_000_000
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: its file, the byte in it where it begins, its element type and shape."""

    path: Path
    begin: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype]


def read_at(descriptor: int, offset: int, into: memoryview, path: Path) -> None:
    """Fills `into` from `offset` on; a file that ends before that is an error that says so."""
    done = 0
    while done < len(into):
        got = os.preadv(descriptor, [into[done:]], offset + done)
        if got == 0:
            raise refuse(
                "a weight file ends too early",
                str(path),
                f"{done} of {len(into)} bytes at {offset}",
                "it is as long as its header says",
                "copy the checkpoint again",
            )
        done += got


def entries(path: Path) -> dict[str, Entry]:
    """Every tensor of one file. Raises `WeightsError` for a file that is missing, cut short, or whose header lies."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _bad(path, error.strerror, "a readable file") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _bad(path, stat.filemode(status.st_mode), "a plain file")
        return _entries(path, descriptor, status.st_size)
    except OSError as error:
        raise _bad(path, error.strerror, "a readable file") from error
    finally:
        os.close(descriptor)


def _entries(path: Path, descriptor: int, size: int) -> dict[str, Entry]:
    if size < 8:
        raise _bad(path, f"{size} bytes", "at least the 8 bytes of its header's length")
    length = bytearray(8)
    read_at(descriptor, 0, memoryview(length), path)
    count = int.from_bytes(length, "little")
    if not 2 <= count <= min(MAX_HEADER_BYTES, size - 8):
        raise _bad(path, f"a header of {count} bytes in {size}", "a header that fits the file")
    text = bytearray(count)
    read_at(descriptor, 8, memoryview(text), path)
    try:
        header = json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise _bad(path, str(error), "a header of JSON") from error
    if not isinstance(header, dict):
        raise _bad(path, type(header).__name__, "a header that is an object")
    data = 8 + count
    found = {
        name: _entry(path, name, value, data, size)
        for name, value in header.items()
        if name != "__metadata__"
    }
    _no_overlap(path, found)
    return found


def _entry(path: Path, name: str, value: Any, data: int, size: int) -> Entry:
    fits = isinstance(value, Mapping) and {"dtype", "shape", "data_offsets"} <= set(value)
    if not fits or value["dtype"] not in DTYPES:
        raise _bad(path, {name: value}, "dtype, shape and data_offsets of known types")
    shape, offsets = value["shape"], value["data_offsets"]
    whole = (
        isinstance(shape, list)
        and isinstance(offsets, list)
        and len(offsets) == 2
        and len(shape) <= 8
        and all(type(n) is int and 0 <= n < 1 << 48 for n in [*shape, *offsets])
    )
    if not whole:
        raise _bad(path, {name: value}, "whole numbers that are not negative")
    entry = Entry(path, data + offsets[0], value["dtype"], tuple(shape))
    if offsets[1] - offsets[0] != entry.size:
        raise _bad(path, {name: value}, "offsets as far apart as the shape says")
    if data + offsets[1] > size:
        raise _bad(path, f"{name} ends at {data + offsets[1]} of {size} bytes", "all bytes present")
    return entry


def _no_overlap(path: Path, found: Mapping[str, Entry]) -> None:
    at, before = 0, ""
    for name, entry in sorted(found.items(), key=lambda pair: (pair[1].begin, pair[1].size)):
        if entry.begin < at:
            raise _bad(path, f"{name} begins inside {before}", "no two tensors share bytes")
        at, before = entry.begin + entry.size, name


def of_folder(folder: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint: of its one file, or of those its index names. Raises `WeightsError`."""
    index = folder / INDEX
    if not index.exists():
        return entries(folder / SINGLE)
    try:
        if not 0 < index.stat().st_size <= MAX_INDEX_BYTES:
            raise ValueError(f"{index.stat().st_size} bytes")
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad(index, str(error), "an index with a weight_map") from error
    found: dict[str, Entry] = {}
    for name in files:
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise _bad(index, name, "files of the checkpoint's own folder")
        found |= entries(folder / name)
    lacking = sorted(set(weight_map) - set(found))
    if lacking:
        raise _bad(index, lacking[:3], "every tensor of the index is in its file")
    return found


def _bad(path: Path, value: object, rule: str) -> Exception:
    return refuse(
        "a weight file cannot be used", str(path), value, rule, "copy the checkpoint again"
    )
