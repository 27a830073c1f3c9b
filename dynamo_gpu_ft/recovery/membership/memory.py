"""`MemoryStore`: memberships in this process's memory, for as long as it lives.

Behind the TCP server that keeps no files; the simulated store that goes down on order is one too. Engines open theirs with `open.py`.
"""

from __future__ import annotations

import threading

from dynamo_gpu_ft.recovery.membership.base import Membership


class MemoryStore:
    """`MembershipStore` for the threads of one process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest: dict[str, Membership] = {}

    def read(self, engine: str) -> Membership | None:
        with self._changed:
            return self._newest.get(engine)

    def publish(self, membership: Membership) -> bool:
        with self._changed:
            newest = self._newest.get(membership.engine)
            if membership.epoch != (newest.epoch if newest else 0) + 1:
                return False
            self._newest[membership.engine] = membership
            self._changed.notify_all()
            return True

    def wait_past(self, engine: str, epoch: int, timeout_s: float) -> Membership | None:
        def past() -> Membership | None:
            newest = self._newest.get(engine)
            return newest if newest and newest.epoch > epoch else None

        with self._changed:
            return self._changed.wait_for(past, timeout_s)

    def close(self) -> None:
        """Nothing is held."""
