"""A case: one fault while it is open in fusion, and the incident it was last told as.

Between the grouped entries and the frozen `Incident` that listeners get. Mutable, owned by fusion.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import msgspec

from dynamo_gpu_ft.health.attribution import shards_of
from dynamo_gpu_ft.health.causes import Family, reaches
from dynamo_gpu_ft.health.entries import Entry
from dynamo_gpu_ft.health.grouping import touches
from dynamo_gpu_ft.health.incidents import Incident, Unusable, Verdict
from dynamo_gpu_ft.health.names import Known
from dynamo_gpu_ft.health.settings import Settings
from dynamo_gpu_ft.health.verdict import judge
from dynamo_gpu_ft.topology import Device, Rank


class Case:
    """`ended_at` is in the time of readings; an ended case takes late readings from before its end for one window more.

    due   before it, time alone changes nothing about this case, unless a sign of recovery comes; None: not reckoned yet
    """

    def __init__(self, number: int, root: Entry) -> None:
        self.number = number
        self.root = root
        self.entries: list[Entry] = [root]
        self.told: Incident | None = None
        self.ended = ""
        self.ended_at: float | None = None
        self.dropped = 0
        self.verdict: Verdict
        self.touched: bool
        self.due: float | None
        self.changed()

    def take(self, root: Entry, entries: list[Entry]) -> None:
        """Becomes the fault with these entries, sorted by rank; judges anew if that is a change."""
        same = root is self.root and set(map(id, entries)) == set(map(id, self.entries))
        self.root, self.entries = root, entries
        for entry in entries:
            entry.case = self
        if not same:
            self.changed()

    def changed(self) -> None:
        """Something about the entries has changed: judges anew."""
        self.touched, self.due = True, None
        self.verdict = judge(self.entries)

    def end(self, how: str, at: float) -> None:
        self.ended, self.ended_at, self.touched, self.due = how, at, True, None

    def freeze(self, now: float, settings: Settings) -> list[Entry]:
        """Entries whose window has passed stay where they are from now on; returns those for which there is no room."""
        self.due = None
        self.root.frozen = self.root.frozen or now >= self.root.first.at + settings.window_s
        if not self.root.frozen:
            return []
        for entry in self.entries:
            entry.frozen = entry.frozen or now >= entry.first.at + settings.window_s
        if len(self.entries) <= 2 * settings.evidence:
            return []
        surplus = [entry for entry in self.entries[settings.evidence :] if entry.frozen]
        self.entries = [entry for entry in self.entries if entry not in surplus]
        self.dropped += sum(entry.count for entry in surplus)
        return surplus

    def may_gain(self, numbers: Container[int]) -> bool:
        """Whether evidence on devices of these `numbers` alone may join it, or has."""
        if not self.root.frozen or reaches(self.root):
            return True
        return any(entry.known.number in numbers for entry in self.entries)

    def thaws_until(self, settings: Settings) -> float | None:
        """When the next entry freezes; None: all are frozen."""
        if not self.root.frozen:
            return self.root.first.at + settings.window_s
        thawed = (entry.first.at for entry in self.entries if not entry.frozen)
        first = min(thawed, default=None)
        return None if first is None else first + settings.window_s

    def merged(self, into: str) -> Incident:
        """Its last version: it turned out to be a part of another incident. Only for a case that was told."""
        assert self.told is not None
        return msgspec.structs.replace(
            self.told, version=self.told.version + 1, cleared=True, ended="merged", merged_into=into
        )

    def last_at(self) -> float:
        return max(entry.last.at for entry in self.entries)

    def tell_at(self, settings: Settings) -> float:
        """When it may be told: harm at once, noise after its window, a dead context perhaps when its process is named."""
        return min(entry.first.at + _wait(entry, settings) for entry in self.entries)

    def incident(
        self, id: str, ranks: Sequence[tuple[Rank, Known]], settings: Settings
    ) -> Incident:
        """As it stands now, version 0."""
        entries, verdict = self.entries, self.verdict
        devices, involved = _devices(entries, verdict)
        first = min(entries, key=lambda entry: entry.first.at)
        kept = entries[: settings.evidence]
        return Incident(
            id=id,
            version=0,
            name=entries[0].name,
            probe=entries[0].probe,
            code=entries[0].code,
            devices=devices,
            shards=shards_of(entries, involved, verdict, ranks),
            verdict=verdict,
            opened=first.first.at,
            updated=self.last_at(),
            time=min((e.first.time for e in entries if e.first.time), default=0.0),
            evidence=tuple(entry.evidence() for entry in kept),
            dropped=self.dropped + sum(entry.count for entry in entries[settings.evidence :]),
            cleared=bool(self.ended),
            ended=self.ended,
        )


def news(incident: Incident, told: Incident | None) -> bool:
    """Whether an incident says anything that was not told: more than larger counts."""
    if told is None:
        return True
    same = (
        incident.name == told.name
        and incident.verdict == told.verdict
        and incident.devices == told.devices
        and incident.shards == told.shards
        and incident.cleared == told.cleared
        and len(incident.evidence) == len(told.evidence)
    )
    return not same


def _wait(entry: Entry, settings: Settings) -> float:
    if entry.family is Family.NOISE:
        return settings.window_s
    nobody = entry.pid is None and entry.shard is None
    if settings.names_pids and nobody and entry.family in (Family.APP, Family.UNKNOWN):
        return settings.await_pid_s
    return 0.0


def _devices(
    entries: Sequence[Entry], verdict: Verdict
) -> tuple[tuple[Device, ...], tuple[Known, ...]]:
    """What is affected, the root's device first; with the MIG instance where only a context is dead."""
    root = entries[0]
    found: dict[int, Known] = {}
    for entry in entries:
        if touches(entry, root) and (entry.known.device.known or entry is root):
            found.setdefault(entry.known.number, entry.known)
    first, *others = found.values()
    others.sort(key=lambda known: (known.device.kind, known.device.bdf, known.device.uuid))
    known = (first, *others)
    devices = [item.device for item in known]
    if verdict.unusable in (Unusable.NOTHING, Unusable.CONTEXT):
        gis = {e.gi for e in entries if e.known is root.known and e.gi is not None}
        cis = {e.ci for e in entries if e.known is root.known and e.ci is not None}
        if len(gis) == 1:
            ci = cis.pop() if len(cis) == 1 else None
            devices[0] = msgspec.structs.replace(devices[0], gi=gis.pop(), ci=ci)
    return tuple(devices), known
