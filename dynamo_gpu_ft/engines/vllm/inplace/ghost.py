"""Frees a rank from vLLM's shared-memory collectives when a peer is gone: stands in for the peer until the rank is through.

vLLM's CPU all-reduce spins on stamps in shared memory, for ever and without a way to interrupt it. Each rank has a file of
contexts, one per thread: current stamps, ready stamps, and who it is. Giving the gone rank the waiting rank's own stamps
makes every wait succeed. What the rank computes then is garbage, and whoever calls this has seen to it that nobody uses it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("/dev/shm")

#: Bytes 0-1: current stamp of each buffer; 2-3: ready stamps; then thread id, threads, rank and size as int32 (read in the
#: running build of vLLM 0.31 and 0.32 and compared with every file before anything is written).
_STAMPS, _WHO = 2, struct.Struct("<4i")
_WHO_AT = 12

#: Spacing of a file's contexts, tried in this order.
_STRIDES = (256, 320, 192, 384, 448, 512)

#: Between two copies of the stamps: one collective passes per copy.
_TICK_S = 0.00005


@dataclass(frozen=True, slots=True)
class Contexts:
    """Offsets of a rank's contexts in its file."""

    offsets: tuple[int, ...]


def read_contexts(data: bytes | mmap.mmap, *, rank: int, size: int) -> Contexts | None:
    """Where the contexts of `rank` of `size` lie in its file, None if it is laid out in a way we do not know. Pure."""
    if len(data) < _WHO_AT + _WHO.size:
        return None
    first = _WHO.unpack_from(data, _WHO_AT)
    threads = first[1]
    if first != (0, threads, rank, size) or not 1 <= threads <= 1024:
        return None
    for stride in _STRIDES:
        offsets = tuple(stride * i for i in range(threads))
        if offsets[-1] + _WHO_AT + _WHO.size > len(data):
            continue
        if all(
            _WHO.unpack_from(data, at + _WHO_AT) == (i, threads, rank, size)
            for i, at in enumerate(offsets)
        ):
            return Contexts(offsets)
    return None


class Segment:
    """One rank's file, mapped. Raises OSError or ValueError when it cannot be, or is not what we know."""

    def __init__(self, group: str, rank: int, size: int, folder: Path = FOLDER) -> None:
        descriptor = os.open(folder / f"{group}_{rank}", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        found = read_contexts(self._map, rank=rank, size=size)
        if found is None:
            self._map.close()
            raise ValueError(f"{group}_{rank} has another layout than vLLM's shared-memory group")
        self._offsets = found.offsets

    def stamps(self) -> list[bytes]:
        """Current stamps per thread."""
        return [self._map[at : at + _STAMPS] for at in self._offsets]

    def stand_for(self, stamps: Iterable[bytes]) -> None:
        """Says that this rank is where `stamps` are, and ready."""
        for at, stamp in zip(self._offsets, stamps, strict=True):
            self._map[at : at + 2 * _STAMPS] = stamp + stamp

    def close(self) -> None:
        self._map.close()


class Group:
    """Every rank's file of one group, opened while its name was there. Raises as `Segment` does."""

    def __init__(self, name: str, rank: int, size: int, folder: Path = FOLDER) -> None:
        self._own_file = folder / f"{name}_{rank}"
        self._rank = rank
        self._segments: list[Segment] = []
        try:
            for each in range(size):
                self._segments.append(Segment(name, each, size, folder))
        except (OSError, ValueError):
            self.close()
            raise

    def hide(self) -> None:
        """Removes this rank's name, once everybody has opened the file: then no death can leave it behind."""
        with contextlib.suppress(OSError):
            self._own_file.unlink()

    def free(self, gone: Iterable[int], until: Callable[[], bool]) -> None:
        """Stands in for the ranks `gone` until `until()`."""
        own = self._segments[self._rank]
        others = [self._segments[rank] for rank in gone]
        while not until():
            stamps = own.stamps()
            for other in others:
                other.stand_for(stamps)
            time.sleep(_TICK_S)

    def close(self) -> None:
        for segment in self._segments:
            segment.close()
        self._segments = []


def unlink(group: str, size: int, folder: Path = FOLDER) -> None:
    """Removes the files of a group that will not be used any more: their mappings stay valid."""
    for rank in range(size):
        with contextlib.suppress(OSError):
            (folder / f"{group}_{rank}").unlink()


def self_test(ops: object, threads: int, folder: Path = FOLDER, deadline_s: float = 2.0) -> str:
    """Why collectives cannot be freed with this build, "" when a stuck one was freed. Leaves nothing behind.

    `ops`: vLLM's operators (`torch.ops._C`). Both ranks of a group are this process; should the ghost fail, the second rank
    joins for real, so that nothing keeps spinning."""
    import torch

    group = f"gpu-ft-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        handles = [ops.init_shm_manager(group, 2, rank, threads) for rank in (0, 1)]  # type: ignore[attr-defined]
        for handle in handles:
            ops.join_shm_manager(handle, group)  # type: ignore[attr-defined]
        tensor = torch.ones(64)
        stuck = threading.Thread(
            target=ops.shm_allreduce,  # type: ignore[attr-defined]
            args=(handles[0], tensor),
            daemon=True,
        )
        stuck.start()
        give_up = time.monotonic() + deadline_s
        try:
            with contextlib.closing(Group(group, 0, 2, folder)) as held:
                held.free((1,), lambda: not stuck.is_alive() or time.monotonic() > give_up)
            why = "a stuck collective was not freed" if stuck.is_alive() else ""
        except (OSError, ValueError) as error:
            why = str(error)
        if stuck.is_alive():
            ops.shm_allreduce(handles[1], torch.ones(64))  # type: ignore[attr-defined]
            stuck.join(deadline_s)
        return why
    except (RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        unlink(group, 2, folder)
