"""Weights from the checkpoint itself: only the byte ranges of this shard's rows and columns, read straight into their place.

The last and slowest source, and the one that is always there. Nothing but headers and needed ranges is read: what a shard costs is its
share of the checkpoint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dynamo_gpu_ft.recovery.weights import header
from dynamo_gpu_ft.recovery.weights.base import DTYPES, Need, Report, Sink, refuse


class SliceSource:
    """`WeightSource` over a folder of safetensors files. Headers are read at the first load and kept."""

    name = "checkpoint"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, header.Entry] | None = None

    def entries(self) -> dict[str, header.Entry]:
        """Every tensor of the checkpoint. Raises `WeightsError`."""
        if self._entries is None:
            self._entries = header.of_folder(self._folder)
        return self._entries

    def load(self, needs: Sequence[Need], sink: Sink, deadline_s: float) -> Report:
        started = time.monotonic()
        found = self.entries()
        placed = [(need, _entry(need, found, self._folder)) for need in needs]
        placed.sort(key=lambda pair: (str(pair[1].path), pair[1].begin))
        files: dict[Path, int] = {}
        read = 0
        try:
            for need, entry in placed:
                if time.monotonic() - started > deadline_s:
                    raise TimeoutError(
                        f"the checkpoint {self._folder} is read too slowly: {read} bytes in {deadline_s:g} s"
                    )
                if entry.path not in files:
                    files[entry.path] = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
                room = sink.room(need, entry.dtype)
                at = 0
                for offset, count in ranges(need, entry):
                    header.read_at(files[entry.path], offset, room[at : at + count], entry.path)
                    at += count
                read += at
                sink.filled(need, entry.dtype)
        except TimeoutError:
            raise  # it is an OSError too
        except OSError as error:
            raise refuse("the checkpoint cannot be read", str(self._folder), str(error)) from error
        finally:
            for descriptor in files.values():
                os.close(descriptor)
        return Report(self.name, read, read, time.monotonic() - started)


def _entry(need: Need, found: dict[str, header.Entry], folder: Path) -> header.Entry:
    entry = found.get(need.tensor)
    if entry is None:
        raise refuse("the checkpoint lacks a tensor", str(folder), need.tensor)
    inside = len(need.box) == len(entry.shape) and all(
        0 <= begin <= to <= size for (begin, to), size in zip(need.box, entry.shape, strict=False)
    )
    if not inside:
        raise refuse(
            "a tensor of the checkpoint has another shape than the model's configuration says",
            f"{entry.path}, {need}",
            entry.shape,
            "config.json and the weights belong together",
        )
    return entry


def ranges(need: Need, entry: header.Entry) -> Iterator[tuple[int, int]]:
    """(byte in the file, bytes) of a box, in the box's own order; dimensions that are taken whole make longer ranges."""
    step = DTYPES[entry.dtype]
    whole = len(need.box)
    while whole and need.box[whole - 1] == (0, entry.shape[whole - 1]):
        whole -= 1
        step *= entry.shape[whole]
    if not whole:
        yield entry.begin, step
        return
    begin, to = need.box[whole - 1]
    outer = need.box[: whole - 1]
    yield from _ranges(
        outer, entry.shape[:whole], entry.begin + begin * step, step, (to - begin) * step
    )


def _ranges(
    outer: Sequence[tuple[int, int]], shape: Sequence[int], at: int, step: int, count: int
) -> Iterator[tuple[int, int]]:
    """`at` is where the run lies for index 0 of every outer dimension; `step` the bytes of one index of the innermost of `shape`."""
    if not outer:
        if count:
            yield at, count
        return
    strides = [step] * len(shape)
    for dimension in range(len(shape) - 2, -1, -1):
        strides[dimension] = strides[dimension + 1] * shape[dimension + 1]
    begin, to = outer[0]
    for index in range(begin, to):
        yield from _ranges(outer[1:], shape[1:], at + index * strides[0], step, count)
