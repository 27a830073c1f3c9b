"""What a process keeps while NVRx enters its function again: weights above all, by shard, loaded once.

One `Kept` lives outside the wrapped function for as long as the process does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


class Kept:
    """Thread-safe. What is kept is kept by name and shard, so that a spare that takes another shard loads that one's."""

    def __init__(self) -> None:
        self._things: dict[tuple[str, int], object] = {}
        self._lock = threading.RLock()
        self.loads = 0

    def once(self, name: str, shard: int, load: Callable[[], T]) -> T:
        """What `load` gave for this name and shard the first time. A load that raises is nothing kept. Blocks while it loads."""
        with self._lock:
            key = (name, shard)
            if key not in self._things:
                self._things[key] = load()
                self.loads += 1
            return cast(T, self._things[key])

    def keep_only(self, shard: int) -> None:
        """Lets go of every other shard's: this process will not hold them again soon."""
        with self._lock:
            for key in [key for key in self._things if key[1] != shard]:
                del self._things[key]
