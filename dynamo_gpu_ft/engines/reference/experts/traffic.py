"""Which request lives on which rank: one scheduler for each, moves when a rank is lost, and the history that an oracle can replay.

Decisions only, no processes. A request that moves keeps its tokens and loses its KV.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

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
    """A request of a lost rank is `target`'s now, where `prefix` is to be loaded, which the lost rank `source` stored."""

    source: int
    target: int
    request: Request
    prefix: Prefix


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


class Traffic:
    """`history`: request -> what was computed of it, in order; kept until it is taken."""

    def __init__(self, options: Options, positions: int) -> None:
        self._tile, self._block, config = options.tile, options.block, options.config()
        self._schedulers = {
            shard: Scheduler(
                blocks=options.blocks, block=options.block, rows=options.rows, positions=positions,
                snapshot=config.snapshot, tails=config.tail_every > 0, apart=True,
            )
            for shard in range(options.ep)
        }  # fmt: skip
        # Of each shard, with the life of the request; and of each request: who stores so many tokens of it, as a step has answered.
        self._due: dict[int, list[tuple[int, Prefix]]] = {}
        self._kept: dict[str, tuple[int, int]] = {}
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
                lives = {request.id: request.lives for request in scheduler.running}
                due = tuple(
                    p for life, p in self._due.get(shard, ()) if lives.get(p.request) == life
                )
                found[shard] = ShardPlan(plan.pieces, plan.sealed, plan.gone, due)
        return found

    def apply(
        self, plans: Mapping[int, ShardPlan], drawn: Mapping[str, int], mask: Mask, gaps: Mapping[str, int] = {}
    ) -> list[Output]:  # fmt: skip
        """The step was computed, and counts. `gaps`: request -> first block of it that could not be stored."""
        outputs = []
        for shard, plan in plans.items():
            own = Plan(plan.pieces, plan.sealed, plan.gone)
            over = {r.id: r for r in self._schedulers[shard].apply(own, drawn, gaps)}
            lives = {request.id: request.lives for request in self._schedulers[shard].running}
            self._due[shard] = [(lives[p.request], p) for p in plan.sealed if p.request in lives]
            for prefix in plan.due:
                tokens = prefix.first * self._block + prefix.tokens(self._block)
                self._kept[prefix.request] = (shard, tokens)
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
        be, if `regained` is told of it at once. What a rank stored that lives (again) is its own."""
        found = []
        for shard in gone:
            self._due.pop(shard, None)
            for request in self._schedulers[shard].end_all(""):
                target = self._emptiest(shards)
                source, tokens = self._kept.get(request.id, (shard, 0))
                kept = 0 if source in shards else tokens
                prefix = self._schedulers[target].readmit(request, kept)
                if prefix is not None:
                    found.append(Moved(source, target, request, prefix))
        return found

    def regained(self, moved: Moved, blocks: int) -> None:
        """The first `blocks` blocks of it are in the target's cache."""
        self._schedulers[moved.target].restored(moved.request, moved.prefix.head(blocks))

    def end_all(self, reason: str) -> list[Output]:
        self._kept.clear()
        ended = [r for each in self._schedulers.values() for r in each.end_all(reason)]
        return [Output(request.id, None, reason) for request in ended]


__all__ = ["Computed", "Mask", "Moved", "Piece", "ShardPlan", "Traffic", "rows_of_a_step"]
