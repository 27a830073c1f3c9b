"""The states of a recovery in place and what leads from one to the next: pure data and one look-up.

`coordinator.py` does the work of each state and tells what happened; nothing else moves it.
"""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    SERVING = "serving"  # requests run
    SUSPECT = "suspect"  # something is said to be lost: is it?
    QUIESCE = "quiesce"  # the dead are ended, survivors freed and waiting
    PLAN = "plan"  # what to do; the next epoch is claimed
    REBUILD = "rebuild"  # members, communicators, weights, KV
    VALIDATE = "validate"  # digests and a canary step
    COMMIT = "commit"  # the epoch is published, requests run again
    FAILED = "failed"  # for good, with a reason


class Happening(str, Enum):
    DONE = "done"  # the state's work is
    LOST = "lost"  # members are gone: a first time, or more of them
    CLEARED = "cleared"  # a false alarm
    STANDBY_LOST = "standby lost"
    TIMED_OUT = "timed out"  # the state's work, within its own deadline
    ERROR = "error"  # the state's work raised something else
    STORE_DOWN = "store unavailable"
    HOPELESS = "hopeless"  # the plan is to restart or to fail, or no repetition would mend it
    SUPERSEDED = "superseded"  # somebody else leads
    DEADLINE = "deadline"  # of the whole recovery


WORKING = (State.QUIESCE, State.PLAN, State.REBUILD, State.VALIDATE, State.COMMIT)
AGAIN = (Happening.LOST, Happening.STANDBY_LOST, Happening.TIMED_OUT, Happening.ERROR)
ENDING = (Happening.HOPELESS, Happening.SUPERSEDED, Happening.DEADLINE)
ENDS = (State.SERVING, State.FAILED)

NEXT: dict[tuple[State, Happening], State] = {
    (State.SERVING, Happening.LOST): State.SUSPECT,
    (State.SUSPECT, Happening.DONE): State.QUIESCE,
    (State.SUSPECT, Happening.CLEARED): State.SERVING,
    (State.SUSPECT, Happening.ERROR): State.SUSPECT,
    (State.SUSPECT, Happening.TIMED_OUT): State.SUSPECT,
    **{(state, happening): State.FAILED for state in (State.SUSPECT, *WORKING) for happening in ENDING},
    # Whatever breaks on the way, survivors may be stuck in a half-made communicator: free them first, then plan again.
    **{(state, happening): State.QUIESCE for state in WORKING for happening in AGAIN},
    (State.QUIESCE, Happening.DONE): State.PLAN,
    (State.PLAN, Happening.DONE): State.REBUILD,
    (State.REBUILD, Happening.DONE): State.VALIDATE,
    (State.VALIDATE, Happening.DONE): State.COMMIT,
    (State.COMMIT, Happening.DONE): State.SERVING,
    # The two states that publish wait for the store as long as the whole recovery may take: survivors wait anyway.
    (State.PLAN, Happening.STORE_DOWN): State.PLAN,
    (State.COMMIT, Happening.STORE_DOWN): State.COMMIT,
}  # fmt: skip


def after(state: State, happening: Happening) -> State:
    """The next state. `ValueError` for what cannot happen there: FAILED is final, and only a loss ends SERVING."""
    try:
        return NEXT[state, happening]
    except KeyError:
        raise ValueError(f"{happening.value!r} cannot happen in state {state.value!r}") from None
