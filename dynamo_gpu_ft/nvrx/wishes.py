"""What a rank may ask of its launcher, and what our verdicts ask for: pure, the same for NVRx and the built-in monitor.

A wish counts at the launcher's next decision, so the rank that has one says it and then ends.
"""

from __future__ import annotations

from enum import Enum

from dynamo_gpu_ft.errors import RecoveryFailed
from dynamo_gpu_ft.health.incidents import Action, Incident, Unusable
from dynamo_gpu_ft.recovery.verdicts import Sentence


class Wish(str, Enum):
    """From least to most; the strongest of several counts."""

    CONTINUE = "continue"  # restart what is lost, here
    EXCLUDE_NODE = "exclude_node"  # restart elsewhere: nothing may be started on this node again
    DO_NOT_RESTART = "do_not_restart"  # end, and say so with an exit status of its own

    @property
    def strength(self) -> int:
        return list(Wish).index(self)


#: Actions after which this node needs somebody's hands before a rank can use it again.
_NEEDS_REPAIR = {
    Action.RESET_GPU,
    Action.DRAIN_AND_RESET_GPU,
    Action.RESET_FABRIC,
    Action.REBOOT_NODE,
}


def wish_of(incident: Incident) -> tuple[Wish, str]:
    """What an incident asks for, and why. An incident that is over, or concerns no rank of ours, asks for nothing.

    A dead context costs a restart and not the node; a GPU, a fabric or a node that has to be reset or rebooted costs the node."""
    unusable, action = incident.verdict.unusable, incident.verdict.action
    of_ours = bool(incident.shards) or unusable is Unusable.NODE
    if incident.cleared or not of_ours or unusable in (Unusable.NOTHING, Unusable.CONTEXT):
        return Wish.CONTINUE, ""
    reason = f"{incident.name}: {incident.verdict.reason}"
    if unusable in (Unusable.GPU, Unusable.NODE) or action in _NEEDS_REPAIR:
        return Wish.EXCLUDE_NODE, reason
    return Wish.CONTINUE, reason


def wish_of_sentence(sentence: Sentence) -> tuple[Wish, str]:
    """A sentence that fences devices off cannot be carried out by a restart on the same node."""
    return (Wish.EXCLUDE_NODE if sentence.fence else Wish.CONTINUE), sentence.reason


def wish_of_error(error: BaseException) -> tuple[Wish, str]:
    """A recovery that ended in FAILED has used up its restarts; starting again from outside would begin the same round."""
    if isinstance(error, RecoveryFailed):
        return Wish.DO_NOT_RESTART, str(error)
    return Wish.CONTINUE, ""


def strongest(wishes: list[tuple[Wish, str]]) -> tuple[Wish, str]:
    """The first of the strongest; `CONTINUE` if there is none."""
    return max(wishes, key=lambda wish: wish[0].strength, default=(Wish.CONTINUE, ""))
