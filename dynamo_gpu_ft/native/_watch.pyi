"""Typed stub of the watchers' part of the native door (csrc/bind_watch*.cpp); `_core` gives these names out.

Sources of faults push records into a queue from their own native threads, whatever Python does meanwhile."""

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
