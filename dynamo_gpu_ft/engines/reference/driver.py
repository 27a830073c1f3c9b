"""`Engine`: the driver of a reference engine. Requests in, tokens out, a step at a time; recovers in place when a rank is lost.

Call everything from one thread that lives as long as the engine. A step that was lost is planned again after the recovery, so a
token is given out once and is the one that would have been given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference.crew import Crew
from dynamo_gpu_ft.engines.reference.devices import Devices
from dynamo_gpu_ft.engines.reference.driving import Driver, Output
from dynamo_gpu_ft.engines.reference.group import ReferenceGroup
from dynamo_gpu_ft.engines.reference.hearing import Hearing
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling
from dynamo_gpu_ft.engines.reference.scheduler import Request, Scheduler
from dynamo_gpu_ft.errors import ConfigError
from dynamo_gpu_ft.events import EventStream
from dynamo_gpu_ft.health.monitor import Monitor
from dynamo_gpu_ft.recovery.group.plan import Kind, Policy
from dynamo_gpu_ft.recovery.group.states import State
from dynamo_gpu_ft.recovery.membership.base import MembershipStore
from dynamo_gpu_ft.topology import Device, Rank

#: Seconds that each way took on a small machine, until it was measured.
COSTS = {Kind.SUBSTITUTE: 0.2, Kind.RESPAWN: 0.5, Kind.DEGRADE: 1.0, Kind.RESTART: 10.0}


class Engine(Driver):
    """Starts on construction: blocks until every rank is loaded, at most `start_timeout_s`. A context manager."""

    group: ReferenceGroup

    def __init__(
        self,
        options: Options,
        store: MembershipStore | None = None,
        events: EventStream | None = None,
        *,
        condemned: Mapping[int, str] = {},
    ) -> None:
        """`store` is the one that the setting `membership` names, unless it is given. `condemned`: device -> why it can take no process, until
        `returned`; the engine starts on spare devices then, or with fewer ranks (`min_shards`). Raises `ConfigError` for a model or a cut that is not possible, `RecoveryFailed` when the ranks do not come up."""
        super().__init__(options)
        self.scheduler = Scheduler(
            blocks=options.blocks, block=options.block, rows=options.rows,
            positions=self.shape.positions, snapshot=self.config.snapshot, tails=self.config.tail_every > 0,
        )  # fmt: skip
        self.devices = Devices(options.tp * options.pp, options.devices)
        for device, why in condemned.items():
            self.devices.condemn(device, why)
        self._hearing: Hearing | None = None
        self._monitor: Monitor | None = None
        if self.config.min_shards and options.pp > 1:
            raise ConfigError(
                "an engine with pipeline stages cannot go on with fewer ranks",
                value=self.config.min_shards,
                rule="min_shards is 0 where pp is more than 1",
                remedy="min_shards=0",
            )
        self._begin(store, events)

    def _hire(self) -> None:
        self.crew = Crew(self.options, self._tag)
        self.group = ReferenceGroup(
            self.options, self.shape, self.crew, self.scheduler, self.devices
        )

    def _policy(self) -> Policy:
        return Policy.of(self.config, costs=COSTS)

    def _start(self) -> None:
        if self._hearing is not None:
            self.crew.attend(self._judge, self._hearing.fileno())
        super()._start()
        self.crew.wake_standbys()
        self._tell_monitor()

    # -- requests ------------------------------------------------------------------------------------------------------------

    def _queue(self, name: str, prompt: Sequence[int], sampling: Sampling) -> None:
        self.scheduler.add(Request(name, list(prompt), len(prompt), sampling))

    def _end_requests(self, reason: str) -> list[Output]:
        return [Output(r.id, None, reason) for r in self.scheduler.end_all(reason)]

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.open)

    def step(self) -> list[Output]:
        self.crew.look()
        if self.crew.lost:
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
        done = self._done(say.Done)
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

    # -- faults --------------------------------------------------------------------------------------------------------------

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
        outcome = self.coordinator.recover(self.crew.lost, grow=grow)
        if outcome.state is not State.SERVING:
            return self._not_in_place(outcome)
        self._tell_monitor()
        return []

    def close(self) -> None:
        """Ends every process of the engine. Can be repeated; never raises."""
        if self._hearing is not None:
            self._hearing.close()
            self._hearing = None
            self.crew.attend(lambda: None, -1)
        super().close()
