"""The one verdict of an incident, from all its evidence: a pure function that does not depend on the order of arrival.

What is unusable is the worst that any evidence says, so more evidence never makes it less; what to do is what the driver itself
asks for (recovery action, XID 154) where it does, else what goes with the worst.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dynamo_gpu_ft.health.causes import Family
from dynamo_gpu_ft.health.entries import Entry
from dynamo_gpu_ft.health.incidents import Action, Verdict
from dynamo_gpu_ft.health.rules import wanted_recovery

_ACTIONS = list(Action)


def judge(entries: Sequence[Entry]) -> Verdict:
    """`entries` sorted by rank: the first is the root."""
    root = entries[0]
    speaking = [entry for entry in entries if entry is root or _speaks(entry, root)]
    worst = max(
        speaking, key=lambda entry: _weight(entry.verdict)
    )  # the first of equals: the closest to the cause
    verdict = worst.verdict
    action = driver_asks(entries)
    unusable = verdict.unusable
    reasons = [root.single.reason]
    if worst is not root and worst.raised is None:
        reasons.append(f"{worst.name}: {verdict.reason}")
    if root.family is Family.QUALIFIER and any(e.code == 48 for e in entries):
        memory = "SRAM" if root.code == 172 else "DRAM"
        reasons = [f"uncorrectable {memory} error, the detail of XID 48", *reasons[1:]]
    if {48} <= {e.code for e in entries if e.family is Family.MEMORY} and root.family in (
        Family.QUALIFIER,
        Family.MEMORY,
    ):
        if any(e.code == 64 and e.family is Family.MEMORY for e in entries):
            reasons.append("the row could not be replaced (XID 64)")
        elif any(e.code == 63 and e.family is Family.MEMORY for e in entries):
            reasons.append("a row is replaced at the next reset (XID 63)")
    reasons += sorted({entry.raised.reason for entry in speaking if entry.raised is not None})
    if action is not None and action is not verdict.action:
        reasons.append(f"the driver asks for {action.value}")
    if all(entry.first.baseline for entry in entries):
        reasons.append("it was so already when watching began")
    return Verdict(
        unusable=unusable,
        action=verdict.action if action is None else action,
        lasting=any(e.verdict.lasting for e in speaking if e.verdict.unusable is unusable),
        certain=verdict.certain
        and not any(entry.known.doubtful for entry in speaking if entry.severity == worst.severity),
        reason="; ".join(dict.fromkeys(reasons)),
    )


def driver_asks(entries: Iterable[Entry]) -> Action | None:
    """The strongest of what the driver asks for now, over the devices of an incident; None where it says nothing."""
    newest: dict[int, tuple[float, int, Action]] = {}
    for entry in entries:
        wanted = wanted_recovery(entry.last)
        if wanted and entry.verdict.action is not Action.NONE:
            place = _ACTIONS.index(entry.verdict.action)
            said = (entry.last.at, place, entry.verdict.action)
            number = entry.known.number
            newest[number] = max(newest.get(number, said), said)
    return max((said[2] for said in newest.values()), key=_ACTIONS.index, default=None)


def _speaks(entry: Entry, root: Entry) -> bool:
    """A step or a communicator that fails because of the root says nothing about what is unusable."""
    return entry.family is not Family.GROUP or root.family is Family.GROUP


def _weight(verdict: Verdict) -> tuple[int, bool, int, bool]:
    return (
        verdict.unusable.severity,
        verdict.certain,
        _ACTIONS.index(verdict.action),
        verdict.lasting,
    )
