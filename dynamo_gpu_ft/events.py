"""What happened, as frozen messages, and the small stream that carries them to the log, the journal and the metrics.

Everything a person or a tool may want to know about a recovery passes here, on its way out: rooms emit, listeners look,
and no listener can hurt the emitter. One event is one JSON object with the key `event`; one line of the journal is one event.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Union

import msgspec

# NOTE: no NullHandler. Engines configure their own logger only; Python's last resort then still shows our warnings.
_log = logging.getLogger("dynamo_gpu_ft.events")


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """`time` is wall-clock seconds since 1970, for people and for joining logs; durations are measured, never its difference."""

    time: float = msgspec.field(default_factory=time.time)


class EngineReady(_Event, frozen=True, kw_only=True, tag="engine_ready"):
    """An engine of this epoch serves; `pids` are its processes."""

    epoch: int
    pids: tuple[int, ...] = ()


class EngineDied(_Event, frozen=True, kw_only=True, tag="engine_died"):
    """The engine of this epoch is gone or says so; `open_requests` were open at that moment."""

    epoch: int
    reason: str
    open_requests: int


class StepDone(_Event, frozen=True, kw_only=True, tag="step_done"):
    """One step of a recovery plan ended, well (`ok`) or not; `detail` says what it did or why it failed."""

    epoch: int
    step: str
    duration_s: float
    ok: bool
    detail: str = ""


class RequestResumed(_Event, frozen=True, kw_only=True, tag="request_resumed"):
    """One open request goes on: tokens it had, tokens whose KV was loaded, tokens whose KV was computed again."""

    epoch: int
    request_id: str
    tokens_before: int
    tokens_restored: int
    tokens_recomputed: int


class Recovered(_Event, frozen=True, kw_only=True, tag="recovered"):
    """A recovery ended in SERVING; `duration_s` is from noticing the death to the last resubmitted request."""

    epoch: int
    duration_s: float
    requests: int


class RecoveryFailedEvent(_Event, frozen=True, kw_only=True, tag="recovery_failed"):
    """A recovery ended in FAILED."""

    reason: str


class NotProtectedEvent(_Event, frozen=True, kw_only=True, tag="not_protected"):
    """The engine runs without protection from here on."""

    reason: str


class IncidentEvent(_Event, frozen=True, kw_only=True, tag="incident"):
    """A fault of a device, the driver or a rank was noticed, is judged anew or is over.

    `incident` and `version` name it; the rest is the incident's own, in words of the health room.
    """

    incident: str
    version: int
    name: str
    devices: tuple[str, ...]
    shards: tuple[int, ...]
    unusable: str
    action: str
    reason: str
    sources: tuple[str, ...] = ()
    certain: bool = True
    cleared: bool = False
    ended: str = ""

    @property
    def line(self) -> str:
        """One line that a person understands."""
        of = f", shard {', '.join(map(str, self.shards))}" if self.shards else ""
        where = ", ".join(self.devices) or "no device named"
        if self.cleared:
            return f"fault {self.incident} is over ({self.ended}): {self.name} on {where}{of}"
        sure = "" if self.certain else "perhaps "
        what = "nothing" if self.unusable == "nothing" else f"{sure}this {self.unusable}"
        return (
            f"fault {self.incident}: {self.name} on {where}{of}: unusable: {what}; "
            f"to do: {self.action.replace('_', ' ')}; {self.reason} (seen by {', '.join(self.sources)})"
        )


class StateChanged(_Event, frozen=True, kw_only=True, tag="state_changed"):
    """A recovery in place went from one state to the next; `lost` are the shards it counts as lost by then, `epoch` is the newest."""

    engine: str
    epoch: int
    former: str
    happening: str
    state: str
    lost: tuple[int, ...] = ()
    reason: str = ""


class MemberDied(_Event, frozen=True, kw_only=True, tag="member_died"):
    """The member of a shard is dead, hung or condemned: counted once for each member."""

    engine: str
    epoch: int
    shard: int
    reason: str


class Planned(_Event, frozen=True, kw_only=True, tag="planned"):
    """What a recovery in place will do, what that is expected to take, and what stood against anything cheaper."""

    engine: str
    epoch: int
    kind: str
    lost: tuple[int, ...]
    ranks: tuple[int, ...]
    cost_s: float
    reason: str = ""


class GroupRecovered(_Event, frozen=True, kw_only=True, tag="group_recovered"):
    """A recovery in place ended: `outcome` is serving, failed, superseded (somebody else leads) or cleared (a false alarm)."""

    engine: str
    epoch: int
    kind: str
    outcome: str
    duration_s: float
    reason: str = ""


Event = Union[
    IncidentEvent,
    StateChanged,
    MemberDied,
    Planned,
    GroupRecovered,
    EngineReady,
    EngineDied,
    StepDone,
    RequestResumed,
    Recovered,
    RecoveryFailedEvent,
    NotProtectedEvent,
]
Listener = Callable[[Event], None]

_BAD: tuple[type, ...] = (EngineDied, RecoveryFailedEvent, NotProtectedEvent, MemberDied)


def encode(event: Event) -> bytes:
    """One event as one line of JSON without the newline."""
    return msgspec.json.encode(event)


def decode(line: bytes | str) -> Event:
    """The event of one line; `msgspec.ValidationError` names what is wrong with a line that is none."""
    event: Event = msgspec.json.decode(line, type=Event)
    return event


class EventStream:
    """Hands each event to every listener, in the order they were added, on the emitter's thread.

    A listener that raises is reported once and keeps being called: the cause may pass, the emitter must not notice.
    Listeners must not block for long; `Journal` does one write, `log_event` one log call.
    """

    def __init__(self, *listeners: Listener) -> None:
        self._listeners: tuple[Listener, ...] = listeners
        self._reported: set[int] = set()
        self._lock = threading.Lock()

    def add(self, listener: Listener) -> None:
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def emit(self, event: Event) -> None:
        """Never raises."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                self._report(listener)

    def _report(self, listener: Listener) -> None:
        with self._lock:
            first = id(listener) not in self._reported
            self._reported.add(id(listener))
        if first:
            _log.exception("event listener %r failed; later failures are not repeated", listener)


def log_event(event: Event) -> None:
    """Listener: one log line per event, a warning when it is bad news."""
    bad = isinstance(event, _BAD) or (isinstance(event, StepDone) and not event.ok)
    if isinstance(event, GroupRecovered):
        bad = event.outcome not in ("serving", "cleared")
    if isinstance(event, IncidentEvent):
        bad = event.unusable != "nothing" and not event.cleared
    level = logging.WARNING if bad else logging.INFO
    if _log.isEnabledFor(level):
        _log.log(level, "%s", one_line(event))


def one_line(event: Event) -> str:
    if isinstance(event, IncidentEvent):
        return event.line
    fields = {k: v for k, v in msgspec.to_builtins(event).items() if k not in ("event", "time")}
    tag = event.__struct_config__.tag
    return f"{tag} " + " ".join(f"{key}={value}" for key, value in fields.items())


class Journal:
    """Listener: appends each event as one line to a file made with mode 0600.

    One `write` on an O_APPEND descriptor per event, so several processes may share the file and lines stay whole.
    """

    def __init__(self, path: str) -> None:
        """Opens or makes the file; raises OSError, so that a wrong path is known at start and not at the first fault."""
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._torn = False

    def __call__(self, event: Event) -> None:
        line = b"\n" * self._torn + encode(event) + b"\n"
        written = os.write(self._fd, line)
        self._torn = written != len(line)
        if self._torn:
            raise OSError(f"journal {self.path}: wrote {written} of {len(line)} bytes of a line")

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
