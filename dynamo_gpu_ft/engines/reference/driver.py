"""`Engine`: the driver of a reference engine. Requests in, tokens out, a step at a time; recovers in place when a rank is lost.

Call everything from one thread that lives as long as the engine. A step that was lost is planned again after the recovery, so a
token is given out once and is the one that would have been given.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference import shape
from dynamo_gpu_ft.engines.reference.asking import GRACE_S
from dynamo_gpu_ft.engines.reference.crew import Crew
from dynamo_gpu_ft.engines.reference.devices import Devices
from dynamo_gpu_ft.engines.reference.group import ReferenceGroup
from dynamo_gpu_ft.engines.reference.hearing import Hearing
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling
from dynamo_gpu_ft.engines.reference.scheduler import Request, Scheduler
from dynamo_gpu_ft.errors import ConfigError, GpuFtError, RecoveryFailed
from dynamo_gpu_ft.events import EventStream
from dynamo_gpu_ft.health.monitor import Monitor
from dynamo_gpu_ft.recovery import processes
from dynamo_gpu_ft.recovery.group.base import Deadline
from dynamo_gpu_ft.recovery.group.coordinator import Coordinator
from dynamo_gpu_ft.recovery.group.plan import Kind, Policy
from dynamo_gpu_ft.recovery.group.states import State
from dynamo_gpu_ft.recovery.membership.base import MembershipStore
from dynamo_gpu_ft.recovery.membership.open import open_store
from dynamo_gpu_ft.topology import Device, Rank

#: Seconds that each way took on a small machine, until it was measured.
COSTS = {Kind.SUBSTITUTE: 0.2, Kind.RESPAWN: 0.5, Kind.DEGRADE: 1.0, Kind.RESTART: 10.0}
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Output:
    """A new token of a request; `finished` is empty while more will come, else "length", "stop" or the error's text (then no token)."""

    request: str
    token: int | None
    finished: str = ""


