"""`BreakableStore`: a membership store in memory that goes down, loses replies and hangs on order. Simulated.

The contract suite holds the real stores against it; the tests of the coordinator break it at every step.
"""

from __future__ import annotations

from collections.abc import Callable

from dynamo_gpu_ft.errors import StoreUnavailable
from dynamo_gpu_ft.recovery.membership.base import Membership
from dynamo_gpu_ft.recovery.membership.memory import MemoryStore


class BreakableStore(MemoryStore):
    """`on_call(name, moment)` runs before ("before") and after ("after") every read and publish; what it raises is what the caller
    gets, so an "after" that raises is a lost reply."""

    def __init__(self, on_call: Callable[[str, str], None] = lambda name, moment: None) -> None:
        super().__init__()
        self.history: list[Membership] = []  # of all engines, oldest first
        self.on_call = on_call

    def read(self, engine: str) -> Membership | None:
        self.on_call("read", "before")
        newest = super().read(engine)
        self.on_call("read", "after")
        return newest

    def publish(self, membership: Membership) -> bool:
        self.on_call("publish", "before")
        with self._changed:  # so that the history is in the order of the epochs
            won = super().publish(membership)
            if won:
                self.history.append(membership)
        self.on_call("publish", "after")
        return won


def unavailable(why: str) -> StoreUnavailable:
    return StoreUnavailable("the simulated store is down", value=why)
