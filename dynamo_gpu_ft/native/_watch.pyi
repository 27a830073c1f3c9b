"""Typed stub of the watchers' part of the native door (csrc/bind_watch*.cpp); `_core` gives these names out.

Sources of faults push records into a queue from their own native threads, whatever Python does meanwhile."""

from collections.abc import Sequence
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
    def __init__(self, capacity: int = 4096, *, on_record: int = 0, context: int = 0) -> None:
        """`on_record`: address of a C function (`gft_watch_callback` of csrc/gft_watch.h) that is called with `context` on the source's
        own thread, without the GIL, for every record; both must outlive the sources. Errors: "invalid" (capacity not in 1..1000000),
        "io" (no eventfd)."""
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

class WatchedGpu:
    """What a watcher knows of a GPU; -1 and "" are unknown. `supported` and `registered` are NVML's event bits."""

    index: int
    uuid: str
    bdf: str  # "0000:9b:00"
    name: str
    supported: int
    registered: int
    responsive: bool  # False for good once a call about it did not return
    avoided: bool  # asked nothing more
    lost: bool
    recovery_action: int  # NVML's field 230, -1: not known

class NvmlWatcher:
    """Watches GPUs through NVML with native threads: the driver's events, and a poll for what comes without one. No CUDA context.

    Records (source "nvml_event" or "nvml_poll", what):
      xid              code = XID, 999 where NVML does not know it; XID 0 says nothing and is only counted
      event            code = another event bit; facts["data"] where the driver gave a value
      recovery_action  code = the new action of field 230; facts["previous"]
      gpu_lost         code = 15 (lost) or 16 (reset required), 0: it answers again
      unresponsive     a call about this GPU (index -1: about none) did not return within its deadline; facts["call"], facts["waited_ms"]
      error            code = another return code of NVML, 0: over; text says of which call
      driver_unbind, driver_bind  by somebody, of the GPU in `bdf`
    What was so when watching began has facts["baseline"]."""

    driver_version: str
    library: str
    def __init__(
        self,
        queue: WatchQueue,
        *,
        library: str = "libnvidia-ml.so.1",
        gpus: Sequence[str] | None = None,
        poll_s: float = 0.25,
        call_deadline_s: float = 2.0,
    ) -> None:
        """`gpus`: indexes, UUIDs (a MIG instance's means its GPU) or PCI addresses; None: all. `poll_s` 0: events only.

        Errors: "not_found" (no NVML here), "version" (one that is too old), "invalid"."""
    def start(self) -> None:
        """Once. Afterwards events are recorded. Blocks for NVML's own start, at most about five call deadlines, without the GIL.

        Errors: "timed_out" (NVML's init does not return), "not_found" (no driver, or not one of the GPUs), "invalid", "forked"."""
    def stop(self, deadline: float = 5.0) -> bool:
        """Waits at most `deadline` seconds. False: a thread is left, stuck in the driver or late; it does no harm. True in a forked child."""
    def gpus(self) -> list[WatchedGpu]:
        """[] before the start and in a forked child. Never blocks on the driver."""
    def counts(self) -> dict[str, int]:
        """events, spurious_xids (XID 0: ignored), event_errors, sets, polls, stuck_calls, event_threads, since the start."""
    def avoid(self, index: int) -> bool:
        """Asks that GPU nothing more, for good: for whoever learns by another way that it fell silent. False: not one of ours."""

class LogReader:
    """Follows a log with a thread of its own and pushes what it says about GPUs into the queue, as `parse_line` gives it.

    /dev/kmsg, a file (rotated by renaming, truncated, or one that comes later), a FIFO or `/dev/fd/N` of a command's output. Times
    are those of the reading. Equal lines within `window` seconds, growing to 30 of them, are folded. Lost lines are told by a record
    "gap" with their count, where it is known, and `why`. Stops when the object goes; a forked child has no thread."""

    lines: int  # read so far
    def __init__(
        self,
        queue: WatchQueue,
        path: str | PathLike[str],
        *,
        format: str = "auto",
        from_start: bool = False,
        window: float = 1.0,
    ) -> None:
        """`from_start`: what is there already comes first, with the fact "baseline"; it tells names of GPUs and old faults.

        Errors: "not_found" (a device that is not there), "io" (may not be read; the text says what mends it), "invalid"."""
    def stop(self) -> None:
        """Ends the thread; what was folded is in the queue afterwards. Twice is once."""

class TraceReader:
    """The driver's tracepoints of XIDs and SXids in a tracefs instance of its own; otherwise as `LogReader`. Source "tracepoint"."""

    lines: int
    events: list[str]  # that are on
    def __init__(
        self,
        queue: WatchQueue,
        path: str | PathLike[str] = "",
        *,
        events: list[str] = ...,
        window: float = 1.0,
    ) -> None:
        """`path`: "" where tracefs usually is, another tracefs, or a file in the format of trace_pipe that is followed instead.

        Mutates tracefs: makes an instance, removes those of dead processes. Errors: "not_found" (no tracefs, none of the events),
        "io" (may not be made)."""
    def stop(self) -> None:
        """Ends the thread and removes the instance. Twice is once."""

def log_readable(path: str | PathLike[str]) -> None:
    """Raises as `LogReader` would; reads nothing."""

def trace_readable(path: str | PathLike[str] = "") -> None:
    """Raises as `TraceReader` would; changes nothing."""
