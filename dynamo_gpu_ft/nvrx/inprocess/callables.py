"""The five callables that NVRx's wrapper takes, made for one process: each is a subclass of NVRx's own class for its place.

NVRx is imported when they are made. What they decide is elsewhere: seats in `shards`, limits in `recovery.plan`, verdicts in the health
room.
"""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import NvrxError
from dynamo_gpu_ft.health.incidents import Incident, Unusable
from dynamo_gpu_ft.nvrx.inprocess.communicators import (
    Communicators,
    abort_nccl,
    destroy_default_group,
)
from dynamo_gpu_ft.nvrx.inprocess.kept import Kept
from dynamo_gpu_ft.nvrx.inprocess.shards import Seating
from dynamo_gpu_ft.nvrx.look import PACKAGE
from dynamo_gpu_ft.recovery.plan import GiveUp, after_death

Incidents = Callable[[], Sequence[Incident]]


@dataclass
class Process:
    """What the callables of one process share with each other and with the engine's function.

    seating    of the current turn;  shard: ours, None for a spare;  turn: its number, 0 first;  losses: when turns after the first began
    incidents  open incidents of this process's health monitor (`Monitor.open`), if it has one
    on_lost    called on the main thread after a loss, before the next turn: lets go of what belonged to the lost communicator"""

    shards: int
    config: Config
    communicators: Communicators = field(default_factory=Communicators)
    kept: Kept = field(default_factory=Kept)
    incidents: Incidents | None = None
    on_lost: Callable[[], None] | None = None
    seating: Seating | None = None
    shard: int | None = None
    turn: int = 0
    losses: list[float] = field(default_factory=list)
    held: int = -1  # a descriptor that says that this process lives

    @property
    def rank(self) -> int:
        """Our comm rank of this turn; the shard itself, unless shards are lost."""
        if self.seating is None or self.shard is None:
            raise NvrxError(
                "this process has no shard now",
                rule="only an active rank has one, inside the wrapped function",
            )
        return self.seating.holders.index(self.shard)


def too_few(seating: Seating, config: Config) -> str:
    """Why the engine cannot go on with the shards that are held; empty if it can. `min_shards` 0: never with fewer than all."""
    least = config.min_shards or seating.shards
    if seating.active >= min(least, seating.shards):
        return ""
    return (
        f"shards {list(seating.lost)} are lost and no spare is left: {seating.active} of {seating.shards}, "
        f"min_shards = {config.min_shards}"
    )


def unfit(incidents: Sequence[Incident], shard: int | None) -> str:
    """Why this process must not go on; empty if it may. Any verdict about our shard's context, GPU or node counts."""
    for incident in incidents:
        unusable = incident.verdict.unusable
        ours = unusable is Unusable.NODE or (shard is not None and shard in incident.shards)
        grave = unusable in (Unusable.CONTEXT, Unusable.GPU, Unusable.NODE)
        if ours and grave and not incident.cleared:
            return f"{incident.name}: {incident.verdict.reason}"
    return ""


class Callables:
    """The five, as plain methods: state in, state out. `modes` and `give_up` are NVRx's `Mode` and its exception for "end this process"."""

    def __init__(self, process: Process, modes: Any, give_up: type[BaseException]) -> None:
        self._process, self._modes, self._give_up = process, modes, give_up

    def abort(self, state: Any) -> Any:
        """Frees the main thread from every communicator. On NVRx's monitor thread; the groups are ended later, by the main one."""
        self._process.communicators.revoke()
        abort_nccl()
        return state

    def finalize(self, state: Any) -> Any:
        """Ends what is left of the groups; weights and everything else that is kept stay where they are."""
        self._process.communicators.revoke()
        destroy_default_group()
        if self._process.on_lost is not None:
            self._process.on_lost()
        return state

    def health_check(self, state: Any) -> Any:
        """Ends a process whose context, GPU or node a verdict calls unusable. Needs no NVML: it asks what is known already."""
        process = self._process
        why = unfit(process.incidents() if process.incidents else (), process.shard)
        if why:
            raise NvrxError("this rank must not go on", where=f"shard {process.shard}", value=why)
        return state

    def initialize(self, state: Any) -> Any:
        """Counts losses against max_restarts in restart_window_s, and refuses to go on with too few shards."""
        process, now = self._process, time.monotonic()
        process.turn = state.iteration
        if state.iteration > 0:
            process.losses = [*process.losses, now][-1000:]
            plan = after_death(process.losses, now=now, recovery_began=now, config=process.config)
            if isinstance(plan, GiveUp):
                raise self._give_up(plan.reason)
        assert process.seating is not None
        if why := too_few(process.seating, process.config):
            raise self._give_up(why)
        if process.shard is not None:
            process.kept.keep_only(process.shard)
        return state

    def rank_assignment(self, ctx: Any) -> Any:
        """Survivors keep their shards, spares take the lost ones. The same on every rank, from what all of them know."""
        process, state = self._process, ctx.state
        before = process.seating or Seating.first(process.shards, state.world_size)
        process.seating, numbers = before.without(frozenset(ctx.terminated_ranks))
        if state.rank not in numbers:
            raise NvrxError("this rank was terminated by the others", value=state.rank)
        rank = numbers[state.rank]
        process.shard = process.seating.holders[rank]
        active = process.shard is not None
        ctx.state = dataclasses.replace(
            state,
            rank=rank,
            world_size=len(process.seating.holders),
            mode=self._modes.ACTIVE if active else self._modes.INACTIVE,
            active_rank=rank if active else None,
            active_world_size=process.seating.active,
        )
        ctx.terminated_ranks = set()
        return ctx


def make(process: Process) -> dict[str, Any]:
    """Wrapper's argument -> an instance of NVRx's class for it. Imports NVRx; raises `NvrxError` naming a class that it does not have."""
    own = Callables(process, _base("state", "Mode"), _base("exception", "RestartAbort"))
    return {
        name: _instance(_base(name, kind), getattr(own, name))
        for name, kind in (
            ("abort", "Abort"),
            ("initialize", "Initialize"),
            ("finalize", "Finalize"),
            ("health_check", "HealthCheck"),
            ("rank_assignment", "RankAssignment"),
        )
    }


def _instance(base: Any, function: Callable[[Any], Any]) -> Any:
    """NVRx wants subclasses of its own, which do not exist before it is imported."""
    made = type(f"GpuFt{base.__name__}", (base,), {"__call__": lambda self, given: function(given)})
    return made()


def _base(module: str, name: str) -> Any:
    where = f"{PACKAGE}.inprocess.{module}"
    found = getattr(importlib.import_module(where), name, None)
    if found is None:
        raise NvrxError(
            "nvidia-resiliency-ext does not offer what is needed",
            where=where,
            value=name,
            remedy="pip install nvidia-resiliency-ext==0.4.1",
        )
    return found
