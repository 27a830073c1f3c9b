"""Typed stub of the heartbeat's part of the native door (csrc/bind_beats.cpp); `_core` gives these names out.

A rank's process writes its slot of a shared file; whoever watches the file, in whatever process, hears of hangs in a queue."""

from typing import Any

from dynamo_gpu_ft.native._watch import WatchQueue

def make_heartbeat_file(path: str, ranks: int) -> None:
    """Makes it for `ranks` slots if it is not there, mode 0600, and checks it. Errors: as `Beat`."""

class Beat:
    """The writing side of one rank's slot. One thread at a time; after a fork, or once another process has the slot, without effect."""

    steps: int  # begun so far
    ours: bool
    def __init__(self, path: str, *, rank: int, ranks: int, tick: float = 0.05) -> None:
        """Makes the file if it is not there. Starts one native thread that shows every `tick` seconds that the process runs.

        Errors: "io", "no_space", "damaged" (no heartbeat file of ours), "mismatch" (too few slots), "invalid"."""
    def begin(self, kind: int, step: int = 0) -> None:
        """A step of class `kind` (0 to 23; similar work in each) starts on this thread. A few stores.

        `step` is its number among all ranks, growing; 0: one more than the last. Ranks that are replaced one by one need it: who has begun fewer
        than another says whom a collective waits for."""
    def end(self) -> None:
        """It is over; how long it took becomes history of its class."""
    def busy(self, limit: float) -> None:
        """Other work that may take up to `limit` seconds: compiling, loading, capturing."""
    def idle(self) -> None: ...
    def leave(self) -> None:
        """The rank ends on purpose, which is no death. As does the end of this object."""
    def device_word(self) -> tuple[int, int, int]:
        """(address of the word in which a device counts the steps it has finished, address of its page, bytes of a page)."""

def look_at_heartbeats(path: str) -> list[dict[str, Any]]:
    """What every slot that a process took says now: rank, phase ("idle" "step" "busy" "left"), kind, pid, step, device_step, began,
    tick (seconds of CLOCK_MONOTONIC). For people: a word may be newer than its neighbour. Errors: "not_found", as `Beat`."""

class HangWatch:
    """A native thread that judges every slot of a file every `poll` seconds.

    Records: source "heartbeat", what "hang" | "slow" | "fine" | "gone"; facts shard, step, cause ("step" "busy" "silent" "device"
    "stopped" "no_step" "exit"), elapsed_ms, limit_ms, process_state, laggards. A step hangs `after` seconds beyond what 999 of 1000 such
    steps took, not before `floor`; `unknown` for classes without history."""

    def __init__(
        self,
        queue: WatchQueue,
        path: str,
        *,
        ranks: int,
        after: float = 0.45,
        floor: float = 0.5,
        unknown: float = 60.0,
        silent: float = 0.45,
        no_step: float = 60.0,
        poll: float = 0.02,
    ) -> None:
        """Errors: as `Beat`, for the file."""
    def expect(self, work: bool) -> None:
        """Whether requests wait, so that some rank should begin a step within `no_step` seconds."""
    def stop(self) -> None:
        """Ends the thread; waits for one look at most. Safe to repeat; `expect` is then without effect."""

class HangJudge:
    """The decision alone, for one rank with a history of its own; time is handed in. For tests and simulation."""

    def __init__(
        self,
        *,
        after: float = 0.45,
        floor: float = 0.5,
        unknown: float = 60.0,
        silent: float = 0.45,
    ) -> None: ...
    def learn(self, kind: int, seconds: float) -> None: ...
    def usual(self, kind: int) -> float:
        """Seconds that 999 of 1000 steps of this class kept; 0.0 while unknown."""
    def look(
        self,
        now: float,
        *,
        phase: int,
        step: int,
        began: float,
        kind: int = 0,
        limit: float = 0.0,
        tick: float = 0.0,
        device_step: int = 0,
        stolen: float = 0.0,
        most: float = 0.04,
    ) -> tuple[int, str, float]:
        """(0 fine, 1 uneasy, 2 hung; cause; limit in seconds). phase: 0 empty, 1 idle, 2 step, 3 announced work, 4 left."""
