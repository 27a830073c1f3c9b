"""What one recovery knows of itself: its deadlines, who is dead, which plans failed; and how it ended.

`coordinator.py` keeps one `Run` for each call and returns an `Outcome`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from dynamo_gpu_ft.recovery.group.plan import Kind, Plan
from dynamo_gpu_ft.recovery.group.states import Happening, State
from dynamo_gpu_ft.recovery.membership.base import Membership


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a recovery ended. `kind` is that of the last plan; RESTART means that the whole engine is to be started again.

    superseded   another coordinator leads: this one did not touch the group any more, and must not be used again"""

    state: State
    membership: Membership
    kind: Kind | None
    reason: str
    duration_s: float
    superseded: bool = False


@dataclass
class Run:
    """One recovery; times are of the coordinator's clock.

    planned_end   after it only abandoning is left, for which `end` is the limit
    lost          every shard that was lost in it
    dead          shard -> why, until a membership without them is published
    filled        shards that have a member again by the last rebuild, which is not published yet
    failed        how often each kind of plan failed, and each state before there is a plan
    """

    began: float
    planned_end: float
    end: float
    grow: bool = False
    lost: set[int] = field(default_factory=set)
    dead: dict[int, str] = field(default_factory=dict)
    filled: set[int] = field(default_factory=set)
    failed: Counter[Kind | State] = field(default_factory=Counter)
    last: Plan | None = None
    proposed: Membership | None = None
    happening: Happening = Happening.LOST
    reason: str = ""

    @classmethod
    def of(cls, began: float, limit_s: float, *, grow: bool) -> Run:
        """A tenth of the limit, 2 s at most, is kept for abandoning."""
        end = began + limit_s
        return cls(began, end - min(2.0, 0.1 * limit_s), end, grow=grow)

    def is_news(self, shard: int, membership: Membership) -> bool:
        """Whether the loss of this shard's member was not known: a replacement may die too, an absent one cannot."""
        if shard in self.filled:
            return True
        return shard not in self.dead and membership.of_shard(shard) is not None

    def died(self, shard: int, why: str) -> None:
        self.dead[shard] = why
        self.lost.add(shard)
        self.filled.discard(shard)

    def failure(self, state: State) -> tuple[Kind | State, int]:
        """Counts one failure of a step that may be repeated: against the plan that is carried out in this state, or against the
        state if there is none yet. Returns what it counted against and how often by now."""
        carrying = self.last is not None and state in (State.REBUILD, State.VALIDATE, State.COMMIT)
        key = self.last.kind if carrying and self.last is not None else state
        self.failed[key] += 1
        return key, self.failed[key]

    def failed_kinds(self) -> Mapping[Kind, int]:
        return {kind: self.failed[kind] for kind in Kind}
