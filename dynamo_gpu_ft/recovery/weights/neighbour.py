"""The neighbour file: a shard's weights in a memory file system beside the arena, as the rank holds them, kept when its process is gone.

Written once by the rank that loaded them, under a lock, published by a rename; read by a standby or the next start of the engine. The
format: magic, length and digest of a JSON header, the header, then each tensor at a multiple of 64 bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.recovery.weights import pieces
from dynamo_gpu_ft.recovery.weights.base import DTYPES, Need, Report, Sink, refuse
from dynamo_gpu_ft.recovery.weights.header import read_at

MAGIC = b"GFTWGHT1"
_HEAD = struct.Struct("<8sQ16s")
_ALIGN = 64
_MAX_HEADER = 64 << 20
#: (need, dtype, bytes) of each tensor to keep.
Kept = Sequence[tuple[Need, str, memoryview]]


def path_of(arena_path: str, shard: int) -> Path:
    """Beside the arena, one file per shard."""
    return Path(arena_path).with_suffix(f".weights-{shard}")


def write(path: Path, model: str, epoch: int, tensors: Kept) -> bool:
    """Publishes the file, whole or not at all (mode 0600); False when somebody else is writing it now, or what is there has the same
    tensors and digests. Room is allocated before a byte is written. Raises `WeightsError` when the file system refuses."""
    core = native.load()
    listed, at = [], 0
    for need, dtype, data in tensors:
        listed.append(
            {
                "tensor": need.tensor, "box": need.box, "dtype": dtype, "at": at, "digest": core.digest(data).hex(),
            }
        )  # fmt: skip
        at += -(-len(data) // _ALIGN) * _ALIGN
    header = {"model": model, "epoch": epoch, "digest": core.DIGEST, "tensors": listed}
    text = json.dumps(header).encode()
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fresh = f"{path}.tmp"
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        with suppress(Exception):
            before = NeighbourSource([path], model).read_header(path)
            if before["tensors"] == json.loads(text)["tensors"]:
                return False
        _write(fresh, text, core.digest(text), tensors, at)
        os.rename(fresh, path)
        return True
    except OSError as error:
        with suppress(OSError):
            os.unlink(fresh)
        raise refuse(
            "the neighbour copy of the weights cannot be written",
            str(path),
            error.strerror,
            f"room for {at} bytes",
            "more room in DYN_GPU_FT_ARENA_DIR; a lost shard is read from the checkpoint until then",
        ) from error
    finally:
        os.close(lock)


def _write(fresh: str, text: bytes, digest: bytes, tensors: Kept, size: int) -> None:
    begin = _begin(len(text))
    with suppress(FileNotFoundError):
        os.unlink(fresh)  # of a writer that was killed; we hold the lock
    descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, begin + max(size, 1))
        at = begin
        for _, _, data in tensors:
            done = 0
            while done < len(data):
                done += os.pwrite(descriptor, data[done:], at + done)
            at += -(-len(data) // _ALIGN) * _ALIGN
        os.pwrite(descriptor, _HEAD.pack(MAGIC, len(text), digest) + text, 0)
    finally:
        os.close(descriptor)


def _begin(header_bytes: int) -> int:
    return -(-(_HEAD.size + header_bytes) // _ALIGN) * _ALIGN


class NeighbourSource:
    """`WeightSource` over the neighbour files of one or more shards of `model`.

    Files are read with read calls, not through a mapping: one that shrinks is an error and no SIGBUS. An open file stays what it was
    when another is renamed over it. `open_all` ahead of time makes a standby's load a copy from memory."""

    name = "neighbour"

    def __init__(self, paths: Sequence[Path], model: str, readers: int = 1) -> None:
        """`readers`: threads of a load; the sink is called by all of them."""
        self._paths, self._model, self._readers = list(paths), model, readers
        self._open: dict[Path, tuple[int, list[pieces.Stored]]] = {}

    def open_all(self) -> list[str]:
        """Opens and checks the headers of every file that is there; says what is wrong with the others. Never raises."""
        wrong = []
        for path in self._paths:
            try:
                self._opened(path)
            except Exception as error:
                wrong.append(str(error))
        return wrong

    def load(self, needs: Sequence[Need], sink: Sink, deadline_s: float) -> Report:
        started = time.monotonic()
        wrong = self.open_all()
        stored = [each for _, listed in self._open.values() for each in listed]
        if not stored:
            raise refuse("no neighbour copy of the weights can be used", "", wrong[:2])
        files = {str(path): descriptor for path, (descriptor, _) in self._open.items()}

        def read(each: pieces.Stored, into: memoryview) -> None:
            read_at(files[each.where], each.at, into, Path(each.where))

        try:
            read_bytes, needed, digests = pieces.assemble(
                needs, stored, read, sink, deadline_s, self._readers
            )
        except TimeoutError:
            raise  # it is an OSError too
        except OSError as error:
            raise refuse("a neighbour copy cannot be read", "", str(error)) from error
        return Report(self.name, read_bytes, needed, time.monotonic() - started, digests)

    def close(self) -> None:
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def read_header(self, path: Path) -> dict[str, Any]:
        """The checked header of one file. Raises `WeightsError`, `OSError`."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return self._header(path, descriptor)[0]
        finally:
            os.close(descriptor)

    def _opened(self, path: Path) -> list[pieces.Stored]:
        if path in self._open:
            return self._open[path][1]
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise refuse("there is no neighbour copy", str(path), error.strerror) from error
        try:
            header, begin, size = self._header(path, descriptor)
            stored = [_stored(each, begin, size, path) for each in header["tensors"]]
        except BaseException:
            os.close(descriptor)
            raise
        self._open[path] = (descriptor, stored)
        return stored

    def _header(self, path: Path, descriptor: int) -> tuple[dict[str, Any], int, int]:
        core, status = native.load(), os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size < _HEAD.size:
            raise _damaged(path, f"{status.st_size} bytes")
        head = bytearray(_HEAD.size)
        read_at(descriptor, 0, memoryview(head), path)
        magic, count, digest = _HEAD.unpack(head)
        if magic != MAGIC or count > min(_MAX_HEADER, status.st_size - _HEAD.size):
            raise _damaged(path, (magic, count))
        text = bytearray(count)
        read_at(descriptor, _HEAD.size, memoryview(text), path)
        if core.digest(bytes(text)) != digest:
            raise _damaged(path, "its header has another digest")
        try:
            header = json.loads(bytes(text))
            model, kind, _ = header["model"], header["digest"], header["tensors"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(path, str(error)) from error
        if model != self._model or kind != core.DIGEST:
            raise refuse(
                "a neighbour copy belongs to another model",
                str(path),
                (model, kind),
                f"{self._model}, digests by {core.DIGEST}",
                "the next source is asked",
            )
        return header, _begin(count), status.st_size


def _stored(value: Any, begin: int, size: int, path: Path) -> pieces.Stored:
    try:
        box = tuple((int(a), int(b)) for a, b in value["box"])
        need = Need(str(value["tensor"]), box)
        stored = pieces.Stored(
            need, str(value["dtype"]), begin + int(value["at"]), bytes.fromhex(value["digest"]), str(path)
        )  # fmt: skip
        whole = stored.dtype in DTYPES and all(0 <= a <= b < 1 << 48 for a, b in box)
        whole = whole and begin <= stored.at <= size and stored.at + stored.size <= size
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not whole:
        raise _damaged(path, str(need))
    return stored


def _damaged(path: Path, value: object) -> Exception:
    return refuse(
        "a neighbour copy is damaged", str(path), value, "whole", "the next source is asked"
    )
