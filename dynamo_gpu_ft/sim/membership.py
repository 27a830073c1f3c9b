"""`MemoryStore`: a membership store in a dict that goes down, loses replies and hangs on order. Simulated.

The contract suite holds the real stores against it; the tests of the coordinator break it at every step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from dynamo_gpu_ft.errors import StoreUnavailable
from dynamo_gpu_ft.recovery.membership.base import Membership


class MemoryStore:
    """`on_call(name, moment)` runs before ("before") and after ("after") every read and publish; what it raises is what the caller
    gets, so an "after" that raises is a lost reply."""

    def __init__(self, on_call: Callable[[str, str], None] = lambda name, moment: None) -> None:
        self.history: list[Membership] = []  # of all engines, oldest first
        self.on_call = on_call
        self._changed = threading.Condition()

    def read(self, engine: str) -> Membership | None:
        self.on_call("read", "before")
        newest = self._newest(engine)
        self.on_call("read", "after")
        return newest

    def publish(self, membership: Membership) -> bool:
        self.on_call("publish", "before")
        with self._changed:
            newest = self._newest(membership.engine)
            won = membership.epoch == (newest.epoch if newest else 0) + 1
            if won:
                self.history.append(membership)
                self._changed.notify_all()
        self.on_call("publish", "after")
        return won

    def wait_past(self, engine: str, epoch: int, timeout_s: float) -> Membership | None:
        def past() -> Membership | None:
            newest = self._newest(engine)
            return newest if newest and newest.epoch > epoch else None

        with self._changed:
            return self._changed.wait_for(past, timeout_s)

    def close(self) -> None:
        pass

    def _newest(self, engine: str) -> Membership | None:
        return next((m for m in reversed(self.history) if m.engine == engine), None)


def unavailable(why: str) -> StoreUnavailable:
    return StoreUnavailable("the simulated store is down", value=why)
