"""`Adapter`: what is done alike to the ranks of both reference engines in the coordinator's steps (the `GroupAdapter` contract).

It runs on the coordinator's thread while the driver waits. How ranks get what they lack, and when they are whole, is said by an engine's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference.asking import Asking
from dynamo_gpu_ft.engines.reference.crew import Crew
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.shape import Shape
from dynamo_gpu_ft.errors import RecoveryFailed
from dynamo_gpu_ft.recovery.group.base import Deadline, GroupAdapter, MembersLost
from dynamo_gpu_ft.recovery.membership.base import Member, Membership
from dynamo_gpu_ft.recovery.weights.peer import Table
from dynamo_gpu_ft.topology import Device


class Adapter(GroupAdapter):
    """`manifest`: digests of the weights as they were at the engine's start; `song` the canary's result then; `epoch` the committed one;
    `facts` what the last rebuild cost, for the bench."""

    def __init__(self, options: Options, shape: Shape, crew: Crew) -> None:
        self._options, self._shape, self._crew, self._asking = options, shape, crew, Asking(crew)
        self.manifest: dict[Any, Any] = {}
        self.song: say.Sang | None = None
        self.facts: dict[str, Any] = {}
        self.epoch = 0
        self._newest = 0  # also of attempts that failed
        self._tables: dict[int, Table] = {}
        self._fences = 0

    def remember(self, former: Adapter) -> None:
        """After a restart: what was true of the engine's weights and results at its start still has to be."""
        self.manifest, self.song = former.manifest, former.song

    # -- the contract ------------------------------------------------------------------------------------------------------

    def lost(self) -> Mapping[int, str]:
        self._crew.look()
        return self._crew.lost

    def quiesce(self, dead: frozenset[int], deadline: Deadline) -> None:
        crew = self._crew
        ending = [*crew.fresh.values(), *(crew.members.pop(s) for s in dead if s in crew.members)]
        crew.fresh.clear()
        for process in ending:
            if not process.end(deadline.left_s):
                raise TimeoutError(f"process {process.pid} does not end")
        for process in crew.members.values():
            process.send(say.Revoke(epoch=self._newest))
        self._fences += 1
        number = self._fences
        self._asking.ask(
            crew.members, say.Fence(number=number), say.Fenced, deadline, lambda m: m.number == number
        )  # fmt: skip

    def commit(self, membership: Membership, deadline: Deadline) -> None:
        self.epoch = membership.epoch
        if lost := self.lost():
            raise MembersLost(lost)

    def abandon(self, reason: str) -> None:
        """Ends the processes; what becomes of the requests is for the driver, which knows whether everything is started again."""
        self.end()

    # -- for the driver ------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Every process. Never raises."""
        self._crew.end_all()

    @abstractmethod
    def start(self, deadline: Deadline) -> tuple[Member, ...]:
        """Forks the ranks of a new engine and has them hold what is theirs. Raises as a rebuild does."""

    @abstractmethod
    def connect(self, epoch: int, deadline: Deadline) -> None:
        """Communicators of a started engine, and the canary that later ones are compared with."""

    def tables(self) -> tuple[Table, ...]:
        """Where live members' weights lay when they told: for whoever needs the same ones on this machine."""
        return tuple(t for s, t in self._tables.items() if s in self._crew.members)

    # -- for an engine's own -------------------------------------------------------------------------------------------------

    def _canary(self, epoch: int, deadline: Deadline) -> say.Sang:
        """One canary step through all ranks. Raises as `_heard` does."""
        songs = self._asking.ask(
            self._crew.members, say.Canary(epoch=epoch), say.Sang, deadline, lambda m: m.epoch == epoch, epoch
        )  # fmt: skip
        return self._heard(epoch, songs.values())

    def _heard(self, epoch: int, songs: Iterable[say.Sang]) -> say.Sang:
        """What a canary step gave: the same bits from each rank that has logits, and what `_like` asks of them. Raises `RecoveryFailed`."""
        heard = {song for song in songs if song.logits}
        first = next(iter(heard))
        known = self.song or first
        if len({song.logits for song in heard}) > 1 or not self._like(first, known):
            raise RecoveryFailed(
                "the canary step gives another result than when the engine started",
                where=f"epoch {epoch}",
                value=[(song.token, song.logits.hex()) for song in heard],
                rule=f"token {known.token}, logits {known.logits.hex()}",
                remedy="restart the engine; look at the devices of its ranks",
            )
        return first

    @abstractmethod
    def _like(self, song: say.Sang, known: say.Sang) -> bool:
        """Whether a result is what it has to be now, as `known` was the engine's at its start."""

    def _device(self, shard: int) -> Device:
        return Device()

    def _enlisted(self) -> tuple[Member, ...]:
        return tuple(
            Member(shard=shard, rank=rank, pid=p.pid, started=p.started, device=self._device(shard))
            for rank, (shard, p) in enumerate(self._crew.members.items())
        )
