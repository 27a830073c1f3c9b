"""The membership of one engine whose coordinator lives in EngineCore: kept there too, for no member survives it.

Workers are started by EngineCore and end with it; a coordinator elsewhere has nobody to lead. Where several coordinators may
meet, a store outside of them is configured instead.
"""

from __future__ import annotations

import threading

from dynamo_gpu_ft.recovery.membership.base import Membership


class OwnStore:
    """`MembershipStore` in this process's memory."""

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
        def past() -> bool:
            newest = self._newest.get(engine)
            return newest is not None and newest.epoch > epoch

        with self._changed:
            return self._newest[engine] if self._changed.wait_for(past, timeout_s) else None

    def close(self) -> None:
        """Nothing is held."""
