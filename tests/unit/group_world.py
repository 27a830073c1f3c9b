"""One simulated recovery from a loss to its end, with everything that is promised about it checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from dynamo_gpu_ft.events import Event, EventStream, GroupRecovered, MemberDied, StateChanged
from dynamo_gpu_ft.recovery.group.account import Outcome
from dynamo_gpu_ft.recovery.group.coordinator import Coordinator
from dynamo_gpu_ft.recovery.group.plan import Kind, Policy
from dynamo_gpu_ft.recovery.group.states import NEXT, Happening, State
from dynamo_gpu_ft.sim.group import OF_THE_STORE, Fault, SimGroup

POLICY = Policy(recovery_s=200.0, step_s=5.0)


@dataclass
class World:
    """`lose` kills the members of some shards and lets the coordinator recover until nobody is lost any more."""

    shards: int
    faults: list[Fault] = field(default_factory=list)
    policy: Policy = POLICY
    spare: int = 2

    def __post_init__(self) -> None:
        self.events: list[Event] = []
        self.group = SimGroup(self.shards, self.spare, list(self.faults))
        self.coordinator = self.lead()
        self.coordinator.found(self.group.members())
        self.group.state = lambda: self.coordinator.state.value
        self.first_pids = {m.shard: m.pid for m in self.group.members()}

    def lead(self) -> Coordinator:
        return Coordinator(
            "engine",
            self.shards,
            self.group,
            self.group.store,
            self.policy,
            EventStream(self.events.append),
            clock=self.group.clock,
            pause=self.group.pause,
            caller=self.group,
            store_caller=self.group,
        )

    def lose(self, *shards: int) -> Outcome:
        for shard in shards:
            self.group.kill(shard)
        outcome = self.recover(dict.fromkeys(shards, "exit"))
        for _ in range(len(self.faults) + 1):
            # What struck after the last look is seen by whoever watches the engine, as always.
            self.group._known |= {s for s, p in self.group.processes.items() if p.hung}
            if outcome.state is State.FAILED or not (lost := self.group.lost()):
                return outcome
            outcome = self.recover(dict(lost))
        raise AssertionError("the engine does not come to rest")

    def recover(self, lost: dict[int, str], *, grow: bool = False) -> Outcome:
        before = self.group.now
        outcome = self.coordinator.recover(lost, grow=grow)
        assert self.group.now - before <= self.policy.recovery_s
        self.check(outcome)
        return outcome

    def check(self, outcome: Outcome) -> None:
        """Everything that holds after every recovery, however it ended."""
        assert not self.group.violations
        assert outcome.state is self.coordinator.state
        history = self.group.store.history
        assert [m.epoch for m in history] == list(range(1, len(history) + 1))
        self.check_story()
        if outcome.state is State.SERVING:
            assert not self.group.abandoned
            assert outcome.membership == history[-1]
            assert outcome.membership.settled
            assert all(p.running or not p.alive for p in self.group.processes.values())
            untouched = self.first_pids.keys() - self.died().keys()
            now = {m.shard: m.pid for m in outcome.membership.members}
            assert all(now[shard] == self.first_pids[shard] for shard in untouched)
        else:
            assert outcome.reason
            assert len(self.group.abandoned) == (not outcome.superseded)

    def check_story(self) -> None:
        """The journal tells every transition, each is one of the table, and the end is told."""
        moves = [event for event in self.events if isinstance(event, StateChanged)]
        former = State.SERVING
        for move in moves:
            assert State(move.former) is former
            former = NEXT[former, Happening(move.happening)]
            assert State(move.state) is former
        assert isinstance(self.events[-1], GroupRecovered)
        assert former is self.coordinator.state

    def died(self) -> dict[int, int]:
        """How often the member of each shard died, as the journal has it."""
        died: dict[int, int] = {}
        for event in self.events:
            if isinstance(event, MemberDied):
                died[event.shard] = died.get(event.shard, 0) + 1
        return died

    def check_end(self, outcome: Outcome) -> None:
        """What has to come of it: FAILED only where a rule says so, and then for that reason."""
        overran = [
            f for f in self.group.struck if f.kind == "overrun" and f.point not in OF_THE_STORE
        ]
        if overran:
            assert (outcome.state, "hangs" in outcome.reason) == (State.FAILED, True)
        elif max(self.died().values(), default=0) >= self.policy.deaths:
            assert (outcome.state, outcome.kind) == (State.FAILED, Kind.FAIL)
            assert "died 3 times" in outcome.reason
        else:
            assert outcome.state is State.SERVING, outcome.reason
            assert len(outcome.membership.members) == self.shards
