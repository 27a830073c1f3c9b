"""Weights out of the memory of a live process that holds the same tensors: on this machine, without its help and without stopping it.

The peer tells once where its tensors lie (`Table`); a reader copies them with process_vm_readv, which works on a stopped process too, and
checks digests. Host memory only; device memory goes through the engine's own peer copies.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dynamo_gpu_ft.recovery.weights import pieces
from dynamo_gpu_ft.recovery.weights.base import DTYPES, Need, Report, Sink, refuse

#: Bytes per call: a deadline is looked at between two of them.
_CHUNK = 64 << 20


class Place(msgspec.Struct, frozen=True):
    """One tensor in the peer's memory."""

    tensor: str
    box: tuple[tuple[int, int], ...]
    dtype: str
    address: int
    digest: bytes


class Table(msgspec.Struct, frozen=True):
    """What one process holds, as it said at its start. `pid` and `started` name it for ever; `model` as in the neighbour file."""

    pid: int
    started: int
    model: str
    places: tuple[Place, ...]


class _Range(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class PeerSource:
    """`WeightSource` over one or more peers' tables."""

    name = "peer"

    def __init__(self, tables: Sequence[Table], model: str) -> None:
        self._tables = [table for table in tables if table.model == model]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.process_vm_readv.restype = ctypes.c_ssize_t

    def load(self, needs: Sequence[Need], sink: Sink, deadline_s: float) -> Report:
        started = time.monotonic()
        alive = {f"{t.pid}": t for t in self._tables if _started(t.pid) == t.started}
        stored = [
            pieces.Stored(Need(p.tensor, p.box), p.dtype, p.address, p.digest, f"{table.pid}")
            for table in alive.values()
            for p in table.places
            if p.dtype in DTYPES
        ]
        if not stored:
            raise refuse("no live peer holds this model", "peer", [t.pid for t in self._tables])

        def read(each: pieces.Stored, into: memoryview) -> None:
            table = alive[each.where]
            self._copy(table.pid, each.at, into, started + deadline_s)
            # NOTE: a pid that was reused in between would have given somebody else's bytes; the digest says so as well.
            if _started(table.pid) != table.started:
                raise refuse("the peer is gone", f"process {table.pid}")

        read_bytes, needed, digests = pieces.assemble(needs, stored, read, sink, deadline_s)
        return Report(self.name, read_bytes, needed, time.monotonic() - started, digests)

    def _copy(self, pid: int, address: int, into: memoryview, give_up: float) -> None:
        own = ctypes.addressof(ctypes.c_char.from_buffer(into)) if len(into) else 0
        done = 0
        while done < len(into):
            if time.monotonic() > give_up:
                raise TimeoutError(f"process {pid} gave {done} of {len(into)} bytes in time")
            count = min(_CHUNK, len(into) - done)
            here, there = _Range(own + done, count), _Range(address + done, count)
            got = self._libc.process_vm_readv(
                pid, ctypes.byref(here), ctypes.c_ulong(1), ctypes.byref(there), ctypes.c_ulong(1), ctypes.c_ulong(0)
            )  # fmt: skip
            if got <= 0:
                number = ctypes.get_errno()
                raise refuse(
                    "a peer's memory cannot be read",
                    f"process {pid}",
                    os.strerror(number) if got < 0 else "no bytes",
                    "a live process of the same user whose tracing is allowed",
                    "the next source is asked",
                )
            done += got


def _started(pid: int) -> int:
    """Start of the process in clock ticks since boot; -1 when it is gone."""
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return -1
