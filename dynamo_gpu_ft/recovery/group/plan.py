"""What to do about lost shards: a pure function of who is alive, what the verdicts say, what stands by, and the policy.

First cheapest: a standby takes the shard, a fresh process does, the engine goes on with fewer ranks, everything is restarted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(str, Enum):
    SUBSTITUTE = "substitute"  # a standby takes each lost shard
    RESPAWN = "respawn"  # a new process takes each lost shard
    DEGRADE = "degrade"  # survivors share the lost shards' work
    RESTART = "restart"  # the whole engine; the group recovery ends and says so
    FAIL = "fail"  # neither; with the reason


@dataclass(frozen=True, slots=True)
class Plan:
    """`lost` are the shards to fill; `ranks` the shard of each comm rank of the next epoch, in order; `cost_s` the estimate it was
    chosen by; `reason` why not something cheaper."""

    kind: Kind
    lost: tuple[int, ...]
    ranks: tuple[int, ...]
    cost_s: float
    reason: str = ""
