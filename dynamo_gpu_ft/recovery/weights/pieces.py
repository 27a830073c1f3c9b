"""Needs put together out of stored boxes, each verified by its digest before a byte of it counts.

What `neighbour` and `peer` share: both hold whole tensors of some shard, and a need may be one of them, a part of one, or lie across
several (after the engine was cut up anew).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dynamo_gpu_ft import native
from dynamo_gpu_ft.recovery.weights.base import DTYPES, Need, Sink, refuse

Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor that a source holds: what it is, where its bytes begin (in the source's own terms) and their digest."""

    need: Need
    dtype: str
    at: int
    digest: bytes
    where: str

    @property
    def size(self) -> int:
        return self.need.size(self.dtype)


def overlap(first: Box, second: Box) -> Box | None:
    """The box that both have in common; None when there is none."""
    if len(first) != len(second):
        return None
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(first, second, strict=True))
    return both if all(a < b for a, b in both) else None


def cover(need: Need, stored: Sequence[Stored]) -> list[tuple[Stored, Box]]:
    """Which boxes to take `need` from: one that is equal if there is one, else parts that together fill it exactly.

    Raises `WeightsError` when something is lacking."""
    for each in stored:
        if each.need == need:
            return [(each, need.box)]
    parts: list[tuple[Stored, Box]] = []
    for each in stored:
        part = overlap(need.box, each.need.box) if each.need.tensor == need.tensor else None
        if part is not None and all(overlap(part, other) is None for _, other in parts):
            parts.append((each, part))
    filled = sum(math.prod(b - a for a, b in part) for _, part in parts)
    if filled != math.prod(need.shape):
        raise refuse("a tensor is not there", str(need), f"{filled} elements", "all of it")
    return parts


def place(
    part: Box, source: memoryview, source_box: Box, target: memoryview, box: Box, width: int
) -> None:
    """Copies `part` from one box's bytes into another's; both contiguous, elements of `width` bytes."""
    begin, to = part[-1]
    count = (to - begin) * width
    for index in _indices(part[:-1]):
        a = _offset((*index, begin), source_box) * width
        b = _offset((*index, begin), box) * width
        target[b : b + count] = source[a : a + count]


def _indices(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for begin, to in ranges:
        found = [(*index, i) for index in found for i in range(begin, to)]
    return found


def _offset(index: Sequence[int], box: Box) -> int:
    at = 0
    for i, (begin, to) in zip(index, box, strict=True):
        at = at * (to - begin) + (i - begin)
    return at


def assemble(
    needs: Sequence[Need],
    stored: Sequence[Stored],
    read: Callable[[Stored, memoryview], None],
    sink: Sink,
    deadline_s: float,
    readers: int = 1,
) -> tuple[int, int, dict[str, bytes]]:
    """Fills the sink, with so many threads; (bytes read, bytes needed, digests as in `Report`). Raises `WeightsError`, `TimeoutError`; nothing
    is read when a need is not there in whole."""
    core, give_up = native.load(), time.monotonic() + deadline_s
    by_tensor: dict[str, list[Stored]] = {}
    for each in stored:
        by_tensor.setdefault(each.need.tensor, []).append(each)
    found = [(need, cover(need, by_tensor.get(need.tensor, ()))) for need in needs]

    def fill(need: Need, parts: Sequence[tuple[Stored, Box]]) -> tuple[int, int, bytes | None]:
        """Bytes read and needed, and the digest of the sink's own bytes where it is known."""
        if time.monotonic() > give_up:
            raise TimeoutError(f"weights came too slowly: not all of them in {deadline_s:g} s")
        dtype = parts[0][0].dtype if parts else "F32"
        if any(part.dtype != dtype for part, _ in parts):
            raise refuse("parts of a tensor have different types", str(need))
        room = sink.room(need, dtype)
        for part, box in parts:
            exact = part.need.box == need.box
            whole = room if exact else memoryview(bytearray(part.size))
            read(part, whole)
            if (digest := core.digest(whole)) != part.digest:
                raise refuse(
                    "kept weights are damaged",
                    f"{part.where}, {part.need}",
                    digest.hex(),
                    f"digest {part.digest.hex()}",
                    "the next source is asked",
                )
            if not exact:
                place(box, whole, part.need.box, room, need.box, DTYPES[dtype])
        in_place = sink.filled(need, dtype) and len(parts) == 1 and parts[0][0].need.box == need.box
        size = sum(part.size for part, _ in parts)
        return size, need.size(dtype), parts[0][0].digest if in_place else None

    if readers > 1:
        with ThreadPoolExecutor(readers, "weights") as pool:
            told = list(pool.map(lambda each: fill(*each), found))
    else:
        told = [fill(need, parts) for need, parts in found]
    digests = {
        str(need): digest for need, (_, _, digest) in zip(needs, told, strict=True) if digest
    }
    return sum(read for read, _, _ in told), sum(needed for _, needed, _ in told), digests
