"""A torch store in a folder: a file for each key, written aside and linked into place, so that a writer that dies leaves a key whole or absent.

What `rendezvous.py` hands to torch where nobody hosts a store. torch's own FileStore looks again every 10 ms for what is not there yet, this
one every half.
"""

from __future__ import annotations

import datetime
import fcntl
import functools
import os
import threading
import time
import urllib.parse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

POLL_S = 0.0005


@functools.cache
def _store_class() -> type:
    """Made at the first use: its base is torch's."""
    from torch.distributed import DistStoreError, Store

    class FolderStore(Store):  # type: ignore[misc]
        """NOTE: torch calls back into this object, which has to be kept for as long as anything made of it is in use."""

        def __init__(self, folder: Path) -> None:
            super().__init__()
            self._folder = folder
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

        def set(self, key: str, value: str | bytes) -> None:
            os.replace(self._written(value), self._path(key))

        def get(self, key: str) -> bytes:
            self.wait([key])
            return self._path(key).read_bytes()

        def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
            """What the key holds now. A key that is absent is set if "" was expected, by one of all who try; locks only for others."""
            if not _bytes(expected):
                draft = self._written(desired)
                with suppress(FileExistsError):
                    os.link(draft, self._path(key))
                os.unlink(draft)
                return self._path(key).read_bytes()
            with self._lock():
                if self._held(key) == _bytes(expected):
                    self.set(key, desired)
                return self._held(key)

        def add(self, key: str, amount: int) -> int:
            with self._lock():
                value = int(self._held(key) or b"0") + amount
                self.set(key, str(value))
            return value

        def check(self, keys: Sequence[str]) -> bool:
            return all(self._path(key).exists() for key in keys)

        def wait(self, keys: Sequence[str], timeout: datetime.timedelta | None = None) -> None:
            until = time.monotonic() + (timeout or self.timeout).total_seconds()
            for key in keys:
                while not self._path(key).exists():
                    if time.monotonic() > until:
                        raise DistStoreError(f"wait timeout: {key} is not in {self._folder}")
                    time.sleep(POLL_S)

        def delete_key(self, key: str) -> bool:
            with suppress(FileNotFoundError):
                self._path(key).unlink()
                return True
            return False

        def num_keys(self) -> int:
            return sum(1 for each in self._folder.iterdir() if each.name.startswith("key-"))

        def has_extended_api(self) -> bool:
            return False

        def _path(self, key: str) -> Path:
            return self._folder / f"key-{urllib.parse.quote(key, safe='')}"

        def _held(self, key: str) -> bytes:
            try:
                return self._path(key).read_bytes()
            except FileNotFoundError:
                return b""

        def _written(self, value: str | bytes) -> Path:
            draft = self._folder / f"draft-{threading.get_native_id()}-{time.monotonic_ns()}"
            draft.write_bytes(_bytes(value))
            return draft

        def _lock(self) -> _Lock:
            return _Lock(self._folder)

    return FolderStore


class _Lock:
    """Among the processes that use a folder; dies with its holder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def folder_store(folder: Path) -> Any:
    """The store in `folder`, which is made. Imports torch."""
    return _store_class()(folder)
