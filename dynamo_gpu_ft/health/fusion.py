"""Fusion: readings of many sources in, incidents out, one per real fault. A state machine with time passed in.

Between the sources and whoever listens. No clock, no thread, no input or output: the same readings give the same incidents on
every machine, and the order of readings that lie within one window does not change where they end up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence

import msgspec

from dynamo_gpu_ft.health import rules
from dynamo_gpu_ft.health.case import Case, news
from dynamo_gpu_ft.health.catalogue import lookup
from dynamo_gpu_ft.health.causes import Family, reaches
from dynamo_gpu_ft.health.clearing import quiet_for, recovered_at
from dynamo_gpu_ft.health.entries import Entry, bounded
from dynamo_gpu_ft.health.grouping import Group, group
from dynamo_gpu_ft.health.incidents import Incident, Verdict
from dynamo_gpu_ft.health.intake import Intake
from dynamo_gpu_ft.health.readings import Reading
from dynamo_gpu_ft.health.settings import Settings
from dynamo_gpu_ft.topology import Device, Rank


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What fusion knows besides the open incidents.

    states    the newest reading of every probe that tells a state, what was so before watching began included
    readings  taken in, by source;  nothing: they said that there is nothing to say;  unknown: their state was UNKNOWN
    twice     the same source and serial again;  lost: records that a source could not keep, by its own count
    forgotten incidents given up for want of room;  mended: readings whose time was no time or lay in the future
    """

    devices: tuple[Device, ...]
    states: tuple[Reading, ...]
    readings: dict[str, int]
    nothing: int
    unknown: int
    twice: int
    lost: int
    forgotten: int
    mended: int


