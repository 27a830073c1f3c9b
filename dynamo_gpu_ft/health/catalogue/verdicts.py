"""From the class of a code to the verdict of one occurrence, and which of two verdicts is the graver.

Between the tables and every lookup; pure. The rules themselves are the table `classes.csv`.
"""

from __future__ import annotations

from dynamo_gpu_ft.health.catalogue import tables
from dynamo_gpu_ft.health.incidents import Action, Verdict
from dynamo_gpu_ft.health.readings import State

UNKNOWN = "UNKNOWN"


def verdict(class_name: str, subject: str, certain: bool = True) -> Verdict:
    """What one occurrence means; a class that the table does not hold is judged as UNKNOWN.

    subject  what is judged, for the reason: "XID 79, GPU fell off the bus"
    certain  false where the row or the decoding is unsure, whatever the class says
    """
    found = tables.classes()
    row = found.get(class_name, found[UNKNOWN])
    return Verdict(
        unusable=row.unusable,
        action=row.action,
        lasting=row.lasting,
        certain=row.certain and certain,
        reason=f"{subject}: {row.sentence}",
    )


def gravity(class_name: str) -> tuple[int, int]:
    """Orders classes by what they make unusable, then by what has to be done."""
    found = tables.classes()
    row = found.get(class_name, found[UNKNOWN])
    return row.unusable.severity, list(Action).index(row.action)


def gravest(class_names: set[str]) -> str:
    """The gravest of some classes, by name where two are equal."""
    return max(sorted(class_names), key=gravity)


def state_of(class_name: str) -> State:
    """How a reading says it: a class that asks for nothing is healthy, one that only reports is degraded, all others failed.

    UNKNOWN is failed too: that something broke was seen, only its code is in no table. A source that sees nothing is another matter.
    """
    unusable, action = gravity(class_name)
    if unusable:
        return State.FAILED
    return State.DEGRADED if action else State.HEALTHY
