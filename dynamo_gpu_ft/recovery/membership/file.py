"""`FileStore`: memberships as files in a folder, one for each epoch, that appear whole or not at all. No process has to live for it.

The default store of an engine on one machine; on a shared file system of several. Compare-and-set is one hard link: who makes the name
of the next epoch first has it. There is no lock, so nobody who is stopped or killed, at whatever instant, can hold up the others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from dynamo_gpu_ft.errors import StoreUnavailable
from dynamo_gpu_ft.recovery.membership.base import Membership
from dynamo_gpu_ft.recovery.membership.wire import (
    MAX_BYTES,
    checked,
    checked_name,
    packed,
    unpacked,
)

KEPT = 64
"""Epochs that stay. A writer that was stopped after it had seen the newest one may go on when its epoch is long gone and its name is
free again: it notices by the missing one before (see `publish`)."""
STALE_S = 600.0  # a temporary file this old belongs to a writer that was killed
POLL_S = 0.01


class FileStore:
    """`folder` is made with mode 0700 if it is not there. A call blocks as long as the file system does: on one that may hang, call it
    from where that does no harm (the coordinator does)."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        with self._failing("make the folder"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            about = os.stat(self.folder)
        if about.st_uid not in (os.geteuid(), 0) or about.st_mode & stat.S_IWOTH:
            raise self._unavailable(
                "trust the folder", None, f"owner {about.st_uid}, mode {about.st_mode & 0o7777:o}"
            )

    def read(self, engine: str) -> Membership | None:
        checked_name(engine)
        while True:
            epochs = self._epochs(engine)
            if not epochs:
                return None
            with contextlib.suppress(FileNotFoundError):
                return self._read(engine, epochs[-1])
            # Gone since it was listed: so much newer ones are there that it was removed.

    def publish(self, membership: Membership) -> bool:
        engine, epoch = checked_name(membership.engine), membership.epoch
        checked(membership)
        epochs = self._epochs(engine)
        if epoch != (epochs[-1] if epochs else 0) + 1:
            return False
        name = self._path(engine, epoch)
        temporary = self.folder / f".{engine}.{secrets.token_hex(8)}.tmp"
        with self._failing("write", temporary):
            try:
                _write(temporary, packed(membership))
                if not _linked(temporary, name):
                    return False
                _sync(self.folder)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
        there = self._epochs(engine)
        if epoch - 1 not in there and (epoch > 1 or there[-1] > KEPT):
            # We were stopped for so long that the epoch before ours was removed: ours had been another's, and is no epoch now.
            with contextlib.suppress(OSError):
                os.unlink(name)
            return False
        self._tidy(engine, there)
        return True

    def wait_past(self, engine: str, epoch: int, timeout_s: float) -> Membership | None:
        checked_name(engine)
        end = time.monotonic() + timeout_s
        while True:
            epochs = self._epochs(engine)
            if epochs and epochs[-1] > epoch:
                return self.read(engine)
            left = end - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(POLL_S, left))

    def close(self) -> None:
        """Nothing is held between calls."""

    def _path(self, engine: str, epoch: int) -> Path:
        return self.folder / f"{engine}.{epoch}.membership"

    def _epochs(self, engine: str) -> list[int]:
        pattern = re.compile(re.escape(engine) + r"\.([1-9][0-9]{0,17})\.membership")
        with self._failing("list"):
            found = (pattern.fullmatch(name) for name in os.listdir(self.folder))
            return sorted(int(each[1]) for each in found if each)

    def _read(self, engine: str, epoch: int) -> Membership:
        path = self._path(engine, epoch)
        with self._failing("read", path):
            # Neither a link nor a pipe nor a device may lie here: nothing is followed, and nothing is waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "no regular file", str(path))
                data = file.read(MAX_BYTES + 1)
        return unpacked(data, engine, str(path), epoch)

    def _tidy(self, engine: str, epochs: list[int]) -> None:
        """Removes what nobody reads any more, oldest first; failing to is no failure."""
        with contextlib.suppress(OSError):
            for epoch in [each for each in epochs if each < epochs[-1] - KEPT]:
                os.unlink(self._path(engine, epoch))
            for name in os.listdir(self.folder):
                if name.startswith(f".{engine}.") and name.endswith(".tmp"):
                    path = self.folder / name
                    if time.time() - path.stat().st_mtime > STALE_S:
                        os.unlink(path)

    @contextlib.contextmanager
    def _failing(self, what: str, path: Path | None = None) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            if what == "read":
                raise
            raise self._unavailable(what, path, "it is gone") from None
        except OSError as error:
            raise self._unavailable(what, path, f"{error.strerror or error}") from error

    def _unavailable(self, what: str, path: Path | None, why: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"the membership store cannot {what}",
            where=str(path or self.folder),
            value=why,
            rule="a folder of this user that others cannot write, with room, on a file system with hard links",
            remedy="another folder in the setting membership (file:DIR)",
        )


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(descriptor)


def _linked(temporary: Path, name: Path) -> bool:
    """True if `name` is ours now. NOTE: over NFS a link may be made and the reply lost, so the count of names decides."""
    try:
        os.link(temporary, name)
    except FileExistsError:
        return os.stat(temporary).st_nlink == 2
    return True


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
