"""`Membership`: which process holds which shard in one epoch, frozen; and the contract of the stores that publish it.

An epoch begins when its membership is in the store, and nothing else decides who is in: communicators, writers and weight sources
all carry the epoch, and what carries an older one is refused.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from dynamo_gpu_ft.topology import Device


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One process that holds one shard.

    shard    permanent place in the engine (of tp, pp and ep); never changes while the engine lives
    rank     comm rank of this epoch; survivors of a degraded engine get other ones
    pid, started   the process: its number and its start in clock ticks since boot (together they name it for ever)
    """

    shard: int
    rank: int
    pid: int
    started: int = 0
    device: Device = Device()


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch. `shards` is how many the engine was built with; fewer members means that it runs degraded.

    settled  False for the epoch that a recovery claims before it rebuilds: its members are the survivors, which wait
    by       the coordinator that published it, by a token of its own: tells two that would publish the same
    """

    engine: str
    epoch: int
    shards: int
    members: tuple[Member, ...] = ()
    settled: bool = True
    by: str = ""

    def of_shard(self, shard: int) -> Member | None:
        return next((member for member in self.members if member.shard == shard), None)


class MembershipStore(Protocol):
    """Keeps the newest `Membership` of each engine; compare-and-set by epoch. Safe from any thread or process.

    Every call has the store's own deadline and raises `StoreUnavailable` past it; nothing is changed then, or the change is
    complete: the caller reads to find out. A store survives the death of any member at any instant, in mid-call included.
    """

    def read(self, engine: str) -> Membership | None:
        """The newest published membership, None if there never was one. Blocks up to the store's deadline."""

    def publish(self, membership: Membership) -> bool:
        """Makes this the newest if its epoch is one more than the newest one's (1 if there is none); False if it is not."""

    def wait_past(self, engine: str, epoch: int, timeout_s: float) -> Membership | None:
        """Blocks until a membership with a greater epoch is there, at most `timeout_s` seconds; None if none came."""

    def close(self) -> None:
        """Frees what this handle holds; what was published stays. Can be repeated."""
