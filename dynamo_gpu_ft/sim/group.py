"""A group of ranks that exists only as records: a `GroupAdapter` in virtual time, with faults placed at any point of a recovery.

Simulated: no process, no thread, no waiting. It notes every order that breaks a promise, so that a test can ask for none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from dynamo_gpu_ft.recovery.group.base import Deadline, MembersLost, StandbyLost
from dynamo_gpu_ft.recovery.group.plan import Kind, Plan
from dynamo_gpu_ft.recovery.group.side import Overrun
from dynamo_gpu_ft.recovery.membership.base import Member, Membership
from dynamo_gpu_ft.sim.membership import BreakableStore, unavailable

_T = TypeVar("_T")

POINTS = (
    *(f"{s}.{m}" for s in ("suspect", "quiesce", "plan") for m in ("before", "in")),
    "plan.publish",
    *(f"{s}.{m}" for s in ("rebuild", "validate") for m in ("before", "in")),
    *("commit.before", "commit.publish", "commit.in", "commit.after"),
)
"""Where a fault can strike. What comes after one state is what comes before the next."""

OF_THE_STORE = ("suspect.in", "plan.publish", "commit.publish")
OF_A_MEMBER = ("death", "hang")
OF_NOBODY = ("exception", "timeout", "overrun", "standby", "store down", "reply lost")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `shard` is whose member is struck, for the kinds OF_A_MEMBER.

    death       the member is gone; the next look or step that needs it says so
    hang        the member stops: the step waits in vain, after that it is known
    exception   the step raises, once
    timeout     the step reaches its deadline and nobody is to blame, once
    overrun     the step ignores its deadline
    standby     a standby is gone, and whoever was starting
    store down  the store does not answer for five seconds
    reply lost  the store does what it is told and the reply is lost, once
    """

    point: str
    kind: str
    shard: int = 0


@dataclass
class Process:
    pid: int
    alive: bool = True
    hung: bool = False
    running: bool = True
    epoch: int = 1


