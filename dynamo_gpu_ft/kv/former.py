"""The former arena: what an engine of another geometry left, set aside so that its KV can be converted into the new one.

An arena's slots fit one block size, so an engine that starts with another tensor-parallel size or block size needs a new file.
The old one is renamed, fenced, read while its open requests come back, and removed by whoever no longer needs it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import ArenaError
from dynamo_gpu_ft.kv import arena

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

_log = logging.getLogger("dynamo_gpu_ft.kv")

#: Longest wait for another rank that is making the same arena: allocating a large one takes tens of seconds.
LOCK_DEADLINE_S = 150.0


def path_of(path: Path) -> Path:
    """Where the former arena of `path` lies; there is at most one."""
    return path.with_name(path.name + ".former")


def open_for_engine(path: Path, *, slot_bytes: int, engine_id: str, config: Config) -> _core.Arena:
    """The arena for an engine with blocks of `slot_bytes`: the one that is there, or a new one beside its former one.

    Blocks while it is allocated. Raises `ArenaError` ("busy" when the old geometry's engine is alive, "io" when the folder
    cannot be written) or `NotProtected`."""
    with _one_at_a_time(path):
        try:
            return arena.open_or_create(path, slot_bytes=slot_bytes, config=config)
        except ArenaError as error:
            if error.rule != "mismatch":
                raise
        _set_aside(path, engine_id, takeover=config.takeover)
        try:
            return arena.open_or_create(path, slot_bytes=slot_bytes, config=config)
        except ArenaError as error:
            if error.rule != "no_space":
                raise
            _log.warning(
                "no room for the new arena beside the former one: %s is removed, its KV is computed again",
                path_of(path),
            )
            remove(path)
        return arena.open_or_create(path, slot_bytes=slot_bytes, config=config)


def open_former(path: Path) -> _core.Arena | None:
    """The former arena of `path`, read only; None when there is none or it cannot be read (said in the log)."""
    former = path_of(path)
    if not former.exists():
        return None
    try:
        return arena.open_existing(former, read_only=True)
    except ArenaError as error:
        _log.warning("the former arena is not used: %s", error)
        return None


def remove(path: Path) -> None:
    """Takes the former arena of `path` out of its folder; its memory goes with the last mapping."""
    path_of(path).unlink(missing_ok=True)


def _set_aside(path: Path, engine_id: str, *, takeover: bool) -> None:
    """Fences whoever still writes `path` (or fails as "busy") and renames it."""
    old = arena.open_existing(path)
    try:
        arena.begin_epoch(old, engine_id, takeover=takeover)
    finally:
        old.close()
    os.replace(path, path_of(path))
    _log.info("%s has another geometry: set aside as %s", path, path_of(path))


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Ranks take turns; the lock vanishes with its holder, its file with the last turn."""
    lock = path.with_name(path.name + ".lock")
    deadline = time.monotonic() + LOCK_DEADLINE_S
    while (descriptor := _try_lock(lock)) is None:
        if time.monotonic() > deadline:
            raise ArenaError(
                "another process keeps making this arena",
                where=str(path),
                value=f"{LOCK_DEADLINE_S:g} s",
                rule="timed_out",
                remedy="look for a stopped rank (`dynamo-gpu-ft doctor`) and end it",
            )
        time.sleep(0.01)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _try_lock(lock: Path) -> int | None:
    """A descriptor that holds the lock and is still the file's own; None when it is somebody else's turn."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass  # held, or its holder has just removed it
    os.close(descriptor)
    return None
