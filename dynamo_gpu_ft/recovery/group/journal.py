"""Reads a journal back: the events of a file whose writer may have been killed in mid-line, and how far a recovery had come.

A new coordinator learns here, and from the membership store, what its predecessor left unfinished. Writing is `events.Journal`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from dynamo_gpu_ft.events import Event, MemberDied, StateChanged, decode
from dynamo_gpu_ft.recovery.group.states import State

MAX_LINE = 1 << 20  # no event is that long; what claims to be is no event


def read(path: str) -> Iterator[Event]:
    """The events of a journal, oldest first. Lines that are no events are passed over: the torn last one of a killed writer, the
    torn one in the middle after which another writer went on, and events of versions that we do not know. Raises OSError."""
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE):
            try:
                event = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            yield event


@dataclass
class Standing:
    """Where the recoveries of one engine stood when its journal ended. `deaths`: shard -> wall-clock seconds."""

    state: State = State.SERVING
    epoch: int = 0
    lost: tuple[int, ...] = ()
    reason: str = ""
    deaths: dict[int, list[float]] = field(default_factory=dict)

    @property
    def unfinished(self) -> bool:
        return self.state not in (State.SERVING, State.FAILED)


def standing(engine: str, events: Iterable[Event]) -> Standing:
    """Folds the events of `engine`; those of others are passed over."""
    found = Standing()
    for event in events:
        if isinstance(event, StateChanged) and event.engine == engine:
            try:
                found.state = State(event.state)
            except ValueError:
                continue  # a word of another version
            found.epoch, found.lost, found.reason = event.epoch, event.lost, event.reason
        elif isinstance(event, MemberDied) and event.engine == engine:
            found.deaths.setdefault(event.shard, []).append(event.time)
    return found