@dataclass
class SimGroup:
    """The adapter, the store and the clock of one world. Faults strike one after the other: each waits for the one before it.

    `state` is asked which state the coordinator is in."""

    shards: int
    spare: int = 2
    faults: list[Fault] = field(default_factory=list)
    state: Callable[[], str] = lambda: "serving"
    now: float = 0.0
    violations: list[str] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    struck: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pids = itertools.count(100)
        self.processes = {shard: Process(next(self._pids)) for shard in range(self.shards)}
        self.used_epochs = {1}
        self.store = BreakableStore(self._store_called)
        self._known: set[int] = set()
        self._ended: set[int] = (
            set()
        )  # by us, and not replaced yet: still reported as lost, as a real adapter may do
        self._down_until = -1.0
        self._noted: list[str] = []
        self._reply_lost = False

    # ---- the world

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def call(self, name: str, work: Callable[[], _T], give_up: float) -> _T:
        """As `side.Caller`, on this thread: what hangs is an exception that moves the clock."""
        try:
            return work()
        except _Hang:
            self.now = max(self.now, give_up)
            raise Overrun(f"{name} did not return in time and is abandoned") from None

    def members(self) -> tuple[Member, ...]:
        return tuple(
            Member(shard=shard, rank=rank, pid=process.pid)
            for rank, (shard, process) in enumerate(sorted(self.processes.items()))
        )

    def kill(self, shard: int) -> None:
        if shard in self.processes:
            self.processes[shard].alive = False

    # ---- the adapter

    def lost(self) -> Mapping[int, str]:
        self._at("before")
        self._raise_noted()
        gone = {shard: "exit" for shard, process in self.processes.items() if not process.alive}
        gone |= dict.fromkeys(self._ended, "exit")
        return gone | dict.fromkeys(self._known & self.processes.keys(), "hung")

    def standbys(self) -> int:
        self._at("in")
        self._raise_noted()
        return self.spare

    def quiesce(self, dead: frozenset[int], deadline: Deadline) -> None:
        for shard in dead & self.processes.keys():
            del self.processes[shard]
            self._known.discard(shard)
            self._ended.add(shard)
        for process in self.processes.values():
            process.running = False
        self._step(deadline)

    def rebuild(self, plan: Plan, epoch: int, deadline: Deadline) -> tuple[Member, ...]:
        self._expect(epoch not in self.used_epochs, f"epoch {epoch} is used twice")
        newest = self.store.history[-1]
        self._expect(
            not newest.settled and newest.epoch == epoch - 1, "rebuilt without having claimed"
        )
        self._expect(not any(p.running for p in self.processes.values()), "not quiesced")
        self._expect(not set(plan.lost) & self.processes.keys(), "two members for one shard")
        self.used_epochs.add(epoch)
        self._take(plan)
        self._step(deadline)
        for process in self.processes.values():
            process.epoch = epoch
        self._expect(tuple(sorted(self.processes)) == plan.ranks, "ranks are not as planned")
        self._ended.clear()
        return self.members()

    def validate(self, membership: Membership, deadline: Deadline) -> None:
        self._step(deadline)

    def commit(self, membership: Membership, deadline: Deadline) -> None:
        self._expect(self.store.history[-1] == membership, "committed what the store has not")
        self._expect(membership.members == self.members(), "committed others than there are")
        self._step(deadline)
        for process in self.processes.values():
            process.running = True
        self._at("after")
        self._raise_noted(deadline)

    def abandon(self, reason: str) -> None:
        self.abandoned.append(reason)
        self.processes.clear()

    # ---- faults

    def _take(self, plan: Plan) -> None:
        if plan.kind is Kind.SUBSTITUTE:
            if self.spare < len(plan.lost):
                raise StandbyLost(f"{self.spare} standbys for {len(plan.lost)} shards")
            self.spare -= len(plan.lost)
        for shard in plan.lost:
            self.processes[shard] = Process(next(self._pids), running=False)

    def _step(self, deadline: Deadline) -> None:
        """What every step has in common: it takes a moment, faults strike in it, and it needs all members."""
        self.now += 0.05
        self._at("in")
        self._raise_noted(deadline)
        hung = {shard for shard, process in self.processes.items() if process.hung}
        if hung:
            self.now = max(self.now, deadline.at)
            self._known |= hung
            raise TimeoutError("a member does not answer")
        gone = {shard: "exit" for shard, process in self.processes.items() if not process.alive}
        if gone:
            raise MembersLost(gone)

    def _at(self, moment: str) -> None:
        point = f"{self.state()}.{moment}"
        while self.faults and self.faults[0].point == point and not self._noted:
            fault = self.faults.pop(0)
            self.struck.append(fault)
            self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        process = self.processes.get(fault.shard)
        if fault.kind == "death" and process:
            process.alive = False
        elif fault.kind == "hang" and process:
            process.hung = True
        elif fault.kind == "store down":
            self._down_until = self.now + 5.0
        elif fault.kind == "standby":
            self.spare = max(0, self.spare - 1)
            self._noted += ["standby"] if fault.point == "rebuild.in" else []
        elif fault.kind == "reply lost":
            self._reply_lost = True
        elif fault.kind not in OF_A_MEMBER:
            self._noted.append(fault.kind)

    def _raise_noted(self, deadline: Deadline | None = None) -> None:
        kind = self._noted.pop(0) if self._noted else ""
        if kind == "exception":
            raise RuntimeError("simulated")
        if kind == "timeout":
            self.now = deadline.at if deadline else self.now
            raise TimeoutError("simulated")
        if kind == "standby":
            raise StandbyLost("simulated")
        if kind == "overrun":
            raise _Hang

    def _store_called(self, name: str, moment: str) -> None:
        if moment == "before" and (name == "publish" or self.state() == "suspect"):
            self._at("publish" if name == "publish" else "in")
            self._raise_noted()
        if self.now < self._down_until:
            self.now += 0.02
            raise unavailable("down")
        if self._reply_lost and name == "publish" and moment == "after":
            self._reply_lost = False
            raise unavailable("reply lost")

    def _expect(self, right: bool, otherwise: str) -> None:
        if not right:
            self.violations.append(otherwise)


class _Hang(Exception):
    """The call would never return."""
