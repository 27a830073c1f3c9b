"""`ReferenceGroup`: how the coordinator's steps are done to this engine's ranks (the `GroupAdapter` contract).

It runs on the coordinator's thread while the driver waits. Survivors are only ever freed, fenced and given new communicators; what a
replacement needs comes from the weight sources and the arena.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference import split
from dynamo_gpu_ft.engines.reference.crew import Crew, Process
from dynamo_gpu_ft.engines.reference.joint import seats
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.scheduler import Scheduler
from dynamo_gpu_ft.engines.reference.shape import Shape
from dynamo_gpu_ft.engines.reference.store import Shelf
from dynamo_gpu_ft.errors import RecoveryFailed
from dynamo_gpu_ft.recovery.group.base import Deadline, MembersLost, StandbyLost
from dynamo_gpu_ft.recovery.group.plan import Kind, Plan
from dynamo_gpu_ft.recovery.membership.base import Member, Membership

#: After a broken communicator: how long to wait for the sign of who broke it.
GRACE_S = 1.0


class ReferenceGroup:
    """`manifest` is shard -> digests of its weights as they were at the engine's start; `song` the canary's result then; `facts` what the
    last rebuild cost, for the bench."""

    def __init__(self, options: Options, shape: Shape, crew: Crew, scheduler: Scheduler) -> None:
        self._options, self._shape, self._crew, self._scheduler = options, shape, crew, scheduler
        self.split = self._whole = split.even(shape, options.tp, options.pp)
        self._shelf = Shelf(options, self.split)
        self.manifest: dict[int, dict[str, bytes]] = {}
        self.facts: dict[str, Any] = {}
        self.epoch = 0
        self._newest = 0  # also of attempts that failed
        self._rebuilt: tuple[int, ...] = ()
        self._owed: dict[
            int, set[int]
        ] = {}  # heads that survivors took over and have not restored yet
        self.song: say.Sang | None = None
        self._fences = 0

    # -- the contract ------------------------------------------------------------------------------------------------------

    def lost(self) -> Mapping[int, str]:
        self._crew.look()
        return {shard: p.why for shard, p in self._crew.members.items() if p.why}

    def standbys(self) -> int:
        self._crew.look()
        return len(self._crew.standbys)

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
        self._ask(
            crew.members,
            say.Fence(number=number),
            say.Fenced,
            deadline,
            lambda m: m.number == number,
        )

    def rebuild(self, plan: Plan, epoch: int, deadline: Deadline) -> tuple[Member, ...]:
        self.facts = {"kind": plan.kind.value, "began": time.monotonic()}
        self._newest = epoch
        cuts = self._cuts(plan)
        replacements = self._replacements(plan)
        self._crew.fresh = dict(replacements)
        if cuts != self.split:
            self._recut(
                cuts, deadline
            )  # first: a survivor lets go of the heads that a replacement takes
        self._load(replacements, cuts, deadline)
        self._note("loaded")
        everyone = {**self._crew.members, **replacements}
        self._join(everyone, replacements, epoch, cuts, deadline)
        self._note("joined")
        self._put_back(replacements, cuts, deadline)
        self._note("restored")
        self.split = cuts
        self._crew.members = dict(sorted(everyone.items()))
        self._crew.fresh.clear()
        self._rebuilt = tuple(sorted(replacements))
        return tuple(
            Member(shard=shard, rank=rank, pid=p.pid, started=p.started)
            for rank, (shard, p) in enumerate(self._crew.members.items())
        )

    def validate(self, membership: Membership, deadline: Deadline) -> None:
        rebuilt = {shard: self._crew.members[shard] for shard in self._rebuilt}
        for shard, weighed in self._ask(rebuilt, say.Weigh(), say.Weighed, deadline).items():
            wanted = self.manifest.get(shard)
            if wanted is not None and self.split == self._whole and weighed.digests != wanted:
                raise RecoveryFailed(
                    "a rebuilt shard has other weights than the engine started with",
                    where=f"shard {shard}",
                    value=[n for n, d in weighed.digests.items() if wanted.get(n) != d][:3],
                    rule="equal digests",
                    remedy="look at the checkpoint and at the memory of this machine",
                )
        self.sing(membership.epoch, deadline)
        self._note("validated")

    def commit(self, membership: Membership, deadline: Deadline) -> None:
        self.epoch = membership.epoch
        self._rebuilt = ()
        self._crew.wake_standbys()
        self._crew.look()
        if lost := {s: p.why for s, p in self._crew.members.items() if p.why}:
            raise MembersLost(lost)

    def abandon(self, reason: str) -> None:
        """Ends the processes; what becomes of the requests is for the driver, which knows whether everything is started again."""
        self._crew.end_all()

    # -- also used at the engine's start -----------------------------------------------------------------------------------

    def start(self, deadline: Deadline) -> tuple[Member, ...]:
        """Forks and loads every shard. Raises as a rebuild does."""
        shards = range(self._options.tp * self._options.pp)
        fresh = {shard: self._crew.fork() for shard in shards}
        self._crew.fresh = dict(fresh)
        self._load(fresh, self._whole, deadline)
        self.split, self._crew.members = self._whole, fresh
        self._crew.fresh.clear()
        return tuple(
            Member(shard=shard, rank=shard, pid=p.pid, started=p.started)
            for shard, p in fresh.items()
        )

    def connect(self, epoch: int, deadline: Deadline) -> None:
        """Communicators and KV of a started engine, and the canary that later ones are compared with."""
        self._newest = epoch
        everyone = self._crew.members
        self._join(everyone, {}, epoch, self.split, deadline)
        self._put_back(everyone, self.split, deadline)
        self.sing(epoch, deadline)
        self.epoch = epoch

    def sing(self, epoch: int, deadline: Deadline) -> None:
        """One canary step: the same bits as at the start while the cuts are the same, else the same token."""
        songs = self._ask(
            self._crew.members,
            say.Canary(epoch=epoch),
            say.Sang,
            deadline,
            lambda m: m.epoch == epoch,
            epoch,
        )
        heard = {song for song in songs.values() if song.logits}
        first = next(iter(heard))
        known = self.song or first
        same = (
            first.logits == known.logits
            if self.split == self._whole
            else first.token == known.token
        )
        if not (len({s.logits for s in heard}) == 1 and same):
            raise RecoveryFailed(
                "the canary step gives another result than when the engine started",
                where=f"epoch {epoch}",
                value=[(s.token, s.logits.hex()) for s in heard],
                rule=f"token {known.token}, logits {known.logits.hex()}",
                remedy="restart the engine; look at the devices of the rebuilt shards",
            )
        if self.song is None:
            self.song = first

    def describe(self, deadline: Deadline, blocks: Sequence[int] = ()) -> dict[int, say.Described]:
        """Addresses and process of every member, and a digest of its KV of `blocks`."""
        order = say.Describe(blocks=tuple(blocks))
        return self._ask(self._crew.members, order, say.Described, deadline)

    # -- the parts of a rebuild --------------------------------------------------------------------------------------------

    def _cuts(self, plan: Plan) -> split.Split:
        missing = sorted(set(range(self._whole.shards)) - set(plan.ranks))
        if not missing:
            return self._whole
        return split.without(self._whole, self._shape, missing)

    def _replacements(self, plan: Plan) -> dict[int, Process]:
        found: dict[int, Process] = {}
        for shard in plan.lost:
            if plan.kind is Kind.SUBSTITUTE:
                self._crew.look()
                if not self._crew.standbys:
                    raise StandbyLost(f"no standby is left for shard {shard}")
                found[shard] = self._crew.standbys.pop(0)
            else:
                try:
                    found[shard] = self._crew.fork()
                except OSError as error:
                    raise StandbyLost(
                        f"no process can be started for shard {shard}: {error}"
                    ) from error
        return found

    def _load(self, fresh: Mapping[int, Process], cuts: split.Split, deadline: Deadline) -> None:
        for shard, process in fresh.items():
            expected = self.manifest.get(shard, {}) if cuts == self._whole else {}
            process.send(
                say.Load(
                    shard=shard, cut=cuts.cut(shard), expected=expected, deadline_s=deadline.left_s
                )
            )
        told = self._answers(fresh, say.Loaded, deadline, fresh)
        for shard, loaded in told.items():
            if cuts == self._whole:
                self.manifest.setdefault(shard, loaded.digests)
            self._shelf.told(shard, loaded)
        self.facts["loads"] = {
            shard: (x.source, x.read, x.needed, x.refused) for shard, x in told.items()
        }

    def _recut(self, cuts: split.Split, deadline: Deadline) -> None:
        """Survivors take their new parts. What KV each has to restore is owed until it was, whatever becomes of this attempt."""
        survivors = self._crew.members
        for (
            shard,
            process,
        ) in survivors.items():  # first everybody lets go, so that everybody can take
            process.send(say.Yield(heads=cuts.cut(shard).heads))
        self._answers(survivors, say.Ready, deadline, {})
        for shard, process in survivors.items():
            process.send(say.Recut(cut=cuts.cut(shard), deadline_s=deadline.left_s))
        for shard, loaded in self._answers(survivors, say.Loaded, deadline, {}).items():
            self._shelf.told(shard, loaded)
            held, wanted = self.split.cut(shard).heads, cuts.cut(shard).heads
            old = self._owed.get(shard, set())
            self._owed[shard] = {
                h for h in range(*wanted) if h in old or not held[0] <= h < held[1]
            }
        self.split = cuts

    def _join(
        self,
        everyone: Mapping[int, Process],
        fresh: Mapping[int, Process],
        epoch: int,
        cuts: split.Split,
        deadline: Deadline,
    ) -> None:
        members = tuple(sorted(everyone))
        ranks = {shard: rank for rank, shard in enumerate(members)}
        tp, pp = self._options.tp, self._options.pp
        for shard, process in everyone.items():
            stage = [s for s in members if s // tp == shard // tp]
            process.send(
                say.Join(
                    epoch=epoch, members=members,
                    places=tuple(say.Place(name=n, rank=r, size=s) for n, r, s in seats(ranks, tp, pp, shard)),
                    vocab=tuple(cuts.cut(s).vocab for s in stage), deadline_s=deadline.left_s,
                )
            )  # fmt: skip
        self._answers(everyone, say.Joined, deadline, fresh, lambda m: m.epoch == epoch, epoch)

    def _put_back(
        self,
        fresh: Mapping[int, Process],
        cuts: split.Split,
        deadline: Deadline,
    ) -> None:
        """KV of what was lost: from the arena as far as it is there, for all requests that run; the rest is computed again."""
        prefixes = [self._scheduler.kept_blocks(r) for r in self._scheduler.running if r.computed]
        lacking = {shard: tuple(range(*cuts.cut(shard).heads)) for shard in fresh}
        owed = {
            s: tuple(sorted(heads)) for s, heads in self._owed.items() if heads and s not in fresh
        }
        lacking |= {shard: heads for shard, heads in owed.items() if shard in self._crew.members}
        good = {p.request: len(p.blocks) for p in prefixes}
        if not lacking or not prefixes:
            self._owed.clear()
            return
        asked = {}
        for shard, heads in lacking.items():
            found = self._shelf.usable(shard, heads, prefixes)
            for prefix in found:
                good[prefix.request] = min(good[prefix.request], len(prefix.blocks))
        everyone = {**self._crew.members, **fresh}
        for shard, heads in lacking.items():
            short = tuple(p.head(good[p.request]) for p in prefixes)
            everyone[shard].send(
                say.Restore(prefixes=short, heads=heads, deadline_s=deadline.left_s)
            )
            asked[shard] = everyone[shard]
        restored = self._answers(asked, say.Restored, deadline, fresh)
        for answer in restored.values():
            for request in good:
                good[request] = min(good[request], answer.blocks.get(request, 0))
        tokens = {p.request: p.head(good[p.request]).tokens(self._options.block) for p in prefixes}
        again = self._scheduler.fell_back(tokens)
        self._owed.clear()
        self.facts |= {
            "kv_bytes": sum(answer.bytes for answer in restored.values()),
            "recomputed_tokens": again,
            "not_restored": sorted({why for answer in restored.values() for why in answer.reasons}),
            "restored_blocks": sum(good.values()),
        }

    # -- asking ------------------------------------------------------------------------------------------------------------

    def _ask(
        self,
        asked: Mapping[int, Process],
        order: Any,
        kind: type,
        deadline: Deadline,
        which: Callable[[Any], bool] = lambda m: True,
        epoch: int = -1,
    ) -> dict[int, Any]:
        for process in asked.values():
            process.send(order)
        return self._answers(asked, kind, deadline, {}, which, epoch)

    def _answers(
        self,
        asked: Mapping[int, Process],
        kind: type,
        deadline: Deadline,
        fresh: Mapping[int, Process],
        which: Callable[[Any], bool] = lambda m: True,
        epoch: int = -1,
    ) -> dict[int, Any]:
        """All replies of `kind`, or the contract's exceptions: `fresh` are replacements, whose loss is no member's."""
        members = self._crew.members
        found = self._crew.collect(
            asked,
            lambda m: isinstance(m, kind) and which(m),
            deadline.at,
            watched=members.values(),
            epoch=epoch,
        )
        if len(found) == len(asked):
            return found
        self._wait_for_a_culprit([*asked.values(), *members.values()], deadline)
        if lost := {s: p.why for s, p in members.items() if p.why and s not in fresh}:
            raise MembersLost(lost)
        if gone := {s: p.why for s, p in fresh.items() if p.why}:
            raise StandbyLost(", ".join(f"shard {s}: {why}" for s, why in gone.items()))
        if deadline.left_s <= 0:
            raise TimeoutError(f"{sorted(set(asked) - set(found))} gave no {kind.__name__} in time")
        raise RuntimeError("a communicator broke and all its members live")

    def _wait_for_a_culprit(self, processes: list[Process], deadline: Deadline) -> None:
        """A broken communicator is noticed by its members before its cause is; the cause shows within a moment, if it is a death."""
        until = min(deadline.at, time.monotonic() + GRACE_S)
        while not any(p.why for p in processes) and time.monotonic() < until:
            self._crew.collect({}, lambda m: False, 0.0)
            time.sleep(0.002)

    def _note(self, name: str) -> None:
        self.facts[name] = time.monotonic()
