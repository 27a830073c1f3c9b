"""Continuous batching with chunked prefill: which tokens of which requests the next step computes, in which blocks. No effects, no tensors.

A request is its known tokens and how many of them have KV. Decoding is the case of one token without; after a recovery it may be more, and
nothing else is different. A step changes nothing here until `apply`: one that was lost is simply planned again.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from dynamo_gpu_ft.engines.reference.messages import Prefix
from dynamo_gpu_ft.engines.reference.sampling import Sampling
from dynamo_gpu_ft.engines.reference.tiles import Piece
from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.kv.tail import name_of


@dataclass(slots=True)
class Request:
    """`tokens` known so far (prompt and output), the first `computed` of which have KV in `blocks`; the first `stored` blocks are
    snapshotted or on their way. `lives`: how often something of it had to be computed again."""

    id: str
    tokens: list[int]
    prompt: int
    sampling: Sampling
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    stored: int = 0
    hashes: list[bytes] = field(default_factory=list)
    lives: int = 0
    finished: str = ""  # "length", "stop", or the error that ended it

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt :]


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: `pieces` to compute, blocks that are whole behind it, and requests whose blocks are free."""

    pieces: tuple[Piece, ...]
    sealed: tuple[Prefix, ...]
    gone: tuple[str, ...]


