"""How a model is cut up into shards: ranges of layers, KV heads, MLP columns and vocabulary, not necessarily even. Pure functions.

A shard's number is permanent: stage x tp + its place in the stage. The driver makes the split, ranks derive from it which weights
and which heads' KV they hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from dynamo_gpu_ft.engines.reference.shape import Shape
from dynamo_gpu_ft.errors import ConfigError

Range = tuple[int, int]


class Cut(msgspec.Struct, frozen=True):
    """What one shard holds, as [from, to): `layers` of its stage, `heads` counts KV heads, `columns` the inner size of MLP or experts."""

    layers: Range
    heads: Range
    columns: Range
    vocab: Range
    first: bool
    last: bool


class Split(msgspec.Struct, frozen=True):
    """The whole engine's cuts: `layers` per stage, the rest per place in a stage. An empty range: that place has no part of it, because
    its shard is lost and the others share its work."""

    layers: tuple[Range, ...]
    heads: tuple[Range, ...]
    columns: tuple[Range, ...]
    vocab: tuple[Range, ...]

    @property
    def tp(self) -> int:
        return len(self.heads)

    @property
    def pp(self) -> int:
        return len(self.layers)

    @property
    def shards(self) -> int:
        return self.tp * self.pp

    def place(self, shard: int) -> tuple[int, int]:
        """(stage, place in it)."""
        return divmod(shard, self.tp)

    def cut(self, shard: int) -> Cut:
        stage, place = self.place(shard)
        return Cut(
            layers=self.layers[stage],
            heads=self.heads[place],
            columns=self.columns[place],
            vocab=self.vocab[place],
            first=stage == 0,
            last=stage == self.pp - 1,
        )


def spread(
    total: int, parts: int, unit: int = 1, weights: Sequence[float] = ()
) -> tuple[Range, ...]:
    """[0, total) as `parts` neighbouring ranges whose borders are multiples of `unit`, as even as that allows, or after `weights`."""
    units = -(-total // unit)
    share = list(weights) or [1.0] * parts
    whole, borders, reached = sum(share), [0], 0.0
    for weight in share:
        reached += weight
        borders.append(min(total, round(units * reached / whole) * unit))
    borders[-1] = total
    return tuple(itertools.pairwise(borders))


def even(shape: Shape, tp: int, pp: int) -> Split:
    """The split an engine starts with. Raises `ConfigError` when there is less of something than ranks."""
    limits = {"tp": (tp, min(shape.kv_heads, shape.inner, shape.vocab)), "pp": (pp, shape.layers)}
    for name, (wanted, limit) in limits.items():
        if not 1 <= wanted <= limit:
            raise ConfigError(
                f"the model cannot be cut into {name} = {wanted}",
                value=wanted,
                rule=f"{name} lies between 1 and {limit} for this model",
                remedy=f"{name}={limit}",
            )
    return Split(
        layers=spread(shape.layers, pp),
        heads=spread(shape.kv_heads, tp),
        columns=spread(shape.inner, tp, _column_unit(shape, tp)),
        vocab=spread(shape.vocab, tp),
    )


def without(split: Split, shape: Shape, lost: Sequence[int]) -> Split:
    """The same engine when the places `lost` of every stage hold nothing: the others share their heads, columns and vocabulary as
    neighbouring ranges in the old order, so that most of what a survivor holds stays with it."""
    left = [place for place in range(split.tp) if place not in set(lost)]
    if not left or len(left) > shape.kv_heads:
        raise ConfigError("nobody is left to share the work", value=list(lost))
    heads = spread(shape.kv_heads, len(left))
    # Heads are few and uneven; columns are many, so they make up for it: who has more heads gets fewer columns.
    most = max(b - a for a, b in heads)
    attention = 2 * (shape.group + 1) * shape.head_dim
    mlp = 3 * shape.inner * max(1, shape.chosen)
    spare = [(most - (b - a)) * attention for a, b in heads]
    each = (mlp - sum(spare)) / len(left)
    weights = [max(each + s, mlp * 0.01) for s in spare] if each > 0 else ()
    columns = spread(shape.inner, len(left), _column_unit(shape, len(left)), weights)
    vocab = spread(shape.vocab, len(left))
    return Split(
        layers=split.layers,
        heads=_seated(heads, left, split.tp),
        columns=_seated(columns, left, split.tp),
        vocab=_seated(vocab, left, split.tp),
    )


def _seated(ranges: Sequence[Range], places: Sequence[int], tp: int) -> tuple[Range, ...]:
    found, at = [], 0
    for place in range(tp):
        if place in places:
            found.append(ranges[at])
            at += 1
        else:
            begin = ranges[at][0] if at < len(ranges) else ranges[-1][1]
            found.append((begin, begin))
    return tuple(found)


def _column_unit(shape: Shape, parts: int) -> int:
    """Columns in runs of 16 elements, a cache line, where there are enough of them."""
    return 16 if shape.inner >= 16 * parts * 4 else 1
