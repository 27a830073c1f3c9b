"""Publishing one engine's memberships for one coordinator: compare-and-set that finds out what became of a lost reply.

Between `coordinator.py` and the membership store.
"""

from __future__ import annotations

from collections.abc import Callable

from dynamo_gpu_ft.errors import StoreUnavailable
from dynamo_gpu_ft.recovery.group.side import Caller, Overrun
from dynamo_gpu_ft.recovery.membership.base import Membership, MembershipStore

PAUSE_S = (0.01, 1.0)  # between attempts: the first, doubled up to the last


class Claims:
    """Calls of the store, each cut at its moment. `clock` is monotonic, `pause` sleeps."""

    def __init__(
        self,
        engine: str,
        store: MembershipStore,
        caller: Caller,
        clock: Callable[[], float],
        pause: Callable[[float], None],
    ) -> None:
        self.engine, self._store, self._caller = engine, store, caller
        self._clock, self._pause = clock, pause

    def newest(self, until: float) -> Membership | None:
        """What the store holds. Raises `StoreUnavailable`, also when the store hangs past `until`."""
        try:
            return self._caller.call("store.read", lambda: self._store.read(self.engine), until)
        except Overrun as error:
            raise _hung(self.engine, error) from None

    def publish(self, membership: Membership, until: float) -> Membership:
        """Returns `membership` once it is the newest, else the one that is there instead, of the same or a newer epoch.

        Tries until `until`, then raises `StoreUnavailable`: it may or may not have been published then, and calling again with the
        same membership is safe and finds out."""
        pause = PAUSE_S[0]
        while True:
            try:
                return self._publish_once(membership, until)
            except StoreUnavailable:
                if self._clock() + pause >= until:
                    raise
            self._pause(pause)
            pause = min(2 * pause, PAUSE_S[1])

    def _publish_once(self, membership: Membership, until: float) -> Membership:
        try:
            if self._caller.call("store.publish", lambda: self._store.publish(membership), until):
                return membership
        except Overrun as error:
            raise _hung(self.engine, error) from None
        newest = self.newest(
            until
        )  # refused; perhaps because a former attempt did it and its reply was lost
        if newest is None or newest.epoch < membership.epoch:
            held = None if newest is None else newest.epoch
            raise StoreUnavailable(
                "the membership store refuses an epoch that follows its newest one",
                where=f"engine {self.engine}",
                value=(held, membership.epoch),
                rule="the epoch after the newest one is accepted; was the store emptied or put back?",
                remedy="restart the engine, which founds its membership anew",
            )
        return newest


def _hung(engine: str, error: Overrun) -> StoreUnavailable:
    return StoreUnavailable(
        "the membership store hangs",
        where=f"engine {engine}",
        value=str(error),
        rule="a store answers or raises within its own deadline",
        remedy="look at the file system or the server that the setting membership names",
    )
