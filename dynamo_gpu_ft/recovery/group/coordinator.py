"""Drives an engine's `GroupAdapter` from a loss to SERVING or FAILED, under deadlines, journalling every transition and step.

It decides nothing itself: `states.py` says what follows, `plan.py` what to do, the membership store who leads.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from dynamo_gpu_ft.errors import RecoveryFailed, StoreUnavailable
from dynamo_gpu_ft.events import Event, EventStream
from dynamo_gpu_ft.recovery.group.account import Outcome, Run
from dynamo_gpu_ft.recovery.group.base import Deadline, GroupAdapter, MembersLost, StandbyLost
from dynamo_gpu_ft.recovery.group.claims import Claims
from dynamo_gpu_ft.recovery.group.journal import standing
from dynamo_gpu_ft.recovery.group.plan import Kind, Plan, Policy, Situation, plan
from dynamo_gpu_ft.recovery.group.side import Caller, Overrun, SideThread
from dynamo_gpu_ft.recovery.group.states import ENDS, NEXT, Happening, State, after
from dynamo_gpu_ft.recovery.group.telling import Teller
from dynamo_gpu_ft.recovery.membership.base import Member, Membership, MembershipStore

_T = TypeVar("_T")

GRACE_S = 0.25  # what an adapter may take beyond its deadline to raise TimeoutError before it counts as hung
LOOK_S = 1.0  # longest `lost()` or `standbys()`, which are not to block at all

#: Given the missing shards, says shard -> why its device is condemned, and how many usable devices are free (None: not counted).
Verdicts = Callable[[frozenset[int]], tuple[Mapping[int, str], "int | None"]]


class Coordinator:
    """Leads the recoveries of one engine. One call at a time; it belongs to whoever calls it.

    The adapter is called on one thread of the coordinator's own, one call at a time, while the caller waits. A call that overruns
    its deadline by more than a moment breaks the adapter's contract: nobody knows what it still does, so the recovery ends in
    FAILED at once, `abandon` is called on a new thread, and the old one is left inside the call (see `side.py`).
    """

    def __init__(
        self,
        engine: str,
        shards: int,
        adapter: GroupAdapter,
        store: MembershipStore,
        policy: Policy,
        events: EventStream | None = None,
        *,
        verdicts: Verdicts | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        caller: Caller | None = None,
        store_caller: Caller | None = None,
    ) -> None:
        """`clock`, `pause` and the callers are there for a simulated world; a real one leaves them out."""
        self.engine, self.shards, self.policy = engine, shards, policy
        self.state = State.SERVING
        self.membership: Membership | None = None
        self.token = secrets.token_hex(8)
        self._adapter, self._clock = adapter, clock
        self._verdicts = verdicts or (lambda missing: ({}, None))
        self._caller = caller or SideThread(f"{engine}-adapter")
        store_caller = store_caller or SideThread(f"{engine}-store")
        self._claims = Claims(engine, store, store_caller, clock, pause)
        self._tell = Teller(engine, events or EventStream(), clock)
        self._deaths: dict[int, list[float]] = {}
        self._measured: dict[Kind, float] = {}
        self._unfinished = False
        self._inherited: dict[int, str] = {}
        self._failed: Outcome | None = None
        self._work = {
            State.SUSPECT: self._suspect,
            State.QUIESCE: self._quiesce,
            State.PLAN: self._plan,
            State.REBUILD: self._rebuild,
            State.VALIDATE: self._validate,
            State.COMMIT: self._commit,
        }

    def found(self, members: Iterable[Member]) -> Membership:
        """Publishes the first epoch of a started engine, one after the newest that the store knows. Blocks up to `step_s`.

        Raises `StoreUnavailable`, and `RecoveryFailed` when another coordinator publishes at the same time."""
        until = self._clock() + self.policy.step_s
        newest = self._claims.newest(until)
        founded = self._made(newest.epoch + 1 if newest else 1, tuple(members), settled=True)
        if self._claims.publish(founded, until) != founded:
            raise RecoveryFailed(
                "another coordinator publishes memberships of this engine",
                where=f"engine {self.engine}",
                rule="one coordinator leads an engine",
                remedy="another engine name for the second engine",
            )
        self.membership = founded
        return founded

    def take_over(self, events: Iterable[Event] = ()) -> Membership | None:
        """Continues after a predecessor: reads the store and the journal (`journal.read`), and says whom the engine consists of;
        None if nothing was ever published, then `found` is the way.

        The next `recover` goes through all states if the predecessor left a recovery unfinished, or no journal to see that in.
        A predecessor that is only stopped is out once this one has claimed an epoch. Raises `StoreUnavailable`."""
        newest = self._claims.newest(self._clock() + self.policy.step_s)
        former = list(events)
        stood = standing(self.engine, former)
        self.membership, self._deaths = newest, stood.deaths
        self._unfinished = not former or stood.unfinished or not (newest and newest.settled)
        if stood.unfinished and newest and newest.epoch == stood.epoch:
            self._inherited = dict.fromkeys(stood.lost, "lost when the former coordinator ended")
        return newest

    def recover(self, lost: Mapping[int, str] | None = None, *, grow: bool = False) -> Outcome:
        """Blocks until SERVING or FAILED, at most the policy's `recovery_s`. `lost`: shard -> why, of members that are known to be
        gone; what `adapter.lost()` says is added. With `grow` a degraded engine tries to fill its missing shards.

        Nothing lost and nothing to do is a false alarm: the adapter is not disturbed. After FAILED it only repeats that outcome."""
        if self._failed is not None:
            return self._failed
        if self.membership is None:
            raise RuntimeError("recover() before found() or take_over()")
        run = Run.of(self._clock(), self.policy.recovery_s, grow=grow)
        given = {**self._inherited, **(lost or {})}
        self._inherited = {}
        self._move(run, Happening.LOST, ", ".join(f"shard {s}: {w}" for s, w in given.items()))
        self._count(run, given)
        while self.state not in ENDS:
            happening, reason = self._happens(run)
            if happening in (Happening.HOPELESS, Happening.DEADLINE):
                # Perhaps nothing works because the members follow another by now: then they are not ours to end.
                happening, reason = self._overtaken(run) or (happening, reason)
            self._move(run, happening, reason)
        return self._ended(run)

    # ---- the work of each state: returns when it is done, raises what else happened

    def _suspect(self, run: Run) -> None:
        membership = self._now()
        missing = len(membership.members) < self.shards
        filling = run.grow and missing and bool(self._plan_now(run).lost)
        if not (run.dead or self._unfinished or filling):
            raise _Else(Happening.CLEARED, "nobody is lost")
        try:
            newest = self._claims.newest(self._step(run).at)
        except StoreUnavailable:
            return  # survivors have to be freed all the same; PLAN waits for the store
        if newest != membership:
            raise _Else(Happening.SUPERSEDED, _others(newest))

    def _quiesce(self, run: Run) -> None:
        run.filled.clear()
        run.proposed = None
        dead = frozenset(range(self.shards)) - self._alive(run)
        self._call(run, "quiesce", lambda deadline: self._adapter.quiesce(dead, deadline))

    def _plan(self, run: Run) -> None:
        chosen = run.last = self._plan_now(run)
        membership = self._now()
        self._tell.planned(membership.epoch, chosen)
        if chosen.kind in (Kind.RESTART, Kind.FAIL):
            raise _Else(Happening.HOPELESS, chosen.reason)
        # The claim takes the lead, and puts the dead out of the membership before anything is built without them. Each attempt
        # has an epoch of its own, so that whoever comes late finds no communicator under the name that he knows.
        members = tuple(m for m in membership.members if m.shard not in run.dead)
        self._publish(run, self._made(membership.epoch + 1, members, settled=False))

    def _rebuild(self, run: Run) -> None:
        assert run.last is not None
        chosen, epoch = run.last, self._now().epoch + 1
        members = self._call(run, "rebuild", lambda d: self._adapter.rebuild(chosen, epoch, d))
        members = tuple(sorted(members, key=lambda member: member.rank))
        ranks = [(member.rank, member.shard) for member in members]
        if ranks != list(enumerate(chosen.ranks)):
            raise _Else(
                Happening.ERROR,
                f"rebuild returned {ranks} as (rank, shard), planned was {chosen.ranks}",
            )
        run.filled = set(chosen.lost)
        run.proposed = self._made(epoch, members, settled=True)

    def _validate(self, run: Run) -> None:
        proposed = run.proposed
        assert proposed is not None
        self._call(run, "validate", lambda deadline: self._adapter.validate(proposed, deadline))

    def _commit(self, run: Run) -> None:
        proposed = run.proposed
        assert proposed is not None
        if self.membership != proposed:
            self._publish(run, proposed)
            run.dead.clear()
            run.filled.clear()
        self._call(run, "commit", lambda deadline: self._adapter.commit(proposed, deadline))

    # ---- what the states have in common

    def _happens(self, run: Run) -> tuple[Happening, str]:
        """Does the work of the state and says what happened, with the reason."""
        state = self.state
        if self._clock() >= run.planned_end:
            return Happening.DEADLINE, self._too_late()
        try:
            self._look(run)
            self._work[state](run)
            return Happening.DONE, ""
        except MembersLost as error:
            happening, reason = Happening.LOST, str(error)
            if self._count(run, error.shards) and state is not State.SUSPECT:
                return happening, reason
        except StandbyLost as error:
            happening, reason = Happening.STANDBY_LOST, str(error) or "a standby is lost"
        except TimeoutError as error:
            happening, reason = Happening.TIMED_OUT, str(error) or f"{state.value} took too long"
        except Overrun as error:
            return Happening.HOPELESS, f"the engine's adapter hangs: {error}"
        except RecoveryFailed as error:
            return Happening.HOPELESS, str(error)
        except _Else as other:
            happening, reason = other.happening, other.reason
            if happening is not Happening.ERROR:
                return happening, reason
        except Exception as error:
            happening, reason = Happening.ERROR, f"{type(error).__name__}: {error}"
            if isinstance(error, StoreUnavailable) and (state, Happening.STORE_DOWN) in NEXT:
                return Happening.STORE_DOWN, reason
        if self._clock() >= run.planned_end:
            return Happening.DEADLINE, f"{self._too_late()}; last: {reason}"
        key, times = run.failure(state)
        if isinstance(key, State) and times > self.policy.attempts:
            return Happening.HOPELESS, f"{state.value} failed {times} times: {reason}"
        return happening if (state, happening) in NEXT else Happening.ERROR, reason

    def _overtaken(self, run: Run) -> tuple[Happening, str] | None:
        """SUPERSEDED, if the store says that another leads. A store that does not answer says nothing."""
        try:
            newest = self._claims.newest(
                min(self._clock() + LOOK_S, (run.planned_end + run.end) / 2)
            )
        except Exception:
            return None
        if newest == self.membership or (newest is not None and newest.by == self.token):
            return None
        return Happening.SUPERSEDED, _others(newest)

    def _look(self, run: Run) -> None:
        """Asks the adapter who is lost; raises `MembersLost` with those not known yet (in SUSPECT they are only noted)."""
        lost = self._brief(run, "lost", self._adapter.lost)
        new = {shard: why for shard, why in lost.items() if run.is_news(shard, self._now())}
        if new and self.state is State.SUSPECT:
            self._count(run, new)
        elif new:
            raise MembersLost(new)

    def _count(self, run: Run, shards: Mapping[int, str]) -> bool:
        """Notes the dead; True if any of them was not known."""
        membership = self._now()
        new = [shard for shard in sorted(shards) if run.is_news(shard, membership)]
        for shard in new:
            run.died(shard, shards[shard])
            died = self._tell.died(membership.epoch, shard, shards[shard])
            self._deaths.setdefault(shard, []).append(died)
        return bool(new)

    def _plan_now(self, run: Run) -> Plan:
        alive = self._alive(run)
        condemned, spares = self._verdicts(frozenset(range(self.shards)) - alive)
        situation = Situation(
            shards=self.shards,
            alive=alive,
            lost=frozenset(run.lost),
            standbys=self._brief(run, "standbys", self._adapter.standbys),
            condemned=condemned,
            spares=spares,
            deaths=self._deaths,
            now=time.time(),
            failed=run.failed_kinds(),
            measured=self._measured,
            left_s=run.planned_end - self._clock(),
        )
        return plan(situation, self.policy)

    def _publish(self, run: Run, membership: Membership) -> None:
        with self._tell.step("publish", membership.epoch):
            newest = self._claims.publish(membership, self._step(run).at)
        if newest != membership and newest.by == self.token:
            # One of our own, from a call that seemed to have failed before it was given up for another plan: go on from there.
            self.membership = newest
            raise StoreUnavailable("an earlier publication had succeeded after all")
        if newest != membership:
            raise _Else(Happening.SUPERSEDED, _others(newest))
        self.membership = membership

    def _step(self, run: Run) -> Deadline:
        return Deadline(min(self._clock() + self.policy.step_s, run.planned_end))

    def _brief(self, run: Run, name: str, look: Callable[[], _T]) -> _T:
        return self._caller.call(name, look, min(self._clock() + LOOK_S, run.end))

    def _call(self, run: Run, name: str, step: Callable[[Deadline], _T]) -> _T:
        """One step of the adapter under the state's deadline, journalled."""
        deadline = self._step(run)
        give_up = min(deadline.at + GRACE_S, (run.planned_end + run.end) / 2)
        with self._tell.step(name, self._now().epoch):
            return self._caller.call(name, lambda: step(deadline), give_up)

    def _move(self, run: Run, happening: Happening, reason: str) -> None:
        former, self.state = self.state, after(self.state, happening)
        run.happening, run.reason = happening, reason
        self._tell.moved(run, self._now().epoch, former, self.state)

    def _ended(self, run: Run) -> Outcome:
        """Abandons the group after FAILED, unless it is another's by now, and tells how it ended."""
        failed = self.state is State.FAILED
        superseded = run.happening is Happening.SUPERSEDED
        if failed and not superseded:
            self._abandon(run)
        took = self._clock() - run.began
        kind = run.last.kind if run.last else None
        outcome = Outcome(self.state, self._now(), kind, run.reason, took, superseded)
        if failed:
            self._failed = outcome
        elif kind is not None:
            self._unfinished = False
            self._measured[kind] = took
        self._tell.ended(outcome, run.happening)
        return outcome

    def _abandon(self, run: Run) -> None:
        try:
            with self._tell.step("abandon", self._now().epoch):
                self._caller.call("abandon", lambda: self._adapter.abandon(run.reason), run.end)
        except (Overrun, Exception):
            pass  # the step's event tells it; nothing can follow the end

    def _alive(self, run: Run) -> frozenset[int]:
        return frozenset(m.shard for m in self._now().members if m.shard not in run.dead)

    def _now(self) -> Membership:
        assert self.membership is not None
        return self.membership

    def _too_late(self) -> str:
        limit = f"{self.policy.recovery_s:g} s (recovery_deadline_s)"
        return f"no recovery within {limit}, in state {self.state.value}"

    def _made(self, epoch: int, members: tuple[Member, ...], *, settled: bool) -> Membership:
        return Membership(
            engine=self.engine,
            epoch=epoch,
            shards=self.shards,
            members=members,
            settled=settled,
            by=self.token,
        )


def _others(newest: Membership | None) -> str:
    epoch = "no membership" if newest is None else f"epoch {newest.epoch}"
    return f"another coordinator leads: {epoch} is in the store"


class _Else(Exception):
    """Something else than DONE happened in a state, found by the coordinator itself."""

    def __init__(self, happening: Happening, reason: str) -> None:
        super().__init__(reason)
        self.happening, self.reason = happening, reason
