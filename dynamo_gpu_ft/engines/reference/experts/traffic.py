"""Which request lives on which rank: one scheduler for each, moves when a rank is lost, and the history that an oracle can replay.

Decisions only, no processes. A request that moves keeps its tokens and loses its KV.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dynamo_gpu_ft.engines.reference.driving import Output
from dynamo_gpu_ft.engines.reference.messages import Prefix
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling
from dynamo_gpu_ft.engines.reference.scheduler import Plan, Request, Scheduler
from dynamo_gpu_ft.engines.reference.tiles import Piece

#: (layer, expert) that could not be routed to.
Mask = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Computed:
    """A run of a request's tokens that was computed under one mask; `drew` a token behind it, or not."""

    start: int
    count: int
    mask: Mask
    drew: bool


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What one rank computes; `sealed` will be whole behind it, `due` is so by the steps before and is to be stored."""

    pieces: tuple[Piece, ...] = ()
    sealed: tuple[Prefix, ...] = ()
    gone: tuple[str, ...] = ()
    due: tuple[Prefix, ...] = ()

    @property
    def rows(self) -> int:
        return sum(len(piece.tokens) for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Moved:
    """A request of a lost rank is `target`'s now, where one of `prefixes` is to be loaded, the best first, which the lost rank `source` stored."""

    source: int
    target: int
    request: Request
    life: int
    prefixes: tuple[Prefix, ...]


