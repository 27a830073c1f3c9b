"""`ExpertEngine`: the driver of expert-parallel ranks. Requests in, tokens out; on a loss the survivors go on in the next step.

Attention is data parallel: a request lives on one rank, with its KV, so rows really travel to experts and back, and nothing of a survivor's
requests is touched by a loss. Those of the lost rank are prefilled again on others. Call everything from one thread.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import struct
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference import shape
from dynamo_gpu_ft.engines.reference.asking import GRACE_S
from dynamo_gpu_ft.engines.reference.crew import Crew
from dynamo_gpu_ft.engines.reference.driver import Output
from dynamo_gpu_ft.engines.reference.experts import messages as tell
from dynamo_gpu_ft.engines.reference.experts.figures import Figures
from dynamo_gpu_ft.engines.reference.experts.group import ExpertGroup
from dynamo_gpu_ft.engines.reference.experts.held import expert_bytes
from dynamo_gpu_ft.engines.reference.experts.mending import Mending
from dynamo_gpu_ft.engines.reference.experts.repairs import homes
from dynamo_gpu_ft.engines.reference.experts.routes import Map
from dynamo_gpu_ft.engines.reference.experts.traffic import Piece, Traffic
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling
from dynamo_gpu_ft.engines.reference.shard import DTYPES
from dynamo_gpu_ft.errors import ConfigError, GpuFtError, RecoveryFailed
from dynamo_gpu_ft.events import EventStream
from dynamo_gpu_ft.experts.gap import Gap
from dynamo_gpu_ft.experts.loads import Loads
from dynamo_gpu_ft.recovery import processes
from dynamo_gpu_ft.recovery.group.base import Deadline
from dynamo_gpu_ft.recovery.group.coordinator import Coordinator
from dynamo_gpu_ft.recovery.group.plan import Kind, Policy
from dynamo_gpu_ft.recovery.group.states import State
from dynamo_gpu_ft.recovery.membership.base import MembershipStore
from dynamo_gpu_ft.recovery.membership.open import open_store

COSTS = {Kind.SUBSTITUTE: 0.1, Kind.DEGRADE: 0.1, Kind.RESTART: 10.0}
_numbers = itertools.count(1)


class ExpertEngine:
    """Starts on construction: blocks until every rank is filled, at most `start_timeout_s`. A context manager.

    come_back   whether a lost rank's place is filled again, by a new process in the background
    scrub       layers whose slots are digested behind each step, in turn; -1: all, and a step that met damage is computed again
    """

    def __init__(
        self,
        options: Options,
        store: MembershipStore | None = None,
        events: EventStream | None = None,
        *,
        placement: Map | None = None,
        come_back: bool = False,
        scrub: int = 1,
    ) -> None:
        """`placement`: what the slots hold; by default what survives the loss of any rank, else experts in turn. Raises `ConfigError`, `RecoveryFailed`."""
        self.options, self.config = options, options.config()
        self.shape = shape.read(Path(options.model))
        self._come_back, self._scrub = come_back, scrub
        self.homes = placement or _start_map(self.shape, options)
        _check(self.shape, options, self.homes)
        self._store = store if store is not None else open_store(self.config)
        self._figures = Figures(self.config, expert_bytes(self.shape, DTYPES[options.dtype]))
        self._events = self._figures.heard_by(events or EventStream())
        self._tag = f"{options.name}-{os.getpid()}-{next(_numbers)}"
        self._steps, self._names = 0, itertools.count()
        self._restarts: list[float] = []
        self.traffic = Traffic(options, self.shape.positions)
        self.counts: Counter[tuple[int, int]] = Counter()  # rows by (layer, physical slot)
        self.gap = Gap()  # what masked routers have cost so far
        self.loads = Loads(self.shape.layers, self.shape.experts)
        self.failed = ""
        self.crew = Crew(options, self._tag, tell.Reply)
        self.group = ExpertGroup(options, self.shape, self.crew, self.homes)
        self.mending = Mending(self.group, self.crew, options, self._events, self._figures)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        deadline = Deadline.after(self.config.start_timeout_s)
        try:
            members = self.group.start(deadline)
            policy = Policy.of(self.config, respawn=False, costs=COSTS)
            policy = dataclasses.replace(policy, min_shards=max(1, policy.min_shards))
            self.coordinator = Coordinator(
                self.options.name, self.options.ep, self.group, self._store, policy, self._events
            )
            membership = self.coordinator.found(members)
            self.group.connect(membership.epoch, deadline)
            self.mending.begin(self.loads.decayed())
        except GpuFtError:
            raise
        except Exception as error:
            raise RecoveryFailed(
                "the engine does not start",
                where=self.options.name,
                value=f"{type(error).__name__}: {error}",
                rule=f"all ranks within {self.config.start_timeout_s:g} s",
                remedy="look at the ranks' own messages above this one",
            ) from error

    # -- requests ------------------------------------------------------------------------------------------------------------

    def submit(self, prompt: Sequence[int], sampling: Sampling, request: str = "") -> str:
        """Queues a request on the rank with the fewest and returns its name. Raises `GpuFtError` for one that cannot be served."""
        if self.failed:
            raise RecoveryFailed("the engine has failed", where=self.options.name, value=self.failed)  # fmt: skip
        if bad := [t for t in prompt if not 0 <= t < self.shape.vocab]:
            raise GpuFtError(
                "a prompt has unknown tokens", value=bad[:3], rule=f"below {self.shape.vocab}"
            )
        name = request or f"r{next(self._names)}"
        self.traffic.add(name, prompt, sampling, self.crew.members)
        return name

    @property
    def busy(self) -> bool:
        return self.traffic.busy

    @property
    def covered(self) -> bool:
        """Every expert of every layer can be routed to."""
        return not self.group.map.uncovered()

    def step(self) -> list[Output]:
        """Computes one step of what is open. Blocks for it, and for a recovery if one is needed; [] when that, or nothing, was done.

        What was refilled meanwhile becomes routable before it, a rank that is ready comes back. After a failure for good, the open
        requests' ends are returned once, with the reason."""
        self.crew.look()
        if any(p.why for p in self.crew.members.values()):
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
        rounds = max(-(-plan.rows // self.options.tile) for plan in plans.values())
        for shard, process in members.items():
            plan = plans.get(shard)
            process.send(
                tell.Forward(
                    epoch=epoch, number=number, rounds=rounds, scrub=self._scrub,
                    pieces=plan.pieces if plan else (), gone=plan.gone if plan else (),
                )
            )  # fmt: skip
        done = self.crew.collect(
            members,
            lambda m: isinstance(m, tell.Stepped) and (m.epoch, m.number) == (epoch, number),
            time.monotonic() + self.config.step_deadline_s,
            epoch=epoch,
        )
        self.mending.heard({shard: answer.landed for shard, answer in done.items()})
        if len(done) < len(members):
            return self._step_lost(epoch)
        hurt = {s: {*a.refused, *a.damaged} for s, a in done.items() if a.refused or a.damaged}
        if hurt:
            # Rows may have met wrong bytes, or nothing: the same step is planned again, over the same blocks.
            self.mending.damaged(hurt)
            return []
        self._count(done)
        return self.traffic.apply(plans, {k: v for a in done.values() for k, v in a.drawn.items()}, self.mending.mask)  # fmt: skip

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """All outputs, in the order of the prompts. Raises `RecoveryFailed` when the engine fails for good."""
        names = [self.submit(prompt, sampling) for prompt in prompts]
        outputs: dict[str, list[int]] = {name: [] for name in names}
        while self.busy:
            for output in self.step():
                if output.token is not None:
                    outputs.setdefault(output.request, []).append(output.token)
        if self.failed:
            raise RecoveryFailed("the engine has failed", where=self.options.name, value=self.failed)  # fmt: skip
        return [outputs[name] for name in names]

    def settle(self, limit_s: float) -> bool:
        """Without requests: goes on until nothing is being refilled and nobody is on its way back; False when that took too long."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until and not self.failed:
            self.crew.look()
            lost = any(p.why for p in self.crew.members.values())
            if lost or not self.mending.advance() or not self.mending.poll():
                self.recover()
            elif self._may_return():
                self.recover(grow=True)
            elif not self.mending.busy and not self.group.returning:
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

    def _step_lost(self, epoch: int) -> list[Output]:
        """Somebody is dead, hung or failed: who, shows within a moment, or by who does not come back from the step."""
        members = self.crew.members
        until = time.monotonic() + GRACE_S
        while not any(p.why for p in members.values()) and time.monotonic() < until:
            time.sleep(0.002)
            self.crew.look()
        if not any(p.why for p in members.values()):
            for process in members.values():
                process.send(say.Revoke(epoch=epoch))
                process.send(say.Fence(number=-self._steps))
            back = self.crew.collect(
                members,
                lambda m: isinstance(m, say.Fenced) and m.number == -self._steps,
                time.monotonic() + max(1.0, self.config.hang_floor_s),
            )
            for shard in set(members) - set(back):
                members[shard].lost("it does not come back from a step that was called off")
            if len(back) == len(members):
                members[max(members)].lost("its communicators broke and nobody is dead")
        return self.recover()

    def condemn(self, shard: int, why: str) -> None:
        """The shard's process has to go, by a verdict say; the next step goes on without it."""
        if shard in self.crew.members:
            self.crew.members[shard].lost(why)

    def bring_back(self, shard: int) -> None:
        """Begins to fill a missing rank's place; steps take it in when it is ready."""
        if shard not in self.crew.members and shard not in self.group.returning:
            self.group.bring_back(shard, self.config.start_timeout_s)

    def recover(self, *, grow: bool = False) -> list[Output]:
        """Goes on without what is lost, or, with `grow`, takes in who is ready. Blocks at most `recovery_deadline_s` and a restart.
        Returns the ends of requests if it failed."""
        lost = {shard: p.why for shard, p in self.crew.members.items() if p.why}
        self.group.growing = grow
        outcome = self.coordinator.recover(lost, grow=grow)
        self.group.growing = False
        if outcome.state is State.SERVING:
            missing = set(range(self.options.ep)) - set(self.crew.members)
            self.traffic.move(missing, self.crew.members)
            self.mending.begin(self.loads.decayed())
            if self._come_back:
                with suppress(OSError):
                    for shard in missing:
                        self.bring_back(shard)
            return []
        if outcome.kind is Kind.RESTART and not outcome.superseded:
            return self._restart(outcome.reason)
        return self._fail(outcome.reason)

    def _restart(self, reason: str) -> list[Output]:
        now = time.monotonic()
        self._restarts = [t for t in self._restarts if now - t < self.config.restart_window_s]
        if len(self._restarts) >= self.config.max_restarts:
            return self._fail(f"{len(self._restarts)} restarts did not help: {reason}")
        self._restarts.append(now)
        try:
            self.restart()
        except RecoveryFailed as error:
            return self._fail(f"{reason}; then {error}")
        return []

    def restart(self) -> None:
        """Ends every process and starts all of them again; open requests keep their tokens and are prefilled again."""
        self.group.end()
        self.crew.close()
        self.crew = Crew(self.options, self._tag, tell.Reply)
        manifest, song = self.group.manifest, self.group.song
        self.group = ExpertGroup(self.options, self.shape, self.crew, self.homes)
        self.group.manifest, self.group.song = manifest, song
        self.mending = Mending(self.group, self.crew, self.options, self._events, self._figures)
        self._start()
        self.traffic.move(range(self.options.ep), self.crew.members)

    def _fail(self, reason: str) -> list[Output]:
        self.failed = reason
        self.group.end()
        return self.traffic.end_all(reason)

    def close(self) -> None:
        """Ends every process of the engine. Can be repeated; never raises."""
        with suppress(OSError):
            self.group.end()
            self.crew.close()
        processes.end_all(self._tag, deadline_s=5.0)
        for left in Path(self.config.arena_dir).glob(f"*{self._tag}-*.rendezvous"):
            shutil.rmtree(left, ignore_errors=True)

    def __enter__(self) -> ExpertEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
    good = model.experts and options.ep >= 1 and options.slots >= 1 and options.device == "cpu"
    if not good or homes.uncovered():
        raise ConfigError(
            "this engine cannot be expert parallel",
            where=options.name,
            value={"experts": model.experts, "ep": options.ep, "slots": options.slots, "device": options.device},
            rule="a Mixtral, at least one slot for each expert, on the CPU",
            remedy=f"slots={-(-max(1, model.experts) // max(1, options.ep))} or more",
        )  # fmt: skip


__all__ = ["ExpertEngine", "Piece"]
