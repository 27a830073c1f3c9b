"""Where a rank is in its life, as one word and a count, and what a monitor is told of it: pure, at most one message a tick.

The rank's main thread changes the word with one assignment; `Mirror` runs on the sending thread and decides what to say next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dynamo_gpu_ft.nvrx.limits import COMPILE, IDLE, STEP


class Now(NamedTuple):
    """`turn` differs between any two stays in a section, so that one long step is told from many short ones."""

    section: str
    turn: int


class Message(NamedTuple):
    """`kind` is "beat", "open" or "close"; `section` is empty for a beat."""

    kind: str
    section: str = ""


class Mirror:
    """Keeps a monitor that knows open sections and heartbeats (NVRx's) in step with the rank, one message a tick.

    A stay shorter than a tick is never told, so a thousand steps a second cost ten messages; one that lasts is told at the second tick
    that sees it. A section that is over is closed before anything else is said: an open one runs against its limit."""

    def __init__(self, beat_every_s: float, known: frozenset[str] | None = None) -> None:
        """`known`: the sections the monitor has limits for; None: any."""
        self._beat_every_s, self._known = beat_every_s, known
        self._open: Now | None = None
        self._seen: Now | None = None
        self._beat_at: float | None = None
        self._turn = False  # the last word was a beat: a section goes first now

    def next(self, at: float, now: Now) -> Message | None:
        """What to say at second `at`, None for nothing. The caller sends it, or starts anew with another `Mirror`."""
        lasting, self._seen = now == self._seen, now
        if self._open is not None and self._open != now:
            over, self._open = self._open, None
            self._turn = False
            return Message("close", over.section)
        begins = lasting and self._open is None and self._has(now.section)
        due = self._beat_at is None or at - self._beat_at >= self._beat_every_s
        # When both want to be told, they take turns: neither keeps the other waiting for ever.
        if due and not (begins and self._turn):
            self._beat_at, self._turn = at, True
            return Message("beat")
        if begins:
            self._open, self._turn = now, False
            return Message("open", now.section)
        return None

    def _has(self, section: str) -> bool:
        return self._known is None or section in self._known


def of_heartbeat(look: Callable[[], list[dict[str, object]]], rank: int) -> Callable[[], Now]:
    """Progress as the step heartbeat of this rank says it (`health.heartbeat`), for an engine that writes one already.

    `look` is `look_at_heartbeats` of its file. Announced work counts as compiling: the heartbeat does not say which it is."""
    words = {"step": STEP, "busy": COMPILE}

    def now() -> Now:
        for slot in look():
            if slot.get("rank") == rank:
                section = words.get(str(slot.get("phase")), IDLE)
                began = slot.get("began", 0)
                return Now(section, hash((slot.get("step"), began)) if section != IDLE else 0)
        return Now(IDLE, 0)

    return now
