"""`ReferenceGroup`: how the coordinator's steps are done to this engine's ranks (the `GroupAdapter` contract).

Survivors are only ever freed, fenced and given new communicators; what a replacement needs comes from the weight sources and the arena.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from dynamo_gpu_ft.engines.reference import messages as say
from dynamo_gpu_ft.engines.reference import split
from dynamo_gpu_ft.engines.reference.adapter import Adapter
from dynamo_gpu_ft.engines.reference.crew import Crew, Process
from dynamo_gpu_ft.engines.reference.devices import Devices
from dynamo_gpu_ft.engines.reference.joint import seats
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.scheduler import Scheduler
from dynamo_gpu_ft.engines.reference.shape import Shape
from dynamo_gpu_ft.engines.reference.store import Shelf
from dynamo_gpu_ft.errors import RecoveryFailed
from dynamo_gpu_ft.recovery.group.base import Deadline, StandbyLost
from dynamo_gpu_ft.recovery.group.plan import Kind, Plan
from dynamo_gpu_ft.recovery.membership.base import Member, Membership
from dynamo_gpu_ft.recovery.weights.peer import Table
from dynamo_gpu_ft.topology import Device


class ReferenceGroup(Adapter):
    """`manifest` is shard -> digests of its weights in the cuts of the whole engine. `peers`: processes of other engines that may hold the same weights; believed only
    against the manifest."""

    manifest: dict[int, dict[str, bytes]]

    def __init__(
        self, options: Options, shape: Shape, crew: Crew, scheduler: Scheduler, devices: Devices
    ) -> None:
        super().__init__(options, shape, crew)
        self._scheduler, self._devices = scheduler, devices
        self.peers: tuple[Table, ...] = ()
        self.split = self._whole = split.even(shape, options.tp, options.pp)
        self._shelf = Shelf(options, self.split)
        #: Digests of the weights of shards that were rebuilt and not validated yet, as their ranks told them.
        self._arrived: dict[int, dict[str, bytes]] = {}
        self._owed: dict[
            int, set[int]
        ] = {}  # heads that survivors took over and have not restored yet
        self._sung_whole = False  # `song` is that of all shards
        self._recutting = False  # an attempt began to, and nobody knows how far it came

    def remember(self, former: Adapter) -> None:
        super().remember(former)
        assert isinstance(former, ReferenceGroup)
        self.peers, self._sung_whole = former.peers, former._sung_whole

    # -- the contract ------------------------------------------------------------------------------------------------------

    def standbys(self) -> int:
        """None of them is of use to a shard that has no device."""
        self._crew.look()
        living = {shard for shard, p in self._crew.members.items() if not p.why}
        homeless = self._devices.homeless(set(range(self._whole.shards)) - living)
        return len(self._crew.standbys) if len(homeless) <= self._devices.spares else 0

    def rebuild(self, plan: Plan, epoch: int, deadline: Deadline) -> tuple[Member, ...]:
        self.facts = {"kind": plan.kind.value, "began": time.monotonic(), "copy_s": 0.0}
        self._newest = epoch
        cuts = self._cuts(plan.ranks)
        replacements = self._replacements(plan)
        self._crew.fresh = dict(replacements)
        recut = cuts != self.split or self._recutting
        if recut:
            self._recut(cuts, deadline)
        self._load(replacements, cuts, deadline, recut=recut)
        self._note("loaded")
        everyone = {**self._crew.members, **replacements}
        self._join(everyone, replacements, epoch, cuts, deadline)
        self._note("joined")
        self._put_back(replacements, cuts, deadline)
        self._note("restored")
        self.split = cuts
        self._crew.members = dict(sorted(everyone.items()))
        self._crew.fresh.clear()
        return self._enlisted()

    def validate(self, membership: Membership, deadline: Deadline) -> None:
        """Digests first: each rank made them where the weights lie now, when they had arrived, so nothing is read twice."""
        for shard, digests in self._arrived.items():
            wanted = self.manifest.get(shard)
            if wanted is not None and self.split == self._whole and digests != wanted:
                raise RecoveryFailed(
                    "a rebuilt shard has other weights than the engine started with",
                    where=f"shard {shard}",
                    value=[n for n in wanted | digests if wanted.get(n) != digests.get(n)][:3],
                    rule="equal digests",
                    remedy="look at the checkpoint and at the memory of this machine",
                )
        self.sing(membership.epoch, deadline)
        self._note("validated")

    def commit(self, membership: Membership, deadline: Deadline) -> None:
        self._arrived.clear()
        super().commit(membership, deadline)

    # -- also used at the engine's start -----------------------------------------------------------------------------------

    def start(self, deadline: Deadline) -> tuple[Member, ...]:
        """Forks and loads every shard that has a usable device: all of them, or as many as the engine may go on with (`min_shards`).
        Raises `RecoveryFailed` when there are fewer, and as a rebuild does."""
        every = range(self._whole.shards)
        housed = self._devices.house(every)
        fewest = self._options.config().min_shards or len(every)
        if len(housed) < fewest:
            raise RecoveryFailed(
                "too few devices can be used",
                where=self._options.name,
                value="; ".join(
                    f"shard {s}: {w}" for s, w in self._devices.homeless(every).items()
                ),
                rule=f"devices for {fewest} of {len(every)} shards",
                remedy="repair the devices, or allow fewer ranks (DYN_GPU_FT_MIN_SHARDS)",
            )
        self.split = self._cuts(housed)
        fresh = {shard: self._crew.fork() for shard in housed}
        self._crew.fresh = dict(fresh)
        self._load(fresh, self.split, deadline, keep=not self.manifest)
        self._crew.members = fresh
        self._crew.fresh.clear()
        return self._enlisted()

    def connect(self, epoch: int, deadline: Deadline) -> None:
        """Communicators and KV of a started engine, and the canary that later ones are compared with."""
        self._newest = epoch
        everyone = self._crew.members
        self._join(everyone, {}, epoch, self.split, deadline)
        self._put_back(everyone, self.split, deadline)
        self.sing(epoch, deadline)
        self.epoch = epoch

    def sing(self, epoch: int, deadline: Deadline) -> None:
        """One canary step: the same bits as when all shards sang first, if all of them do, else the same token."""
        song, whole = self._canary(epoch, deadline), self.split == self._whole
        if self.song is None or whole:
            self.song, self._sung_whole = song, whole

    def _like(self, song: say.Sang, known: say.Sang) -> bool:
        if self._sung_whole and self.split == self._whole:
            return song.logits == known.logits
        return song.token == known.token

    def describe(self, deadline: Deadline, blocks: Sequence[int] = ()) -> dict[int, say.Described]:
        """Addresses and process of every member, and a digest of its KV of `blocks`."""
        order = say.Describe(blocks=tuple(blocks))
        return self._asking.ask(self._crew.members, order, say.Described, deadline)

    # -- the parts of a rebuild --------------------------------------------------------------------------------------------

    def _device(self, shard: int) -> Device:
        return Device(index=self._devices.of(shard))

    def _cuts(self, shards: Sequence[int]) -> split.Split:
        missing = sorted(set(range(self._whole.shards)) - set(shards))
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

    def _load(
        self,
        fresh: Mapping[int, Process],
        cuts: split.Split,
        deadline: Deadline,
        *,
        recut: bool = False,
        keep: bool = False,
    ) -> None:
        """With `recut`, survivors are at their own part of it at the same time. With `keep`, each writes the neighbour file of its shard."""
        if homeless := set(fresh) - set(self._devices.house(fresh)):
            raise StandbyLost(f"no device for {sorted(homeless)}: {self._devices.condemned}")
        for shard, process in fresh.items():
            expected = self._expected(shard, cuts)
            process.since = time.monotonic()
            process.send(
                say.Load(
                    shard=shard, device=self._devices.of(shard), cut=cuts.cut(shard), expected=expected,
                    keep=keep, peers=self.peers if expected else (),
                    deadline_s=deadline.left_s,
                )
            )  # fmt: skip
        survivors = self._was_recut(cuts, deadline) if recut else {}
        told = self._asking.answers(fresh, say.Loaded, deadline, fresh)
        for shard, loaded in told.items():
            self._has(shard, loaded, cuts)
        self._copied([*told.values(), *survivors.values()])
        self.facts["load_s"] = max((x.seconds for x in told.values()), default=0.0)
        self.facts["loads"] = {
            shard: (x.source, x.read, x.needed, x.refused) for shard, x in told.items()
        }

    def _recut(self, cuts: split.Split, deadline: Deadline) -> None:
        """Survivors take their new parts. What KV each has to restore is owed until it was, whatever becomes of this attempt."""
        survivors = self._crew.members
        if self._recutting:  # what a survivor held before may be gone with the former attempt
            self._owed = {shard: set(range(*cuts.cut(shard).heads)) for shard in survivors}
        self._recutting = True
        for (
            shard,
            process,
        ) in survivors.items():  # first everybody lets go, so that everybody can take
            process.send(say.Yield(heads=cuts.cut(shard).heads))
        self._asking.answers(survivors, say.Ready, deadline, {})
        for shard, process in survivors.items():
            expected = self._expected(shard, cuts)
            process.send(
                say.Recut(cut=cuts.cut(shard), expected=expected, deadline_s=deadline.left_s)
            )

    def _was_recut(self, cuts: split.Split, deadline: Deadline) -> dict[int, say.Loaded]:
        told = self._asking.answers(self._crew.members, say.Loaded, deadline, {})
        for shard, loaded in told.items():
            self._has(shard, loaded, cuts)
            held, wanted = self.split.cut(shard).heads, cuts.cut(shard).heads
            old = self._owed.get(shard, set())
            self._owed[shard] = {
                h for h in range(*wanted) if h in old or not held[0] <= h < held[1]
            }
        self.split, self._recutting = cuts, False
        return told

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
        self._asking.answers(
            everyone, say.Joined, deadline, fresh, lambda m: m.epoch == epoch, epoch
        )

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
        restored = self._asking.answers(asked, say.Restored, deadline, fresh)
        self._copied(restored.values())
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

    def _expected(self, shard: int, cuts: split.Split) -> dict[str, bytes]:
        """Digests are known of the cuts of the whole engine, once they were held."""
        return self.manifest.get(shard, {}) if cuts == self._whole else {}

    def _has(self, shard: int, loaded: say.Loaded, cuts: split.Split) -> None:
        self._arrived[shard] = loaded.digests
        if cuts == self._whole:
            self.manifest.setdefault(shard, loaded.digests)
        self._shelf.told(shard, loaded)
        if loaded.table is not None:
            self._tables[shard] = loaded.table

    def _copied(self, told: Iterable[say.Loaded | say.Restored]) -> None:
        """They moved their bytes at the same time."""
        seconds = self.facts.get("copy_s", 0.0)
        self.facts["copy_s"] = seconds + max((each.seconds for each in told), default=0.0)

    def _note(self, name: str) -> None:
        self.facts[name] = time.monotonic()