def rows_of_a_step(
    ranks: Iterable[tuple[int, int]], tile: int, *, canary: bool = False
) -> int | None:
    """Most rows that a rank may compute in the next step, or None for as many as it likes; of each rank: (open requests, those that decode).

    All ranks compute the same number of tiles, and who decodes gets a token only behind the last of them. So there are no more tiles than
    those who decode need, and a row for who does not: a prompt that is prefilled beside them takes more steps, but no more tiles. The
    `canary` takes a row of each rank, and is not waited for either."""
    ranks, apart = list(ranks), int(canary)
    if not canary and not any(decoding for _, decoding in ranks):
        return None
    wanted = (decoding + (requests > decoding) + apart for requests, decoding in ranks)
    return tile * max(-(-rows // tile) for rows in wanted) - apart


class Kept(NamedTuple):
    """What of a request is stored, by which shard, in which life of it: the newest that was asked for, which the rank may not have come to, and
    what was before that."""

    shard: int
    life: int
    prefixes: tuple[Prefix, ...]


class Traffic:
    """`history`: request -> what was computed of it, in order; kept until it is taken."""

    def __init__(self, options: Options, positions: int) -> None:
        self._tile, config = options.tile, options.config()
        self._schedulers = {
            shard: Scheduler(
                blocks=options.blocks, block=options.block, rows=options.rows, positions=positions,
                snapshot=config.snapshot, tails=config.tail_every > 0, apart=True,
            )
            for shard in range(options.ep)
        }  # fmt: skip
        self._due: dict[
            int, list[tuple[int, Prefix]]
        ] = {}  # of each shard, with the request's life
        self._kept: dict[str, Kept] = {}
        self._moving: list[Moved] = []  # and nobody has said yet that anything is loaded
        self.history: dict[str, list[Computed]] = {}

    @property
    def busy(self) -> bool:
        return any(each.open for each in self._schedulers.values())

    def open(self, shard: int) -> list[Request]:
        return self._schedulers[shard].open

    def running(self) -> list[Request]:
        return [r for each in self._schedulers.values() for r in each.running]

    def add(
        self, name: str, prompt: Sequence[int], sampling: Sampling, shards: Iterable[int]
    ) -> None:
        """Raises `GpuFtError` for one that could never be run."""
        request = Request(name, list(prompt), len(prompt), sampling)
        self._schedulers[self._emptiest(shards)].add(request)
        self.history[name] = []

    def _emptiest(self, shards: Iterable[int]) -> int:
        return min(shards, key=lambda shard: (len(self._schedulers[shard].open), shard))

    def plan(self, shards: Iterable[int], *, canary: bool = False) -> dict[int, ShardPlan]:
        """Of those ranks that have anything to compute; `canary`: beside that. Changes no request until `apply`."""
        found, chosen = {}, {shard: self._schedulers[shard] for shard in shards}
        counts = [(len(s.open), s.decoding) for s in chosen.values()]
        room = rows_of_a_step(counts, self._tile, canary=canary)
        for shard, scheduler in chosen.items():
            plan = scheduler.plan(room)
            if plan is not None:
                due = self._stored(shard, {request.id: request for request in scheduler.running})
                found[shard] = ShardPlan(plan.pieces, plan.sealed, plan.gone, due)
        return found

    def _stored(self, shard: int, running: Mapping[str, Request]) -> tuple[Prefix, ...]:
        """What that rank is to store now."""
        lives = {name: request.lives for name, request in running.items()}
        due = tuple(p for life, p in self._due.get(shard, ()) if lives.get(p.request) == life)
        for name, last in {prefix.request: prefix for prefix in due}.items():
            newest = self._schedulers[shard].stored(running[name], last)
            kept = self._kept.get(name)
            known = kept.prefixes if kept and kept[:2] == (shard, lives[name]) else ()
            if newest not in known:
                self._kept[name] = Kept(shard, lives[name], (newest, *known[:1]))
        return due

    def apply(
        self, plans: Mapping[int, ShardPlan], drawn: Mapping[str, int], mask: Mask, gaps: Mapping[str, int] = {}
    ) -> list[Output]:  # fmt: skip
        """The step was computed, and counts. `gaps`: request -> first block of it that could not be stored."""
        for moved in self._moving:
            self._kept.pop(moved.request.id, None)
        self._moving.clear()
        outputs = []
        for shard, plan in plans.items():
            own = Plan(plan.pieces, plan.sealed, plan.gone)
            over = {r.id: r for r in self._schedulers[shard].apply(own, drawn, gaps)}
            running = {request.id: request for request in self._schedulers[shard].running}
            newest = [(running.get(p.request), p) for p in plan.sealed]
            self._due[shard] = [(request.lives, p) for request, p in newest if request]
            for name in over:
                self._kept.pop(name, None)
            for piece in plan.pieces:
                drew = piece.sampling is not None
                done = Computed(piece.start, len(piece.tokens), mask, drew)
                self.history[piece.request].append(done)
                if drew:
                    name = piece.request
                    ended = over[name].finished if name in over else ""
                    outputs.append(Output(name, drawn[name], ended))
        return outputs

    def move(self, gone: Collection[int], shards: Collection[int]) -> list[Moved]:
        """Open requests of `gone` ranks go to others, to be computed from their first token again but for what is restored: returns what can
        be, until the next step; `regained` is to be told of it. What a rank stored that lives (again) is its own."""
        found = [m for m in self._moving if m.target in shards and m.request.lives == m.life]
        for shard in gone:
            self._due.pop(shard, None)
            for request in self._schedulers[shard].end_all(""):
                target = self._emptiest(shards)
                kept = self._kept.pop(request.id, None)
                there = kept and kept.life == request.lives and kept.shard not in shards
                prefixes = kept.prefixes if kept and there else ()
                prefixes = self._schedulers[target].readmit(request, prefixes)
                if kept and prefixes:
                    self._kept[request.id] = kept._replace(life=request.lives)
                    found.append(Moved(kept.shard, target, request, request.lives, prefixes))
        self._moving = list(found)
        return found

    def regained(self, moved: Moved, found: Prefix | None) -> None:
        """That much of one of the prefixes is in the target's cache."""
        self._moving.remove(moved)
        del self._kept[moved.request.id]
        if found is not None and found.blocks:
            self._schedulers[moved.target].restored(moved.request, found)
            self._kept[moved.request.id] = Kept(moved.source, moved.request.lives, (found,))

    def end_all(self, reason: str) -> list[Output]:
        self._kept.clear()
        ended = [r for each in self._schedulers.values() for r in each.end_all(reason)]
        return [Output(request.id, None, reason) for request in ended]


__all__ = ["Computed", "Mask", "Moved", "Piece", "ShardPlan", "Traffic", "rows_of_a_step"]