class Fusion:
    """Not thread-safe; one thread owns it.

    driver    the driver's version, "" when unknown: some codes changed their meaning between branches
    ranks     the engine's ranks; may be none
    catalogue what codes mean; tests hand in their own
    booted, attached  when this machine booted and when watching began, on the clock of the readings (CLOCK_MONOTONIC: 0 is boot)
    prefix    first half of the incidents' ids; default: this process's id
    """

    def __init__(
        self,
        settings: Settings | None = None,
        driver: str = "",
        ranks: Sequence[Rank] = (),
        *,
        catalogue: rules.Catalogue = lookup.of,
        booted: float | None = 0.0,
        attached: float | None = None,
        prefix: str = "",
    ) -> None:
        self.settings = settings or Settings()
        graces = [at for at in (booted, attached) if at is not None]
        self._intake = Intake(self.settings, driver, ranks, catalogue, graces)
        self._prefix = prefix or str(os.getpid())
        self._number = 0
        self._now = -math.inf
        self._next = math.inf
        self._entries: dict[tuple[object, ...], Entry] = {}
        self._fresh: list[Entry] = []
        self._moved = False  # an entry began earlier or means more than was known: regroup
        self._cases: list[Case] = []
        self._out: list[Incident] = []

    def add(self, reading: Reading) -> list[Incident]:
        """Takes in one reading; returns the incidents that are new or say something new by it."""
        return self.add_all((reading,))

    def add_all(self, readings: Iterable[Reading], now: float = math.inf) -> list[Incident]:
        """Takes in several, cheaper than one by one. No reading can be later than `now`."""
        for reading in readings:
            at = reading.at
            if not math.isfinite(at) or at > now:
                self._intake.counts["mended"] += 1
                at = now if math.isfinite(now) else max(self._now, 0.0)
                reading = msgspec.structs.replace(reading, at=at)
            if at > self._now:
                self._pass_time(at)
            entry = self._intake.take(reading, self._fold)
            if self._intake.names.joined:
                self._rename()
            if self._intake.signed:
                self._next = min(self._next, at)
            if entry is not None:
                self._make_room()
                self._entries[entry.key] = entry
                self._fresh.append(entry)
                s = self.settings
                self._next = min(self._next, at + min(s.window_s, s.quiet_s, s.await_pid_s))
        return self._answer()

    def tick(self, now: float) -> list[Incident]:
        """Lets time pass: tells what had to settle, ends what is over."""
        if math.isfinite(now) and now > self._now:
            self._pass_time(now)
        return self._answer()

    def set_ranks(self, ranks: Sequence[Rank]) -> list[Incident]:
        """The engine's ranks are others from now on; open incidents may concern others too.

        A rank whose process is no more hangs no more, and with another process the group has other communicators."""
        stay = {(rank.shard, rank.pid) for rank in ranks}
        gone = {r.shard for r, _ in self._intake.ranks if (r.shard, r.pid) not in stay}
        self._intake.set_ranks(ranks)
        for case in self._cases:
            for entry in case.entries:
                if entry.probe in ("step", "process") and entry.shard in gone:
                    self._intake.sign(entry.known.number, rules.cure_key(entry.first), self._now)
                self._intake.attribute(entry, entry.first)
            case.changed()
            if gone and case.root.probe == "nccl" and not case.ended and not case.verdict.lasting:
                case.end("recovered", max(self._now, case.last_at()))
        return self._answer()

    def deadline(self) -> float | None:
        """When `tick` will have something to do if nothing else happens; None: never."""
        return self._next if math.isfinite(self._next) else None

    def open(self) -> list[Incident]:
        """Told incidents that are not over, with counts as of now: those may grow within one version."""
        found = []
        for case in self._cases:
            if case.told is not None and not case.ended:
                now = case.incident(case.told.id, self._intake.ranks, self.settings)
                found.append(msgspec.structs.replace(now, version=case.told.version))
        return found

    def snapshot(self) -> Snapshot:
        intake = self._intake
        kinds = ("nothing", "unknown", "twice", "lost", "forgotten", "mended")
        return Snapshot(
            devices=intake.names.devices(),
            states=intake.levels.newest(),
            readings=dict(intake.seen),
            **{kind: intake.counts[kind] for kind in kinds},
        )

    @property
    def ranks_known(self) -> bool:
        return bool(self._intake.ranks)

    @property
    def lost(self) -> int:
        return self._intake.counts["lost"]

    def lose(self, count: int) -> None:
        """Notes readings that never got here."""
        self._intake.counts["lost"] += count

    def _fold(self, key: tuple[object, ...], reading: Reading, raised: Verdict | None) -> bool:
        """Takes one more reading into the entry of its kind, if there is one that it can belong to."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        case: Case | None = entry.case
        if entry.probe in ("step", "process"):
            fine = self._intake.signs.get((entry.known.number, rules.cure_key(entry.first)))
            if fine is not None and entry.last.at < fine <= reading.at:
                return False  # a rank that was well in between hangs anew
        if case is not None:
            if case.ended_at is not None and reading.at > case.ended_at:
                return False
            # Channels torn down long after the last ones belong to whatever happened now.
            near = reading.at - entry.last.at <= self.settings.window_s
            if entry.family is Family.NOISE and case.root is entry and not near:
                return False
        moved = entry.fold(bounded(reading, self.settings))
        rose = raised is not None and entry.rise(raised)
        if case is not None and moved:
            case.due = None
        if case is not None and (rose or entry.family is Family.RECOVERY):
            case.changed()  # the driver's newest wish counts
        self._moved = self._moved or ((moved or rose) and not entry.frozen)
        return True

    def _answer(self) -> list[Incident]:
        changed = self._fresh or self._moved or self._intake.signed
        if changed or any(case.touched for case in self._cases):
            self._regroup()
            self._tell()
            self._next = self._deadline()
        out, self._out = self._out, []
        return out

    # --- time ---

    def _pass_time(self, now: float) -> None:
        """Moves to `now`; does what is due on the way."""
        if now < self._next:
            self._now = now
            return
        self._regroup()
        self._now = now
        s = self.settings
        for number, verdict in self._intake.repeats.due(now).items():
            for case in self._cases:
                for entry in case.entries:
                    mine = entry.known.number == number and entry.code == 31 and not case.ended
                    if mine and entry.rise(verdict):
                        case.changed()
                        self._moved = True
        for case in self._cases:
            if case.due is not None and now < case.due:
                continue
            self._forget(case.freeze(now, s))
            if not case.ended:
                self._end_if_over(case)
        kept = []
        for case in self._cases:
            gone = case.ended_at is not None and now >= case.ended_at + s.window_s
            if gone:
                self._tell_one(case)
                self._forget(case.entries)
            else:
                kept.append(case)
        self._cases = kept
        self._next = self._deadline()

    def _end_if_over(self, case: Case) -> None:
        at = recovered_at(case.entries, self._intake.signs)
        if at is not None and self._now >= at + self._hold(case):
            case.end("recovered", at)
            return
        quiet = quiet_for(case.verdict, self.settings)
        if at is None and quiet is not None and self._now >= case.last_at() + quiet:
            case.end("quiet", case.last_at() + quiet)

    def _hold(self, case: Case) -> float:
        """How long a link has to stay up before it is believed; 0 for anything else."""
        root, s = case.root, self.settings
        if root.probe != "nvlink":
            return 0.0
        link = root.first.facts.get("link", "")
        flaps = self._intake.repeats.downs(root.known, link, self._now) >= s.flap_count
        return s.flap_window_s if flaps else s.link_hold_s

    def _deadline(self) -> float:
        """The earliest moment at which passing time changes anything."""
        waiting = self._intake.repeats.deadline()
        first = math.inf if waiting is None else waiting
        for case in self._cases:
            if case.due is None:
                case.due = self._due(case)
            first = min(first, case.due)
        return first

    def _due(self, case: Case) -> float:
        s = self.settings
        if case.ended_at is not None:
            return case.ended_at + s.window_s
        times = []
        if (
            case.told is None and case.tell_at(s) > self._now
        ):  # else it is told at the end of this batch
            times.append(case.tell_at(s))
        quiet = quiet_for(case.verdict, s)
        if quiet is not None:
            times.append(case.last_at() + quiet)
        recovered = recovered_at(case.entries, self._intake.signs)
        if recovered is not None:
            times.append(recovered + self._hold(case))
        thaw = case.thaws_until(s)
        if thaw is not None:
            times.append(thaw)
        return min(times, default=math.inf)

    # --- grouping ---

    def _regroup(self) -> None:
        """Joins fresh evidence with what there is, and ends what a sign of recovery takes back."""
        if self._fresh or self._moved:
            self._moved = False
            self._limit_unsettled()
            pool = list(self._fresh)
            self._fresh = []
            for case in self._cases:
                pool += [entry for entry in case.entries if not entry.frozen]
            anywhere = any(reaches(entry) for entry in pool)
            numbers = {entry.known.number for entry in pool}
            fixed = [
                Group.of(case.root, [e for e in case.entries if e.frozen])
                for case in self._cases
                if case.root.frozen and (anywhere or case.may_gain(numbers))
            ]
            owners = {id(case.root): case for case in self._cases}
            for found in group(pool, fixed, self.settings.window_s):
                self._own(found, owners)
        elif not self._intake.signed:
            return
        signed, self._intake.signed = self._intake.signed, False
        for case in self._cases:
            if signed:
                case.due = None
            if not case.ended and case.due is None:
                self._end_if_over(case)

    def _own(self, found: Group, owners: dict[int, Case]) -> None:
        """Gives a group of entries to the case it was, to a new one, or to the oldest of several that turn out to be one."""
        mine = [owners[id(entry)] for entry in found.entries if id(entry) in owners]
        if mine:
            mine.sort(key=lambda case: (case.told is None, case.number))
            case, *others = mine
        else:
            self._number += 1
            case, others = Case(self._number, found.root), []
            self._cases.append(case)
        for other in others:
            self._cases.remove(other)
            if other.told is not None and not other.ended and case.told is not None:
                self._out.append(other.merged(case.told.id))
            case.dropped += other.dropped
        case.take(found.root, found.entries)

    def _limit_unsettled(self) -> None:
        """Under a flood of different readings the older ones settle early: grouping costs the square of the unsettled."""
        open_entries = sum(not e.frozen for case in self._cases for e in case.entries)
        if open_entries > self.settings.unsettled:
            for case in self._cases:
                self._forget(case.freeze(math.inf, self.settings))

    def _rename(self) -> None:
        """Two devices turned out to be one: entries and ranks move over."""
        self._intake.names.joined = False
        old = list(self._entries.values())
        self._entries = {}
        for entry in old:
            entry.known = entry.known.now()
            entry.key = (entry.known.number, *entry.key[1:])
            self._entries.setdefault(entry.key, entry)
        for case in self._cases:
            for entry in case.entries:
                entry.known = entry.known.now()
            case.changed()

    def _make_room(self) -> None:
        """One kind of evidence more than there is room for: the oldest of the least severe incidents are forgotten."""
        if len(self._fresh) >= self.settings.unsettled:
            self._regroup()
        if len(self._entries) < self.settings.entries:
            return
        self._regroup()
        first = sorted(
            self._cases, key=lambda c: (not c.ended, c.verdict.unusable.severity, c.last_at())
        )
        # A sixteenth at a time: finding them looks at every case.
        goal = self.settings.entries - max(1, self.settings.entries // 16)
        gone = set()
        for case in first:
            if len(self._entries) <= goal:
                break
            if not case.ended:
                self._intake.counts["forgotten"] += 1
                case.end("forgotten", case.last_at())
            self._tell_one(case)
            self._forget(case.entries)
            gone.add(id(case))
        self._cases = [case for case in self._cases if id(case) not in gone]

    def _forget(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if self._entries.get(entry.key) is entry:
                del self._entries[entry.key]

    # --- telling ---

    def _tell(self) -> None:
        for case in self._cases:
            if case.touched and (case.ended or self._now >= case.tell_at(self.settings)):
                self._tell_one(case)

    def _tell_one(self, case: Case) -> None:
        """Puts the case among the answers if it says anything that was not told."""
        case.touched, case.due = False, None
        id = case.told.id if case.told is not None else f"{self._prefix}-{case.number}"
        incident = case.incident(id, self._intake.ranks, self.settings)
        if news(incident, case.told):
            version = 1 if case.told is None else case.told.version + 1
            case.told = msgspec.structs.replace(incident, version=version)
            self._out.append(case.told)
