"""A fresh private folder for the demo's arena, in a memory file system when there is room, removed at the end.

The protected server gets it through its environment; folders that killed demos left are swept at the next start.
"""

import fcntl
import shutil
import tempfile
from pathlib import Path
from typing import IO

PREFIX = "dynamo_gpu_ft_demo."
OWNER = "owner.lock"
SPARE_BYTES = 64 << 20


class ArenaFolder:
    """The folder exists between `__enter__` and `__exit__`. A lock that dies with its holder marks it as in use."""

    def __init__(self, size: int, *, memory: Path = Path("/dev/shm")) -> None:
        self.in_memory = memory.is_dir() and shutil.disk_usage(memory).free > size + SPARE_BYTES
        self._place = memory if self.in_memory else Path(tempfile.gettempdir())
        self._lock: IO[bytes] | None = None
        self.path = Path()

    def __enter__(self) -> "ArenaFolder":
        sweep(self._place)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._place))
        self._lock = (self.path / OWNER).open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def sweep(place: Path) -> None:
    """Removes arena folders whose owner is gone. One that is just being made (no lock file yet) is left alone."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            with (folder / OWNER).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # no lock file, not ours to open, or in use
            continue