class Engine:
    """Starts on construction: blocks until every rank is loaded, at most `start_timeout_s`. A context manager."""

    def __init__(
        self,
        options: Options,
        store: MembershipStore | None = None,
        events: EventStream | None = None,
    ) -> None:
        """`store` is the one that the setting `membership` names, unless it is given. Raises `ConfigError` for a model or a cut that is not possible, `RecoveryFailed` when the ranks do not come up."""
        self.options, self.config = options, options.config()
        self.shape = shape.read(Path(options.model))
        self.scheduler = Scheduler(
            blocks=options.blocks, block=options.block, rows=options.rows,
            positions=self.shape.positions, snapshot=self.config.snapshot, tails=self.config.tail_every > 0,
        )  # fmt: skip
        self._store = store if store is not None else open_store(self.config)
        self._events = events or EventStream()
        self._tag = f"{options.name}-{os.getpid()}-{next(_numbers)}"
        self._steps, self._names = 0, itertools.count()
        self._restarts: list[float] = []
        self.devices = Devices(options.tp * options.pp, options.devices)
        self._hearing: Hearing | None = None
        self._monitor: Monitor | None = None
        if self.config.min_shards and options.pp > 1:
            raise ConfigError(
                "an engine with pipeline stages cannot go on with fewer ranks",
                value=self.config.min_shards,
                rule="min_shards is 0 where pp is more than 1",
                remedy="min_shards=0",
            )
        self.failed = ""
        self.crew = Crew(options, self._tag)
        self.group = ReferenceGroup(options, self.shape, self.crew, self.scheduler, self.devices)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        deadline = Deadline.after(self.config.start_timeout_s)
        if self._hearing is not None:
            self.crew.attend(self._judge, self._hearing.fileno())
        try:
            members = self.group.start(deadline)
            policy = Policy.of(self.config, costs=COSTS)
            self.coordinator = Coordinator(
                self.options.name,
                len(members),
                self.group,
                self._store,
                policy,
                self._events,
                verdicts=self._verdicts,
            )
            membership = self.coordinator.found(members)
            self.group.connect(membership.epoch, deadline)
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
        self.crew.wake_standbys()
        self._tell_monitor()

    # -- requests ------------------------------------------------------------------------------------------------------------

    def submit(self, prompt: Sequence[int], sampling: Sampling, request: str = "") -> str:
        """Queues a request and returns its name, by which seeded draws go too. Raises `GpuFtError` for one that cannot be served."""
        if self.failed:
            raise RecoveryFailed(
                "the engine has failed", where=self.options.name, value=self.failed
            )
        if bad := [t for t in prompt if not 0 <= t < self.shape.vocab]:
            raise GpuFtError(
                "a prompt has unknown tokens", value=bad[:3], rule=f"below {self.shape.vocab}"
            )
        name = request or f"r{next(self._names)}"
        self.scheduler.add(Request(name, list(prompt), len(prompt), sampling))
        return name

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.open)

    def step(self) -> list[Output]:
        """Computes one step of what is open. Blocks for it, and for a recovery if one is needed; [] when that, or nothing, was done.

        After a failure for good, the open requests' ends are returned once, with the reason."""
        self.crew.look()
        if any(p.why for p in self.crew.members.values()):
            return self.recover()
        plan = self.scheduler.plan()
        if plan is None:
            return []
        self._steps += 1
        number, epoch = self._steps, self.group.epoch
        order = say.Step(
            epoch=epoch, number=number, pieces=plan.pieces, sealed=plan.sealed, gone=plan.gone
        )
        members = self.crew.members
        for process in members.values():
            process.send(order)
        done = self.crew.collect(
            members,
            lambda m: isinstance(m, say.Done) and (m.epoch, m.number) == (epoch, number),
            time.monotonic() + self.config.step_deadline_s,
            epoch=epoch,
        )
        if len(done) < len(members):
            return self._step_lost(epoch)
        drawn: dict[str, int] = {}
        gaps: dict[str, int] = {}
        for answer in done.values():
            drawn |= answer.drawn
            for request, first in answer.gaps.items():
                gaps[request] = min(first, gaps.get(request, first))
        over = {request.id: request for request in self.scheduler.apply(plan, drawn, gaps)}
        self.crew.wake_standbys()  # behind the first token after a recovery, with which they would compete
        return [
            Output(name, token, over[name].finished if name in over else "")
            for name, token in drawn.items()
        ]

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """All outputs, in the order of the prompts. Raises `RecoveryFailed` when the engine fails for good."""
        names = [self.submit(prompt, sampling) for prompt in prompts]
        outputs: dict[str, list[int]] = {name: [] for name in names}
        while self.busy:
            for output in self.step():
                if output.token is not None:
                    outputs.setdefault(output.request, []).append(output.token)
        if self.failed:
            raise RecoveryFailed(
                "the engine has failed", where=self.options.name, value=self.failed
            )
        return [outputs[name] for name in names]

    # -- faults --------------------------------------------------------------------------------------------------------------

    def _step_lost(self, epoch: int) -> list[Output]:
        """Somebody is dead, hung or failed, or a communicator broke: who, shows within a moment, or by who does not come back."""
        members = self.crew.members
        self._look_until(GRACE_S)
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
                # All live and yet they cannot talk: one of them has to go, or it would be tried for ever.
                members[max(members)].lost("its communicators broke and nobody is dead")
        return self.recover()

    def _look_until(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not any(p.why for p in self.crew.members.values()) and time.monotonic() < until:
            time.sleep(0.002)
            self.crew.look()

    def condemn(self, shard: int, why: str, *, device: bool = False) -> None:
        """The shard's process has to go, by a verdict say; with `device`, its device can take no process either until `returned`. The
        next step replaces it (on a spare device then), goes on with fewer ranks (`min_shards`) or ends in FAILED."""
        shards = [shard]
        if device:
            place = self.devices.of(shard)
            self.devices.condemn(place, why)
            shards = self.devices.shards_on(place)
        for each in shards:
            for held in (self.crew.members, self.crew.fresh):
                if each in held:
                    held[each].lost(why)

    def returned(self, shard: int) -> list[Output]:
        """The device of a condemned shard can be used again: a degraded engine fills its place now. Blocks as `recover` does."""
        self.devices.clear(shard)
        return self.recover(grow=True)

    def watch(self, monitor: Monitor) -> None:
        """From now on the monitor's verdicts are carried out: whoever holds what cannot be used is condemned, at any moment, in a recovery
        too. The monitor is told which rank is on which device. It is the caller's, who stops it behind `close`."""
        if self._hearing is not None:
            self._hearing.close()
        self._monitor, self._hearing = monitor, Hearing(monitor, self._since)
        self.crew.attend(self._judge, self._hearing.fileno())
        self._tell_monitor()

    def _tell_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.set_ranks(
                [
                    Rank(shard=shard, pid=p.pid, device=Device(index=self.devices.of(shard)))
                    for shard, p in self.crew.members.items()
                ]
            )

    def _since(self, shard: int) -> float:
        process = self.crew.fresh.get(shard) or self.crew.members.get(shard)
        return process.since if process else 0.0

    def _judge(self) -> None:
        """Carries out what was heard. A fault that is nobody's alone (a link, the node) takes everybody's process, or device, with it."""
        for sentence in self._hearing.take() if self._hearing else ():
            every = range(self.options.tp * self.options.pp)
            for shard in sentence.shards or every:
                self.condemn(shard, sentence.reason, device=bool(sentence.fence))

    def _verdicts(self, missing: frozenset[int]) -> tuple[dict[int, str], int | None]:
        """For the coordinator: which of the missing have no device to be on, and how many places there are."""
        return self.devices.homeless(missing), self.devices.spares

    def recover(self, *, grow: bool = False) -> list[Output]:
        """Recovers in place what is lost; restarts everything or fails where the coordinator says so. With `grow`, fills the places that
        a degraded engine misses. Blocks at most `recovery_deadline_s` and a restart. Returns the ends of requests if it failed."""
        lost = {shard: p.why for shard, p in self.crew.members.items() if p.why}
        outcome = self.coordinator.recover(lost, grow=grow)
        if outcome.state is State.SERVING:
            self._tell_monitor()
            return []
        if outcome.kind is Kind.RESTART and not outcome.superseded:
            return self._restart(outcome.reason)
        return self._fail(outcome.reason)

    def _restart(self, reason: str) -> list[Output]:
        """The whole engine anew; open requests go on with what the arena has."""
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
        """Ends every process and starts all of them again; open requests keep their tokens and what KV the arena has."""
        self.crew.close()
        self.crew = Crew(self.options, self._tag)
        manifest, song = self.group.manifest, self.group.song
        peers = self.group.peers
        self.group = ReferenceGroup(
            self.options, self.shape, self.crew, self.scheduler, self.devices
        )
        self.group.manifest, self.group.song, self.group.peers = manifest, song, peers
        self._start()

    def _fail(self, reason: str) -> list[Output]:
        self.failed = reason
        self.crew.end_all()
        return [Output(r.id, None, reason) for r in self.scheduler.end_all(reason)]

    def close(self) -> None:
        """Ends every process of the engine. Can be repeated; never raises."""
        if self._hearing is not None:
            self._hearing.close()
            self._hearing = None
            self.crew.attend(lambda: None, -1)
        with suppress(OSError):
            self.crew.close()
        processes.end_all(self._tag, deadline_s=5.0)
        for left in Path(self.config.arena_dir).glob(f"*{self._tag}-*.rendezvous"):
            shutil.rmtree(left, ignore_errors=True)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
