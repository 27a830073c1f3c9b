"""Typed stub of the watchers' part of the native door (csrc/bind_watch*.cpp); `_core` gives these names out.

Sources of faults push records into a queue from their own native threads, whatever Python does meanwhile."""

from os import PathLike

class WatchRecord:
    """What a source noticed; see csrc/watch/record.h. -1 and "" are unknown; times are CLOCK_MONOTONIC."""

    source: str
    what: str
    at_ns: int
    last_ns: int
    count: int
    serial: int
    index: int
    code: int
    gi: int
    ci: int
    pid: int
    bdf: str
    uuid: str
    text: str
    facts: dict[str, str]

class WatchQueue:
    """A bounded queue of records. Records that did not fit are told by one: source "queue", what "overflow", their count."""

    lost: int
    def __init__(self, capacity: int = 4096) -> None:
        """Errors: "invalid" (capacity not in 1..1000000), "io" (no eventfd)."""
    def take(self, limit: int = 0) -> list[WatchRecord]:
        """Oldest first, at most `limit` (0: all). Never blocks. [] in a forked child."""
    def wait(self, timeout: float) -> bool:
        """Whether there is something to take; waits at most `timeout` seconds for it, without the GIL."""
    def fileno(self) -> int:
        """An eventfd that is readable while there is something to take: for `loop.add_reader`. -1 in a forked child."""

def parse_line(line: bytes) -> WatchRecord | None:
    """What one line of a log (or one record of several lines) says about a GPU; None: nothing. Any prefix is recognised.

    csrc/watch/line.h lists `what` and its facts. `at_ns` is the log's own time, with the fact "clock": "boot" or "wall", when it
    has one. Facts of any kind: "baseline" "1" (it was there before watching began), "cut" "1" (the end of the line is missing),
    "origin" "user" (a process wrote it and not the kernel)."""

def parse_log(
    source: bytes | bytearray | memoryview | str | PathLike[str],
    *,
    format: str = "auto",
    window: float = 1.0,
) -> list[WatchRecord]:
    """A whole log, from memory or a file: "text" (each line with or without a prefix), "kmsg", "journal" (`journalctl -o export`).

    Equal lines within `window` seconds, growing to 30 of them, are folded: the first is told at once, the others as one record with
    their count. Reads to the end of the file without the GIL; memory grows with what is found, not with the log.
    Errors: "not_found", "io", "invalid"."""
