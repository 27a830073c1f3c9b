"""Groups pieces of evidence into faults: a pure function of the set of entries, whatever the order in which they came.

The heart of fusion. Entries are taken from cause to effect; each joins the fault that explains it best or is the root of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from dynamo_gpu_ft.health.causes import Family, explains, reaches, same_fault
from dynamo_gpu_ft.health.entries import Entry


class Group:
    """One fault: its entries, the root first, and the numbers of the devices that it touches."""

    __slots__ = ("entries", "involved", "latest", "root", "until")

    def __init__(self, root: Entry) -> None:
        self.root = root
        self.entries: list[Entry] = []
        self.involved: set[int] = set()
        self.latest = -math.inf
        self.until = math.inf  # when the fault was over, if it is; what came later is another
        self.add(root)

    @classmethod
    def of(cls, root: Entry, entries: Iterable[Entry]) -> Group:
        """A group whose root stays."""
        self = cls(root)
        for entry in entries:
            if entry is not root:
                self.add(entry)
        return self

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.latest = max(self.latest, entry.first.at)
        self.until = min(self.until, _over(entry))
        if touches(entry, self.root):
            self.involved.add(entry.known.number)

    def may_take(self, entry: Entry) -> bool:
        return entry.first.at <= self.until and self.latest <= _over(entry)


def _over(entry: Entry) -> float:
    case = entry.case
    return math.inf if case is None or case.ended_at is None else float(case.ended_at)


def touches(entry: Entry, root: Entry) -> bool:
    """Whether the device of an effect is affected too.

    A step or communicator that fails elsewhere says nothing of its GPU, and neither do channels torn down beside a broken link;
    a broken switch takes the GPUs whose channels are torn down with it."""
    if entry.family is Family.GROUP:
        return entry is root or root.family is Family.GROUP
    return entry.family is not Family.NOISE or root.family is not Family.LINK


class _Groups:
    """Groups in the order in which they began, findable by what they may explain: most faults stay on the devices that they touch."""

    def __init__(self, fixed: Iterable[Group]) -> None:
        self.all: list[Group] = []
        self._wide: set[int] = set()  # positions of those that may explain what happens anywhere
        self._on: dict[int, set[int]] = {}  # number of a device -> positions of those that touch it
        for each in fixed:
            self.begin(each)

    def begin(self, group: Group) -> None:
        position = len(self.all)
        self.all.append(group)
        if reaches(group.root):
            self._wide.add(position)
        for number in group.involved:
            self._on.setdefault(number, set()).add(position)

    def join(self, position: int, entry: Entry) -> None:
        group = self.all[position]
        group.add(entry)
        if entry.known.number in group.involved:
            self._on.setdefault(entry.known.number, set()).add(position)

    def candidates(self, entry: Entry) -> Iterable[int]:
        if reaches(entry):
            return range(len(self.all))
        return sorted(self._wide | self._on.get(entry.known.number, set()))


def group(open_entries: Iterable[Entry], fixed: Iterable[Group], window: float) -> list[Group]:
    """Faults with all `open_entries` distributed; `fixed` ones keep what they have and may gain. Fixed ones come first."""
    groups = _Groups(fixed)
    for entry in sorted(open_entries, key=lambda entry: entry.rank):
        best: int | None = None
        key: tuple[object, ...] | None = None
        for position in groups.candidates(entry):
            candidate = groups.all[position]
            if candidate.may_take(entry) and explains(
                candidate.root, candidate.involved, entry, window
            ):
                away = entry.known.number not in candidate.involved
                closeness = (not same_fault(candidate.root, entry), away, candidate.root.rank)
                if key is None or closeness < key:
                    best, key = position, closeness
        if best is None:
            groups.begin(Group(entry))
        else:
            groups.join(best, entry)
    for each in groups.all:
        root, *effects = each.entries
        each.entries = [root, *sorted(effects, key=lambda entry: entry.rank)]
    return groups.all