class Scheduler:
    """`blocks` counts block 0 too; `snapshot`, `tails`: whole and open blocks are stored behind every step; `rows` at most per step; `positions` is the model's longest context.
    `apart`: the same tokens may have other KV when they are computed again, so blocks have names of one request and one life of it."""

    def __init__(
        self, *, blocks: int, block: int, rows: int, positions: int, snapshot: bool, tails: bool, apart: bool = False
    ) -> None:  # fmt: skip
        self.block, self._rows, self._apart = block, rows, apart
        self._snapshot, self._tails = snapshot, snapshot and tails
        self._longest = min(positions, (blocks - 1) * block)
        self._free = list(range(blocks - 1, 0, -1))
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self._gone: list[str] = []

    @property
    def open(self) -> list[Request]:
        return [*self.running, *self.waiting]

    def add(self, request: Request) -> None:
        """Raises `GpuFtError` for one that could never be run."""
        needed = request.prompt + request.sampling.max_tokens
        if (
            not request.tokens
            or needed > self._longest
            or any(r.id == request.id for r in self.open)
        ):
            raise GpuFtError(
                "a request cannot be served",
                where=f"request {request.id}",
                value=needed,
                rule=f"a name of its own, at least one token, at most {self._longest} with its output",
            )
        self.waiting.append(request)

    @property
    def decoding(self) -> int:
        """Requests with one token left to compute: those that a stream's reader waits for in every step."""
        return sum(len(request.tokens) - request.computed == 1 for request in self.running)

    def plan(self, rows: int | None = None) -> Plan | None:
        """The next step: running requests first, oldest first, then new ones as far as rows (fewer, if given) and blocks reach. None when
        there is nothing to do. When blocks run out, the youngest running request gives its own back and starts anew later."""
        budget, pieces = self._rows if rows is None else min(rows, self._rows), []
        for request in list(self.running):
            if request in self.running and budget:
                piece = self._piece(request, budget)
                if piece is not None:
                    pieces.append(piece)
                    budget -= len(piece.tokens)
        pieces = [piece for piece in pieces if any(r.id == piece.request for r in self.running)]
        while self.waiting and budget:
            request = self.waiting[0]
            if not self._room(request, min(len(request.tokens), budget)):
                break
            self.running.append(self.waiting.pop(0))
            piece = self._piece(request, budget)
            assert piece is not None
            pieces.append(piece)
            budget -= len(piece.tokens)
        if not pieces:
            return None
        return Plan(tuple(pieces), tuple(self._sealed(pieces)), tuple(self._gone))

    def apply(self, plan: Plan, drawn: Mapping[str, int], gaps: Mapping[str, int]) -> list[Request]:
        """The step was computed. Returns the requests that are over now; their blocks are free."""
        self._gone = [gone for gone in self._gone if gone not in plan.gone]
        by_id = {request.id: request for request in self.running}
        for prefix in plan.sealed:
            if not prefix.tail:
                by_id[prefix.request].stored = prefix.first + len(prefix.blocks)
        for name, first in gaps.items():
            if name in by_id:
                by_id[name].stored = min(by_id[name].stored, first)
        over = []
        for piece in plan.pieces:
            request = by_id[piece.request]
            request.computed = piece.start + len(piece.tokens)
            if piece.sampling is None:
                continue
            token = drawn[piece.request]
            request.tokens.append(token)
            if token in request.sampling.stop:
                request.finished = "stop"
            elif len(request.output) >= request.sampling.max_tokens:
                request.finished = "length"
            if request.finished:
                self._end(request)
                over.append(request)
        return over

    def fell_back(self, usable: Mapping[str, int]) -> int:
        """After a loss: of each running request only the first `usable` tokens still have KV everywhere (0 when it is not named). What
        is behind them is computed again, everywhere. Returns how many tokens that are."""
        again = 0
        for request in self.running:
            kept = min(request.computed, usable.get(request.id, 0))
            again += request.computed - kept
            request.computed = kept
            request.stored = min(request.stored, kept // self.block)
        return again

    def kept_blocks(self, request: Request) -> Prefix:
        """The blocks of a running request that have been computed, as something to restore; the open one as its tail."""
        count, tail = divmod(request.computed, self.block)
        names = self._names(request, count)
        if tail and self._tails:
            names = [*names, self._tail_name(request, request.computed)]
        else:
            tail = 0
        blocks = tuple(request.blocks[: len(names)])
        return Prefix(request=request.id, first=0, blocks=blocks, hashes=tuple(names), tail=tail)

    def stored(self, request: Request, last: Prefix) -> Prefix:
        """All that is stored of a request once `last`, its newest blocks, is; the engine's blocks are for `readmit` to say."""
        names = (*request.hashes[: last.first], *last.hashes)
        return Prefix(
            request=request.id, first=0, blocks=(0,) * len(names), hashes=names, tail=last.tail
        )

    def readmit(self, request: Request, stored: Sequence[Prefix]) -> tuple[Prefix, ...]:
        """A request that another scheduler gave up: what may be stored of it, in blocks that it has from now on, one of which is to be loaded.
        Until `restored` says which, none of it is there. () where there is nothing to load, or no room: it waits."""
        self._anew(request)
        most = max((prefix.tokens(self.block) for prefix in stored), default=0)
        if not most or not self._room(request, most):
            self.waiting.insert(0, request)
            return ()
        self.running.append(request)
        return tuple(
            msgspec.structs.replace(prefix, blocks=tuple(request.blocks[: len(prefix.hashes)]))
            for prefix in stored
        )

    def restored(self, request: Request, prefix: Prefix) -> None:
        """These blocks, of a prefix that `readmit` gave, are there."""
        request.computed = prefix.tokens(self.block)
        request.hashes = list(prefix.hashes[: request.computed // self.block])

    def end_all(self, reason: str) -> list[Request]:
        """Every open request is over, with `reason`."""
        ended = self.open
        for request in ended:
            request.finished = reason
            self._end(request)
        self.waiting.clear()
        return ended

    # -- details -----------------------------------------------------------------------------------------------------

    def _anew(self, request: Request) -> None:
        """From the first token on."""
        request.computed = request.stored = 0
        request.lives += 1
        if self._apart:
            request.hashes.clear()

    def _end(self, request: Request) -> None:
        self._give_back(request)
        if request in self.running:
            self.running.remove(request)

    def _give_back(self, request: Request) -> None:
        if request.blocks:
            self._gone.append(request.id)
        self._free += reversed(request.blocks)
        request.blocks = []

    def _piece(self, request: Request, budget: int) -> Piece | None:
        end = min(len(request.tokens), request.computed + budget)
        while not self._room(request, end):
            youngest = self.running[-1]
            self.running.remove(youngest)
            self._give_back(youngest)
            self._anew(youngest)
            self.waiting.insert(0, youngest)
            if youngest is request:
                return None
        last = end == len(request.tokens)
        return Piece(
            request=request.id,
            start=request.computed,
            tokens=tuple(request.tokens[request.computed : end]),
            blocks=tuple(request.blocks[: -(-end // self.block)]),
            sampling=request.sampling if last else None,
        )

    def _room(self, request: Request, end: int) -> bool:
        """Gives the request blocks for its first `end` tokens; False when there are too few."""
        lacking = -(-end // self.block) - len(request.blocks)
        if lacking > len(self._free):
            return False
        request.blocks += [self._free.pop() for _ in range(lacking)]
        return True

    def _sealed(self, pieces: list[Piece]) -> Iterator[Prefix]:
        by_id = {request.id: request for request in self.running}
        for piece in pieces if self._snapshot else ():
            request = by_id[piece.request]
            whole = (piece.start + len(piece.tokens)) // self.block
            if whole > request.stored:
                names = self._names(request, whole)
                yield Prefix(
                    request=request.id,
                    first=request.stored,
                    blocks=tuple(request.blocks[request.stored : whole]),
                    hashes=tuple(names[request.stored :]),
                    parent=names[request.stored - 1] if request.stored else None,
                )
            tail = (piece.start + len(piece.tokens)) % self.block
            if tail and self._tails:
                names = self._names(request, whole)
                yield Prefix(
                    request=request.id,
                    first=whole,
                    blocks=(request.blocks[whole],),
                    hashes=(self._tail_name(request, piece.start + len(piece.tokens)),),
                    parent=names[-1] if names else None,
                    tail=tail,
                )

    def _tail_name(self, request: Request, end: int) -> bytes:
        """The name of the open block that ends behind token `end`."""
        whole = end // self.block
        names = self._names(request, whole)
        parent = names[-1] if names else None
        if self._apart:
            parent = self._digest(parent or b"begin", self._own(request))
        return name_of(parent, request.tokens[whole * self.block : end])

    def _names(self, request: Request, count: int) -> list[bytes]:
        """Names of the first `count` blocks: a hash over the tokens up to the block's end, so equal prefixes have equal names, unless requests
        are kept apart."""
        while len(request.hashes) < count:
            at = len(request.hashes) * self.block
            tokens = request.tokens[at : at + self.block]
            before = request.hashes[-1] if request.hashes else b"begin"
            packed = struct.pack(f"<{len(tokens)}q", *tokens)
            request.hashes.append(self._digest(before, packed + self._own(request)))
        return request.hashes[:count]

    def _own(self, request: Request) -> bytes:
        return f"{request.id}/{request.lives}".encode() if self._apart else b""

    @staticmethod
    def _digest(*parts: bytes) -> bytes:
        return hashlib.blake2b(b"".join(parts), digest_size=32).digest()
