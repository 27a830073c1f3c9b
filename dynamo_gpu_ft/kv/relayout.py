"""Plans how payloads of one layout become payloads of another: which source shards, which of their bytes, and what goes where.

Pure: two `ShardLayout`s in, a `Relayout` out, the same on every machine. The native core checks and runs it
(`csrc/relayout`), byte for byte: nothing is ever rounded, cast or computed with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv.geometry import Opaque, Part, ShardLayout

#: (steps, bytes between two steps in the source, the same in the target)
Dim = tuple[int, int, int]

#: The native core walks this many dimensions; what has more becomes several copies.
MAX_DIMS = 5

#: Gaps of unneeded bytes up to this are read along: one longer read beats two short ones.
GAP_BYTES = 4096


@dataclass(frozen=True, slots=True)
class StridedCopy:
    """Copies runs of `bytes` from payload `source` to the target, for every combination of steps along `dims` (outermost
    first), beginning at byte `start` there and byte `to` here."""

    source: int
    start: int
    to: int
    dims: tuple[Dim, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Relayout:
    """How one target shard's blocks are made.

    Target block p needs source blocks `sources(p)` of every shard in `source_shards`; payload k * len(source_shards) + i is
    block k of them in shard `source_shards[i]`. `phases[p % targets_per_source]` lists the copies; one of the two
    counts is 1."""

    source_shards: tuple[int, ...]
    sources_per_target: int
    targets_per_source: int
    source_bytes: int
    target_bytes: int
    phases: tuple[tuple[StridedCopy, ...], ...]

    def sources(self, position: int) -> range:
        """Positions of the source blocks that target block `position` is made of."""
        first = position * self.sources_per_target // self.targets_per_source
        return range(first, first + self.sources_per_target)

    def ranges(self, phase: int = 0) -> list[list[tuple[int, int]]]:
        """Per payload, the byte ranges (begin, length) that a phase reads, merged, in order."""
        found: list[list[tuple[int, int]]] = [
            [] for _ in range(self.sources_per_target * len(self.source_shards))
        ]
        for copy in self.phases[phase]:
            found[copy.source] += _touched(copy)
        return [_merged(ranges) for ranges in found]


def _refuse(why: str, source: object, target: object) -> NotProtected:
    return NotProtected(
        "these blocks cannot be converted",
        where="relayout",
        value=f"{source} -> {target}",
        rule=why,
        remedy="recompute them; restart with the former layout to keep them",
    )


def plan(source: ShardLayout | Opaque, target: ShardLayout | Opaque, shard: int) -> Relayout:
    """How blocks of `target`'s shard are made of blocks of `source`. Raises `NotProtected` with the reason why not."""
    if isinstance(source, Opaque):
        raise _refuse(f"the source's layout is not known: {source.why}", source, target)
    if isinstance(target, Opaque):
        raise _refuse(f"the target's layout is not known: {target.why}", source, target)
    _check(source, target, shard)
    smaller = min(source.block_tokens, target.block_tokens)
    in_target = max(1, target.block_tokens // source.block_tokens)
    in_source = max(1, source.block_tokens // target.block_tokens)
    holders = _holders(source, target.head_range(shard))
    shards = tuple(sorted(holders))
    phases = []
    for phase in range(in_source):
        copies: list[StridedCopy] = []
        for block in range(in_target):
            tokens = (phase * smaller, block * smaller, smaller)
            for number, holder in enumerate(shards):
                for part in target.parts:
                    copies += _copies(
                        (source, target),
                        part.name,
                        block * len(shards) + number,
                        tokens,
                        _heads(source, holder, target, shard, holders[holder]),
                    )
        phases.append(_joined(copies))
    return Relayout(
        shards, in_target, in_source, source.payload_bytes, target.payload_bytes, tuple(phases)
    )


def _check(source: ShardLayout, target: ShardLayout, shard: int) -> None:
    rules: list[tuple[str, object, object]] = [
        ("both have the same element type", source.dtype, target.dtype),
        ("both have elements of the same size", source.itemsize, target.itemsize),
        ("both come from a model with the same KV heads", source.heads, target.heads),
        ("both have the same layers", set(source.layer_names()), set(target.layer_names())),
        ("both store the same parts, as wide", _widths(source), _widths(target)),
        ("both were written by the same kernel", source.cell, target.cell),
    ]
    for rule, mine, theirs in rules:
        if mine != theirs:
            raise _refuse(rule, mine, theirs)
    if source.cell and source.piece_tokens != target.piece_tokens:
        raise _refuse(
            "only the kernel can cut its blocks", source.piece_tokens, target.piece_tokens
        )
    longer, shorter = sorted((source.block_tokens, target.block_tokens), reverse=True)
    if longer % shorter:
        raise _refuse("block sizes divide each other", source.block_tokens, target.block_tokens)
    if shard not in target.shards:
        raise _refuse("the target shard stores blocks", shard, target.shards)


def _widths(layout: ShardLayout) -> dict[str, int]:
    return {part.name: part.width for part in layout.parts}


def _part(layout: ShardLayout, name: str) -> Part:
    return next(part for part in layout.parts if part.name == name)


def _holders(source: ShardLayout, wanted: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """Which heads [from, to) to take from which source shard: the first shard that has a head gives it."""
    found: dict[int, tuple[int, int]] = {}
    head = wanted[0]
    for shard in source.shards:
        first, end = source.head_range(shard)
        if first <= head < end and head < wanted[1]:
            found[shard] = (head, min(end, wanted[1]))
            head = found[shard][1]
    if head != wanted[1]:
        raise _refuse("every head is in some source shard", f"head {head}", source.shards)
    return found


def _heads(
    source: ShardLayout, holder: int, target: ShardLayout, shard: int, heads: tuple[int, int]
) -> tuple[int, int, int]:
    """(first head in the source payload, the same in the target payload, how many)."""
    first, end = heads
    return (
        first - source.head_range(holder)[0],
        first - target.head_range(shard)[0],
        end - first,
    )


def _copies(
    sides: tuple[ShardLayout, ShardLayout],
    name: str,
    number: int,
    tokens: tuple[int, int, int],
    heads: tuple[int, int, int],
) -> list[StridedCopy]:
    """The copies of one part of `tokens` and `heads`, both as (first in the source, first in the target, how many)."""
    placed = [side.strides(_part(side, name)) for side in sides]
    (offset_s, step_s), (offset_t, step_t) = placed
    layer_of = {layer: i for i, layer in enumerate(sides[0].layer_names())}
    layers = [
        (layer_of[layer] * sides[0].layer_bytes, i * sides[1].layer_bytes)
        for i, layer in enumerate(sides[1].layer_names())
    ]
    unit = sides[0].piece_tokens if sides[0].cell else 1
    steps = range(0, tokens[2], unit)
    places = [
        (_token(sides[0], step_s, tokens[0] + t), _token(sides[1], step_t, tokens[1] + t))
        for t in steps
    ]
    inner: list[Dim] = [(heads[2], step_s["H"], step_t["H"])]
    run = 1
    if sides[0].cell:
        run = _part(sides[0], name).width * unit * sides[0].itemsize
    else:
        run = sides[0].itemsize
        inner.append((_part(sides[0], name).width, step_s["D"], step_t["D"]))
    start = offset_s + heads[0] * step_s["H"]
    to = offset_t + heads[1] * step_t["H"]
    copies = []
    for (layer_s, layer_t), layer_dims in _affine(layers):
        for (token_s, token_t), token_dims in _affine(places):
            copies += _split(
                number,
                start + layer_s + token_s,
                to + layer_t + token_t,
                [*layer_dims, *token_dims, *inner],
                run,
            )
    return copies


def _token(layout: ShardLayout, step: dict[str, int], token: int) -> int:
    piece, inside = divmod(token, layout.piece_tokens)
    return piece * step["P"] + (inside * step["N"] if inside else 0)


def _affine(pairs: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], list[Dim]]]:
    """`pairs` of addresses as regular grids, few when they are regular: (first pair, dimensions outermost first)."""
    rows: list[tuple[tuple[int, int], Dim]] = []  # maximal rows of equal, positive steps
    at = 0
    while at < len(pairs):
        count, step = 1, (0, 0)
        while at + count < len(pairs):
            last, this = pairs[at + count - 1], pairs[at + count]
            next_step = (this[0] - last[0], this[1] - last[1])
            if min(next_step) <= 0 or (count > 1 and next_step != step):
                break
            count, step = count + 1, next_step
        rows.append((pairs[at], (count, *step)))
        at += count
    if len(rows) > 1 and len({row for _, row in rows}) == 1 and rows[0][1][0] > 1:
        row = rows[0][1]
        return [(first, [*dims, row]) for first, dims in _affine([first for first, _ in rows])]
    return [(first, [row]) for first, row in rows]


def _split(number: int, start: int, to: int, dims: list[Dim], run: int) -> list[StridedCopy]:
    """One copy with its dimensions sorted by the target, merged, and folded into the run; several when still too many."""
    dims = sorted((d for d in dims if d[0] > 1), key=lambda d: -d[2])
    while dims and dims[-1][1] == dims[-1][2] == run:
        run *= dims.pop()[0]
    merged: list[Dim] = []
    for count, step_s, step_t in dims:
        if merged:
            before = merged[-1]
            if before[1] == count * step_s and before[2] == count * step_t:
                merged[-1] = (before[0] * count, step_s, step_t)
                continue
        merged.append((count, step_s, step_t))
    if len(merged) <= MAX_DIMS:
        return [StridedCopy(number, start, to, tuple(merged), run)]
    count, step_s, step_t = merged[0]
    return [
        copy
        for i in range(count)
        for copy in _split(number, start + i * step_s, to + i * step_t, merged[1:], run)
    ]


def _joined(copies: list[StridedCopy]) -> tuple[StridedCopy, ...]:
    """Copies that continue each other's runs on both sides (K and V of one token, say) become one."""
    done: list[StridedCopy] = []
    ends: dict[
        tuple[int, tuple[Dim, ...], int, int], int
    ] = {}  # where a copy's run ends: its place in `done`
    for copy in copies:
        place = ends.pop((copy.source, copy.dims, copy.start, copy.to), None)
        if place is not None:
            both = replace(done[place], bytes=done[place].bytes + copy.bytes)
            if all(min(dim[1:]) >= both.bytes for dim in both.dims):
                done[place] = copy = both
                ends[(copy.source, copy.dims, copy.start + copy.bytes, copy.to + copy.bytes)] = (
                    place
                )
                continue
        ends[(copy.source, copy.dims, copy.start + copy.bytes, copy.to + copy.bytes)] = len(done)
        done.append(copy)
    joined: list[StridedCopy] = []
    for copy in done:
        joined += _split(copy.source, copy.start, copy.to, list(copy.dims), copy.bytes)
    return tuple(joined)


def _touched(copy: StridedCopy) -> list[tuple[int, int]]:
    """Byte ranges of the source that a copy reads, small gaps included."""
    length, places = copy.bytes, [copy.start]
    for count, step, _ in sorted(copy.dims, key=lambda d: d[1]):
        if len(places) == 1 and step <= length + GAP_BYTES:
            length += step * (count - 1)
        else:
            places = [p + i * step for p in places for i in range(count)]
    return [(place, length) for place in places]


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for begin, length in sorted(ranges):
        if found and begin <= sum(found[-1]) + GAP_BYTES:
            found[-1] = (found[-1][0], max(sum(found[-1]), begin + length) - found[-1][0])
        else:
            found.append((begin, length))
    return found
