"""`ExpertEngine`: the driver of expert-parallel ranks. Requests in, tokens out; on a loss the survivors go on in the next step.

Attention is data parallel: a request lives on one rank, with its KV, so rows really travel to experts and back, and nothing of a survivor's
requests is touched by a loss. Those of the lost rank go on on others, from what is stored of their KV. Call everything from one thread.
"""

from __future__ import annotations

import dataclasses
import struct
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

from dynamo_gpu_ft.engines.reference import shape
from dynamo_gpu_ft.engines.reference.crew import Crew
from dynamo_gpu_ft.engines.reference.driving import Driver, Output
from dynamo_gpu_ft.engines.reference.experts import messages as tell
from dynamo_gpu_ft.engines.reference.experts.figures import Figures
from dynamo_gpu_ft.engines.reference.experts.group import ExpertGroup
from dynamo_gpu_ft.engines.reference.experts.mending import Mending
from dynamo_gpu_ft.engines.reference.experts.planning import Planning
from dynamo_gpu_ft.engines.reference.experts.repairs import homes
from dynamo_gpu_ft.engines.reference.experts.routes import Map
from dynamo_gpu_ft.engines.reference.experts.slots import expert_bytes
from dynamo_gpu_ft.engines.reference.experts.steps import Step, hurt, orders
from dynamo_gpu_ft.engines.reference.experts.traffic import Piece, Traffic
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling
from dynamo_gpu_ft.engines.reference.shard import DTYPES
from dynamo_gpu_ft.errors import ConfigError
from dynamo_gpu_ft.events import EventStream, NotProtectedEvent
from dynamo_gpu_ft.experts.gap import Gap
from dynamo_gpu_ft.experts.loads import Loads
from dynamo_gpu_ft.recovery.group.plan import Kind, Policy
from dynamo_gpu_ft.recovery.group.states import State
from dynamo_gpu_ft.recovery.membership.base import MembershipStore

COSTS = {Kind.SUBSTITUTE: 0.1, Kind.DEGRADE: 0.1, Kind.RESTART: 10.0}


