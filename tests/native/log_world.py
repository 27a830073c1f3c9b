"""Readers of logs under test: a queue with everything that came out of it, and lines to write.

Every wait is for the records themselves, with a deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from door import core

DEADLINE_S = 20.0
XID = "NVRM: Xid (PCI:0000:{bus:02x}:00): {code}, GPU has fallen off the bus."


def line(code: int, bus: int = 0x18) -> str:
    return XID.format(code=code, bus=bus) + "\n"


class Watched:
    """A queue with the readers of one test, and everything that came out of it."""

    def __init__(self) -> None:
        self.queue = core.WatchQueue(4096)
        self.readers: list[Any] = []
        self.found: list[Any] = []

    def follow(self, path: Any, **how: Any) -> Any:
        self.readers.append(core.LogReader(self.queue, path, **how))
        return self.readers[-1]

    def until(self, enough: Callable[[list[Any]], bool]) -> list[Any]:
        end = time.monotonic() + DEADLINE_S
        while not enough(self.found):
            left = end - time.monotonic()
            assert left > 0, f"only {[(r.what, r.code, r.count) for r in self.found]}"
            self.queue.wait(left)
            self.found += self.queue.take()
        return self.found

    def codes(self, wanted: list[int]) -> list[Any]:
        return self.until(
            lambda found: [r.code for r in found if r.code >= 0][: len(wanted)] == wanted
        )

    def total(self, count: int) -> list[Any]:
        return self.until(lambda found: sum(r.count for r in found if r.what != "gap") >= count)

    def stop(self) -> list[Any]:
        for reader in self.readers:
            reader.stop()
        self.found += self.queue.take()
        return self.found


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
