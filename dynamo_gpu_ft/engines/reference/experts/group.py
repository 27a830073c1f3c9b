"""`ExpertGroup`: how the coordinator's steps are done to expert-parallel ranks (the `GroupAdapter` contract).

A loss moves no weights: survivors are told at once whose slots nothing may be sent to, then get a communicator without them and go on. A
rank that comes back loads all but experts beside the running engine and takes its seat here with empty slots.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference.adapter import Adapter
from dynamo_gpu_ft.engines.reference.crew import Crew, Process
from dynamo_gpu_ft.engines.reference.experts import messages as tell
from dynamo_gpu_ft.engines.reference.experts.routes import Map
from dynamo_gpu_ft.engines.reference.experts.slots import expert_needs
from dynamo_gpu_ft.engines.reference.experts.steps import Step, hurt, orders
from dynamo_gpu_ft.engines.reference.experts.traffic import ShardPlan, Traffic
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.shape import Shape
from dynamo_gpu_ft.errors import RecoveryFailed
from dynamo_gpu_ft.recovery.group.base import Deadline, StandbyLost
from dynamo_gpu_ft.recovery.group.plan import Plan
from dynamo_gpu_ft.recovery.membership.base import Member, Membership
from dynamo_gpu_ft.topology import Device


class ExpertGroup(Adapter):
    """`map` is what may be routed to now, `homes` what each rank held at the start; `manifest`: digest of every tensor of the model;
    `carried`: what requests computed in the step that validated the last recovery; `not_protected`: shard -> why its KV is not stored, "" where it
    is; `facts`: "restored_tokens", "kv_bytes" of the lost ranks' requests, "not_restored" why not more; "entries", shard -> entry of its failover
    tables that each survivor went on with."""

    manifest: dict[str, bytes]

    def __init__(
        self, options: Options, shape: Shape, crew: Crew, homes: Map, traffic: Traffic, *, scrub: int
    ) -> None:  # fmt: skip
        super().__init__(options, shape, crew)
        self._traffic, self._scrub = traffic, scrub
        self.carried: Step | None = None
        self.homes = homes
        self.map = Map(homes.experts, homes.slots, homes.table)
        self.returning: dict[int, Process] = {}
        self.ready: dict[int, tell.Held] = {}
        self.growing = False
        self._audits = self._songs = self._regains = 0
        self.not_protected: dict[int, str] = {}
        self._damaged: list[tuple[int, int, int]] = []

    # -- the contract ------------------------------------------------------------------------------------------------------

    def standbys(self) -> int:
        """A rank that is ready to come back takes its own shard, when it is its turn."""
        return len(self.ready) if self.growing else 0

    def quiesce(self, dead: frozenset[int], deadline: Deadline) -> None:
        """Before anything is planned, survivors send nothing to the dead any more: each by one write, if its tables foresaw the loss."""
        self.carried = None
        for shard in dead:
            self.map.drop(shard)
        for shard, process in self._crew.members.items():
            if shard not in dead:
                process.send(tell.Lose(epoch=self._newest, dead=tuple(sorted(dead))))
        super().quiesce(dead, deadline)

    def rebuild(self, plan: Plan, epoch: int, deadline: Deadline) -> tuple[Member, ...]:
        began = time.monotonic()
        self._newest = epoch
        fresh = self._coming(plan.lost)
        # What survivors committed or found damaged in the step or commit that was broken off, nobody has heard.
        entries = {shard: each.entry for shard, each in self._audit(deadline).items()}
        for shard in fresh:
            self._admit(shard, self.ready[shard])
        everyone = dict(sorted({**self._crew.members, **fresh}.items()))
        self._join(everyone, fresh, epoch, deadline)
        for shard in fresh:
            del self.ready[shard]
        self._crew.members = everyone
        self._crew.fresh.clear()
        self.facts = {"entries": entries, **self._regain(deadline)}
        self.facts["rebuild_s"] = time.monotonic() - began
        return self._enlisted()

    def validate(self, membership: Membership, deadline: Deadline) -> None:
        self.sing(membership.epoch, deadline, ride=True)

    def end(self) -> None:
        """Every process. Never raises."""
        for process in self.returning.values():
            process.end(1.0)
        self.returning.clear()
        self.ready.clear()
        super().end()

    # -- starting and coming back --------------------------------------------------------------------------------------------

    def start(self, deadline: Deadline) -> tuple[Member, ...]:
        """Forks every rank and has it hold its experts. All copies of a tensor have to be equal: that is the manifest."""
        fresh = {shard: self._crew.fork() for shard in range(self._options.ep)}
        self._crew.fresh = dict(fresh)
        for shard, process in fresh.items():
            self._send_hold(
                shard, process, deadline.left_s, fills=self.fills(shard), keep=not self.manifest
            )
        told = self._asking.answers(fresh, tell.Held, deadline, fresh)
        for shard, held in told.items():
            self._check(shard, held)
            self._admit(shard, held)
        self._crew.members, self._crew.fresh = fresh, {}
        return self._enlisted()

    def connect(self, epoch: int, deadline: Deadline) -> None:
        self._newest = self.epoch = epoch
        self._join(self._crew.members, {}, epoch, deadline)
        self.sing(epoch, deadline)

    def bring_back(self, shard: int, deadline_s: float) -> None:
        """A new process for a missing shard begins to load all but experts; nobody waits for it. Raises `OSError`."""
        process = self._crew.fork()
        self.returning[shard] = process
        self._send_hold(shard, process, deadline_s)

    def look_at_returning(self) -> None:
        """Which of them are ready, and which are gone. Never blocks."""
        for shard, process in list(self.returning.items()):
            process.look()
            held = next((m for m in process.inbox if isinstance(m, tell.Held)), None)
            if process.why or process.stopped:
                process.end(1.0)
                self.ready.pop(shard, None)
                del self.returning[shard]
            elif held is not None:
                self.ready[shard] = held

    def _send_hold(
        self, shard: int, process: Process, limit_s: float, *, fills: Sequence[tell.Fill] = (), keep: bool = False
    ) -> None:  # fmt: skip
        process.since = time.monotonic()
        process.send(
            tell.Hold(
                shard=shard, device=self._number(shard), fills=tuple(fills), keep=keep,
                expected={n: d for n, d in self.manifest.items() if ".experts." not in n},
                peers=self.tables(), deadline_s=limit_s,
            )
        )  # fmt: skip

    def fills(self, shard: int) -> tuple[tell.Fill, ...]:
        """What this rank's home slots hold."""
        return tuple(
            self.fill(layer, slot, expert)
            for layer in range(self._shape.layers)
            for slot, expert in enumerate(self.homes.row_of(shard, layer))
            if expert >= 0
        )

    def fill(self, layer: int, slot: int, expert: int) -> tell.Fill:
        names = [str(need) for need in expert_needs(self._shape, layer, expert)]
        digests = {name: self.manifest[name] for name in names if name in self.manifest}
        return tell.Fill(layer=layer, slot=slot, expert=expert, digests=digests)

    def _check(self, shard: int, held: tell.Held) -> None:
        for name, digest in held.digests.items():
            if self.manifest.setdefault(name, digest) != digest:
                raise RecoveryFailed(
                    "two ranks hold different bytes of one tensor",
                    where=f"shard {shard}, {name}",
                    value=digest.hex(),
                    rule=f"digest {self.manifest[name].hex()}",
                    remedy="look at the checkpoint and at the memory of this machine",
                )

    def _admit(self, shard: int, held: tell.Held) -> None:
        self._tagged(shard, held.routable)
        if held.table is not None:
            self._tables[shard] = held.table
        self.not_protected[shard] = held.not_protected

    def _tagged(self, shard: int, routable: bytes) -> None:
        """The slots that its store says are routable, and no others."""
        count, slots = len(routable) // 4, self._options.slots
        flat = struct.unpack(f"<{count}i", routable)
        for layer, row in enumerate(self.map.table):
            row[shard * slots : (shard + 1) * slots] = flat[layer * slots : (layer + 1) * slots]

    def _audit(self, deadline: Deadline, *, digest: bool = False) -> dict[int, tell.Audited]:
        """Asks all members what their stores say is routable, with `digest` once every slot was digested, and takes it into the map."""
        self._audits += 1
        number, before = self._audits, Map(self.map.experts, self.map.slots, self.map.table)
        told = self._asking.ask(
            self._crew.members, tell.Audit(number=number, digest=digest), tell.Audited, deadline, lambda m: m.number == number
        )  # fmt: skip
        for shard, answer in told.items():
            self._tagged(shard, answer.routable)
        self._damaged += [
            (physical // self.map.slots, layer, physical % self.map.slots)
            for layer, (old, new) in enumerate(zip(before.table, self.map.table, strict=True))
            for physical, expert in enumerate(new)
            if expert < 0 <= old[physical]
        ]
        return told

    def take_damaged(self) -> list[tuple[int, int, int]]:
        """(shard, layer, slot) that audits found not to be routable any more, once each."""
        found, self._damaged = self._damaged, []
        return found

    def _number(self, shard: int) -> int:
        """Of the device that the shard is on, for ever: without one of its own, it shares."""
        return shard % (self._options.devices or self._options.ep)

    def _device(self, shard: int) -> Device:
        return Device(index=self._number(shard))

    def _coming(self, shards: Sequence[int]) -> dict[int, Process]:
        if lacking := [s for s in shards if s not in self.ready or s not in self.returning]:
            raise StandbyLost(f"shards {lacking} are not ready to come back")
        found = {shard: self.returning.pop(shard) for shard in shards}
        self._crew.fresh = dict(found)
        return found

    def _regain(self, deadline: Deadline) -> dict[str, Any]:
        """Requests of missing ranks go to members, with as much of their KV as is stored and whole; what is not restored when this is broken
        off is computed again. One lost rank's are loaded by one member after the other, who writes in its name meanwhile."""
        members = self._crew.members
        moved = self._traffic.move(set(range(self._options.ep)) - set(members), members)
        size, tokens, reasons = 0, 0, set[str]()
        for source, target in sorted({(each.source, each.target) for each in moved}):
            some = [each for each in moved if (each.source, each.target) == (source, target)]
            restored = self._loaded(source, target, [each.prefixes for each in some], deadline)
            for each in some:
                self._traffic.regained(each, restored.found.get(each.request.id))
                tokens += each.request.computed
            size += restored.bytes
            reasons |= set(restored.reasons)
        return {"kv_bytes": size, "restored_tokens": tokens, "not_restored": sorted(reasons)}

    def _loaded(
        self, source: int, target: int, wanted: Sequence[tuple[say.Prefix, ...]], deadline: Deadline
    ) -> tell.Regained:
        self._regains += 1
        number = self._regains
        if source in self.returning:  # it writes in its name by now
            return tell.Regained(number=number, reasons=("its rank is on its way back",))
        order = tell.Regain(
            number=number, shard=source, wanted=tuple(wanted), deadline_s=deadline.left_s / 2
        )
        told: dict[int, tell.Regained] = self._asking.ask(
            {target: self._crew.members[target]}, order, tell.Regained, deadline, lambda m: m.number == number
        )  # fmt: skip
        return told[target]

    # -- together ------------------------------------------------------------------------------------------------------------

    def _join(
        self, everyone: Mapping[int, Process], fresh: Mapping[int, Process], epoch: int, deadline: Deadline
    ) -> None:  # fmt: skip
        members = tuple(sorted(everyone))
        routes = tell.Routes(epoch=epoch, placement=self.map.placement)
        for rank, shard in enumerate(members):
            seat = say.Place(name="ep-0", rank=rank, size=len(members))
            places = (seat,) if len(members) > 1 else ()
            everyone[shard].send(routes)
            everyone[shard].send(
                say.Join(epoch=epoch, members=members, places=places, vocab=(), deadline_s=deadline.left_s)
            )  # fmt: skip
        self._asking.answers(
            everyone, say.Joined, deadline, fresh, lambda m: m.epoch == epoch, epoch
        )

    def send_routes(self) -> None:
        routes = tell.Routes(epoch=self._newest, placement=self.map.placement)
        for process in self._crew.members.values():
            process.send(routes)

    def sing(self, epoch: int, deadline: Deadline, *, ride: bool = False) -> None:
        """One canary step: the same bits from all ranks, and, while every expert is covered, the same as at the start. With `ride` the requests'
        next rows are in it, which costs nobody a step; its tokens are `carried`, and worth nothing until the canary was heard.

        If the bits are not the same, every slot is digested; where that finds damage, the step is done again without the damaged slots."""
        while self.map.runnable:
            plans = self._traffic.plan(self._crew.members, canary=True) if ride else {}
            mask = self.map.uncovered()
            try:
                answers = self._stepped(epoch, plans, deadline)
                song = self._heard(epoch, [a.sang for a in answers.values() if a.sang])
            except RecoveryFailed:
                before = self.map.placement
                self._audit(deadline, digest=True)
                if self.map.placement == before:
                    raise
                self.send_routes()
                continue
            if self.song is None and not mask:
                self.song = song
            self.carried = Step(plans, answers, mask) if plans else None
            return

    def _stepped(
        self, epoch: int, plans: Mapping[int, ShardPlan], deadline: Deadline
    ) -> dict[int, tell.Stepped]:
        self._songs += 1
        number, members = self._songs, self._crew.members
        sent = orders(
            members, plans, epoch=epoch, number=number, tile=self._options.tile, scrub=self._scrub, canary=True
        )  # fmt: skip
        for shard, order in sent.items():
            members[shard].send(order)
        answers: dict[int, tell.Stepped] = self._asking.answers(
            members, tell.Stepped, deadline, {}, lambda m: (m.epoch, m.number) == (epoch, number), epoch
        )  # fmt: skip
        if found := hurt(answers):
            raise RecoveryFailed(
                "slots that the canary step asked are damaged", value=sorted(found.items())
            )
        return answers

    def _like(self, song: say.Sang, known: say.Sang) -> bool:
        return bool(self.map.uncovered()) or song.logits == known.logits