class ExpertEngine(Driver):
    """Starts on construction: blocks until every rank is filled, at most `start_timeout_s`. A context manager.

    come_back     whether a lost rank's place is filled again, by a new process in the background
    scrub         layers whose slots are digested behind each step, in turn; -1: all, and a step that met damage is computed again
    budget_bytes  of experts that one round moves to restore copies and balance behind a loss or a return; None: whatever is worth it.
                  Orphans move whatever it costs, and rounds follow one another until no copy is missing and no slot empty
    """

    group: ExpertGroup

    def __init__(
        self,
        options: Options,
        store: MembershipStore | None = None,
        events: EventStream | None = None,
        *,
        placement: Map | None = None,
        come_back: bool = False,
        scrub: int = 1,
        budget_bytes: int | None = None,
    ) -> None:
        """`placement`: what the slots hold; by default what survives the loss of any rank, else experts in turn. Raises `ConfigError`, `RecoveryFailed`."""
        super().__init__(options)
        self._come_back, self._scrub, self._budget_bytes = come_back, scrub, budget_bytes
        self.homes = placement or _start_map(self.shape, options)
        _check(self.shape, options, self.homes)
        self._figures = Figures(self.config, expert_bytes(self.shape, DTYPES[options.dtype]))
        self.traffic = Traffic(options, self.shape.positions)
        self.counts: Counter[tuple[int, int]] = Counter()  # rows by (layer, physical slot)
        self._waiting: list[Output] = []  # for the next step to return
        self.gap = Gap()  # what masked routers have cost so far
        self.loads = Loads(self.shape.layers, self.shape.experts)
        self._begin(store, self._figures.heard_by(events or EventStream()))

    def _hire(self) -> None:
        self.crew = Crew(self.options, self._tag, tell.Reply)
        self.group = ExpertGroup(
            self.options, self.shape, self.crew, self.homes, self.traffic, scrub=self._scrub
        )
        size = expert_bytes(self.shape, DTYPES[self.options.dtype])
        self.planning = Planning(self.homes.placement, size, self._budget_bytes, self.loads.decayed)
        self.mending = Mending(
            self.group, self.crew, self.options, self._events, self._figures, self.planning
        )

    def _policy(self) -> Policy:
        policy = Policy.of(self.config, respawn=False, costs=COSTS)
        return dataclasses.replace(policy, min_shards=max(1, policy.min_shards))

    def _start(self) -> None:
        super()._start()
        for why in sorted(set(self.group.not_protected.values()) - {""}):
            if self.config.snapshot:
                self._events.emit(NotProtectedEvent(reason=why))
        self.mending.begin(owed=False)

    # -- requests ------------------------------------------------------------------------------------------------------------

    def _queue(self, name: str, prompt: Sequence[int], sampling: Sampling) -> None:
        """On the rank with the fewest."""
        self.traffic.add(name, prompt, sampling, self.crew.members)

    def _end_requests(self, reason: str) -> list[Output]:
        return self.traffic.end_all(reason)

    @property
    def busy(self) -> bool:
        return self.traffic.busy or bool(self._waiting)

    @property
    def covered(self) -> bool:
        """Every expert of every layer can be routed to."""
        return not self.group.map.uncovered()

    def step(self) -> list[Output]:
        """As of every driver. What was refilled meanwhile becomes routable before it, a rank that is ready comes back."""
        if self._waiting:
            outputs, self._waiting = self._waiting, []
            return outputs
        self.crew.look()
        if self.crew.lost:
            return self.recover()
        if not self.mending.advance():
            return self.recover()
        if self._may_return():
            return self.recover(grow=True)
        if not self.group.map.runnable:
            self.mending.poll()
            return []
        return self._forward()

    def _forward(self) -> list[Output]:
        plans = self.traffic.plan(self.crew.members)
        if not plans:
            return []
        self._steps += 1
        number, epoch, members = self._steps, self.group.epoch, self.crew.members
        for shard, order in orders(
            members, plans, epoch=epoch, number=number, tile=self.options.tile, scrub=self._scrub
        ).items():
            members[shard].send(order)
        done = self._done(tell.Stepped)
        self.mending.heard({shard: answer.landed for shard, answer in done.items()})
        if len(done) < len(members):
            return self._step_lost(epoch)
        if found := hurt(done):
            # Rows may have met wrong bytes, or nothing: the same step is planned again, over the same blocks.
            self.mending.damaged(found)
            return []
        return self._apply(Step(plans, done, self.mending.mask))

    def _apply(self, step: Step) -> list[Output]:
        self._count(step.answers)
        return self.traffic.apply(step.plans, step.drawn, step.mask, step.gaps)

    def settle(self, limit_s: float) -> bool:
        """Without requests: goes on until nothing is being brought, nobody is on its way back, and all ranks have the maps of every next loss
        ready; False when that took too long."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until and not self.failed:
            self.crew.look()
            if self.crew.lost or not self.mending.advance() or not self.mending.poll():
                self._waiting += self.recover()
            elif self._may_return():
                self._waiting += self.recover(grow=True)
            elif not self.mending.busy and not self.group.returning and self.mending.foreseen:
                return True
            else:
                time.sleep(0.002)
        return False

    # -- faults --------------------------------------------------------------------------------------------------------------

    def _may_return(self) -> bool:
        """Whether every missing rank is ready: they take their seats together."""
        self.group.look_at_returning()
        missing = set(range(self.options.ep)) - set(self.crew.members)
        return bool(missing) and missing <= set(self.group.ready)

    def condemn(self, shard: int, why: str) -> None:
        """The shard's process has to go, by a verdict say; the next step goes on without it."""
        if shard in self.crew.members:
            self.crew.members[shard].lost(why)

    def bring_back(self, shard: int) -> None:
        """Begins to fill a missing rank's place; steps take it in when it is ready."""
        if shard not in self.crew.members and shard not in self.group.returning:
            self.group.bring_back(shard, self.config.start_timeout_s)

    def place(self, placement: Map) -> None:
        """Leads to `placement` in the background, between steps, until ranks are lost or come back. Slots that it leaves empty keep what they
        have; a layer that cannot be walked without taking a last copy away stays as it is."""
        _check(self.shape, self.options, placement)
        self.mending.place(placement.placement)

    def recover(self, *, grow: bool = False) -> list[Output]:
        """Goes on without what is lost, or, with `grow`, takes in who is ready. Blocks at most `recovery_deadline_s` and a restart.
        Returns the tokens of the step that validated it, and the ends of requests if it failed."""
        self.group.growing = grow
        outcome = self.coordinator.recover(self.crew.lost, grow=grow)
        self.group.growing = False
        if outcome.state is State.SERVING:
            carried, self.group.carried = self.group.carried, None
            outputs = self._apply(carried) if carried else []
            missing = set(range(self.options.ep)) - set(self.crew.members)
            self.mending.begin(owed=True)
            if self._come_back:
                with suppress(OSError):
                    for shard in missing:
                        self.bring_back(shard)
            return outputs
        return self._not_in_place(outcome)

    def restart(self) -> None:
        """Ends every process and starts all of them again; open requests keep their tokens and are prefilled again."""
        super().restart()
        self.traffic.move(range(self.options.ep), self.crew.members)

    # -- details -------------------------------------------------------------------------------------------------------------

    def _count(self, done: Mapping[int, tell.Stepped]) -> None:
        """Rows that each (layer, physical slot) computed, and what that says of its expert."""
        slots, layers, gap = self.options.slots, self.shape.layers, Gap()
        step = [[0] * (self.options.ep * slots) for _ in range(layers)]
        for shard, answer in done.items():
            tokens, affected, divergence = answer.gap
            gap += Gap(tokens, affected, router_kl=divergence)
            counts = struct.unpack(f"<{layers * slots}i", answer.counts)
            for layer, row in enumerate(step):
                row[shard * slots : (shard + 1) * slots] = counts[layer * slots : (layer + 1) * slots]  # fmt: skip
        self.counts.update(
            {(layer, slot): n for layer, row in enumerate(step) for slot, n in enumerate(row) if n}
        )
        self.loads.observe_physical(step, self.group.map.table)
        self.gap += gap
        self._figures.step(gap)

    def rows_per_rank(self) -> dict[int, int]:
        """Rows that the experts of each rank have computed, for looking at the balance."""
        found = dict.fromkeys(range(self.options.ep), 0)
        for (_, physical), rows in self.counts.items():
            found[physical // self.options.slots] += rows
        return found


def _start_map(model: shape.Shape, options: Options) -> Map:
    few = min(model.experts, options.ep, options.slots) < 1  # refused by `_check`
    rows = [()] if few else homes(model.layers, model.experts, options.ep, options.slots)
    return Map(model.experts, options.slots, rows)


def _check(model: shape.Shape, options: Options, homes: Map) -> None:
    good = model.experts and options.ep >= 1 and options.slots >= 1
    good = good and options.block >= 2  # one for the canary
    if not good or homes.uncovered():
        raise ConfigError(
            "this engine cannot be expert parallel",
            where=options.name,
            value={"experts": model.experts, "ep": options.ep, "slots": options.slots, "block": options.block},
            rule="a Mixtral, at least one slot for each expert, blocks of at least two tokens",
            remedy="block=16" if options.block < 2 else f"slots={-(-max(1, model.experts) // max(1, options.ep))} or more",
        )  # fmt: skip


__all__ = ["ExpertEngine", "Piece"]
