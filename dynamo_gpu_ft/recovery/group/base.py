"""The contract between the coordinator and an engine whose ranks are recovered in place.

The coordinator (`coordinator.py`) owns the order SUSPECT, QUIESCE, PLAN, REBUILD, VALIDATE, COMMIT, the deadlines and the
journal; an engine's `GroupAdapter` owns how each of them is done to its processes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from dynamo_gpu_ft.recovery.group.plan import Plan
from dynamo_gpu_ft.recovery.membership.base import Member, Membership


class MembersLost(Exception):
    """Members died, hung or were condemned while a step ran; the coordinator plans again without them."""

    def __init__(self, shards: Mapping[int, str]) -> None:
        """`shards`: shard -> why, in words."""
        super().__init__(", ".join(f"shard {shard}: {why}" for shard, why in shards.items()))
        self.shards = dict(shards)


class StandbyLost(Exception):
    """A standby or a replacement that was being started is gone or not ready in time; another attempt is planned."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A monotonic moment. Every step gets one and returns, or raises, before it."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        return max(0.0, self.at - time.monotonic())


class GroupAdapter(Protocol):
    """What an engine does for the coordinator. Each step blocks at most until its deadline, can be repeated after any failure,
    and raises `MembersLost` when a member it needs is gone, `StandbyLost` when a replacement is, `TimeoutError` past the deadline.

    All calls of one coordinator come from one thread, which is not the one that called `recover` (that one waits) and which lives
    as long as the process. The one exception: after a call that ignored its deadline, `abandon` comes from another thread while
    the old call may still run. An order of any kind carries an epoch, and members refuse one that is older than what they know."""

    def lost(self) -> Mapping[int, str]:
        """Members that are dead, hung past their limit or condemned by a verdict: shard -> why. Never blocks.

        The members are those that the last `rebuild` returned, from its return on, committed or not; before, those that the engine
        was founded with. It is asked between all steps: what it says again of a shard that was rebuilt counts as a new death."""

    def standbys(self) -> int:
        """Started processes that could take any shard now. Never blocks."""

    def quiesce(self, dead: frozenset[int], deadline: Deadline) -> None:
        """Ends what is left of the dead: of members that are lost, and of replacements that an attempt left half-made. `dead` are all
        shards that have no member to go on with, those that a degraded engine misses included. Frees every survivor from collectives
        and queues of the old epoch; on return survivors wait for orders, with weights, KV and compiled code untouched, and requests
        are held back, not lost."""

    def rebuild(self, plan: Plan, epoch: int, deadline: Deadline) -> tuple[Member, ...]:
        """Makes `plan` true: replacements hold their shard's weights, everyone is in the communicators of `epoch`, the lost
        shards' KV is put back or withdrawn. Returns the members of `epoch`, whose ranks and shards are `plan.ranks`.

        `epoch` is larger than every one before, those of failed attempts included, and not the next number after the committed one:
        the coordinator claims one for itself before each attempt. `plan.lost` may be empty: only communicators are made anew."""

    def validate(self, membership: Membership, deadline: Deadline) -> None:
        """Weights of every rebuilt shard by digest, then one canary step through all ranks; requests may compute in it too, what counts once
        `commit` has returned. Raises `StandbyLost` for a replacement
        with wrong bytes where another one may have the right ones, `RecoveryFailed` for bytes or results that no repetition would mend."""

    def commit(self, membership: Membership, deadline: Deadline) -> None:
        """Lets requests run again in `membership.epoch`, which the store has accepted. What arrives from older epochs is dropped
        from here on."""

    def abandon(self, reason: str) -> None:
        """Ends in FAILED: open requests end with a retryable error that carries `reason`, processes are ended. Never raises."""
