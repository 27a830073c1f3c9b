"""Tells a waiting person how far a long loop is: nothing for the first two seconds, then a line now and then.

Used by commands that read whole arenas. Writes to standard error, so that the answer on standard output stays clean.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")

QUIET_S = 2.0  # shorter work shows nothing
LINE_EVERY_S = 2.0  # in a log
LIVE_EVERY_S = 0.2  # on a terminal, rewriting one line


def tracked(
    items: Iterable[T],
    total: int,
    label: str,
    *,
    out: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[T]:
    """Yields `items`, showing `label` with done/total and the time left, after each item that is due for it."""
    stream = out or sys.stderr
    live = stream.isatty()
    start = clock()
    due = start + QUIET_S
    shown = False
    for done, item in enumerate(items, 1):
        yield item
        now = clock()
        if now >= due:
            left = (now - start) / done * (total - done)
            line = f"{label}: {done}/{total}, about {left:.0f} s left"
            print(
                f"\r{line}\x1b[K" if live else line,
                end="" if live else "\n",
                file=stream,
                flush=True,
            )
            due = now + (LIVE_EVERY_S if live else LINE_EVERY_S)
            shown = True
    if live and shown:
        print("\r\x1b[K", end="", file=stream, flush=True)
