"""Where a store's experts lie: the contract that an engine fulfils for its own memory, and rows in plain host memory or a file.

`store` writes experts through it and reads their digests back. Rows never move, so captured graphs and views may hold them.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Protocol

from dynamo_gpu_ft import native
from dynamo_gpu_ft.errors import SlotError
from dynamo_gpu_ft.experts.records import Geometry

Buffer = bytearray | memoryview | mmap.mmap


class Rows(Protocol):
    """Room for `rows` experts of each layer. Called from one thread at a time."""

    def write(self, layer: int, row: int, data: memoryview) -> None:
        """Puts an expert's bytes there; returns when they have arrived. Never called for a row that the map routes to."""

    def digest(self, layer: int, row: int) -> bytes:
        """Of the bytes that the row itself holds now (read back, not remembered): 16 bytes, as `Core.digest` gives them."""


class HostRows:
    """`Rows` in one host buffer of `geometry.payload_bytes`, ordered by layer and row. `view` gives a row's own bytes."""

    def __init__(self, buffer: Buffer, geometry: Geometry, offset: int = 0) -> None:
        self._all = memoryview(buffer).cast("B")[offset : offset + geometry.payload_bytes]
        self._geometry = geometry
        if len(self._all) != geometry.payload_bytes:
            raise SlotError(
                "a buffer is too small for its rows",
                value=len(self._all),
                rule=f"{geometry.payload_bytes} bytes",
            )

    def view(self, layer: int, row: int) -> memoryview:
        """Writable, and the row itself: for tensors over it, and for handing the expert to a peer."""
        size = self._geometry.expert_bytes
        begin = (layer * self._geometry.rows + row) * size
        return self._all[begin : begin + size]

    def write(self, layer: int, row: int, data: memoryview) -> None:
        self.view(layer, row)[:] = data

    def digest(self, layer: int, row: int) -> bytes:
        return native.load().digest(self.view(layer, row))


def store_file(path: Path, geometry: Geometry) -> mmap.mmap:
    """A shared map of a file with room for control records and payload; made if it is not there, mode 0600.

    Space is allocated now: a full file system is an error here and never a signal later. Raises `SlotError`."""
    size = geometry.control_bytes + geometry.payload_bytes
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SlotError(
            "a slot store cannot be opened", where=str(path), value=str(error)
        ) from error
    try:
        there = os.fstat(descriptor).st_size
        if there not in (0, size):
            raise SlotError(
                "a slot store has another size than this model needs",
                where=str(path),
                value=there,
                rule=f"{size} bytes",
                remedy="remove the file: its experts are refilled",
            )
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    except OSError as error:
        if not there:
            os.ftruncate(descriptor, 0)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise SlotError(
            "there is no room for a slot store" if full else "a slot store cannot be mapped",
            where=str(path),
            value=str(error),
            rule=f"{size} bytes, allocated at start",
            remedy="free space in that file system, or fewer spare rows",
        ) from error
    finally:
        os.close(descriptor)
