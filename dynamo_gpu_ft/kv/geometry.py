"""What one block's payload of one shard is, byte for byte, precisely enough to turn it into another engine's payload.

`kv.layout` derives a `ShardLayout` from the engine's tensors, the namespace record carries it (`kv.geometry_record`),
`kv.relayout` plans conversions between two of them. Pure data and arithmetic: no tensors, no files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynamo_gpu_ft.errors import NotProtected

# Axes inside the payload of one layer. P: kernel block, H: KV head of this shard, S: which part (k or v), N: token of the
# kernel block, D: element of the part, X: all bytes of a (kernel block, head) whose inner order nobody but the kernel knows.

_LIMITS = {"block_tokens": 1 << 16, "piece_tokens": 1 << 16, "heads": 1 << 16, "tp": 1 << 16}
_MAX_LAYERS, _MAX_WIDTH, _MAX_PAYLOAD = 1 << 14, 1 << 20, 1 << 36


@dataclass(frozen=True, slots=True)
class Part:
    """K, V, an MLA latent or a cell: `width` elements per token and head; `order` lists the axes, outermost first."""

    name: str
    width: int
    order: str


@dataclass(frozen=True, slots=True)
class LayerRun:
    """`count` layers whose names differ in one number: `name` has "{}" in its place, and it counts from `first` up."""

    name: str
    first: int
    count: int

    def names(self) -> list[str]:
        return [self.name.replace("{}", str(self.first + i)) for i in range(self.count)]


@dataclass(frozen=True, slots=True)
class Opaque:
    """A payload that can be restored into an equal layout and never converted; `why` says what is not known about it."""

    why: str


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """The payload is, layer after layer, the parts in their `order`; one value serves all shards of an engine.

    `heads` counts the KV heads of the whole model (1 for MLA), `tp` the shards. `once`: shard 0 alone stores what all hold.
    `cell` names the kernel that alone knows the order inside axis X; layouts with different names do not mix.
    The constructor raises `NotProtected` for what no payload can be."""

    block_tokens: int
    piece_tokens: int
    heads: int
    tp: int
    dtype: str
    itemsize: int
    parts: tuple[Part, ...]
    layers: tuple[LayerRun, ...]
    cell: str = ""
    once: bool = False

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            if not 1 <= getattr(self, name) <= limit:
                raise refuse(f"{name} must lie between 1 and {limit}", getattr(self, name))
        if self.block_tokens % self.piece_tokens:
            sizes = (self.block_tokens, self.piece_tokens)
            raise refuse("a block is a whole number of kernel blocks", sizes)
        if self.heads % self.tp and self.tp % self.heads:
            raise refuse("heads and shards divide each other", (self.heads, self.tp))
        if self.itemsize not in (1, 2, 4, 8):
            raise refuse("an element has 1, 2, 4 or 8 bytes", self.itemsize)
        if self.once and self.heads != 1:
            raise refuse("only what every shard holds alike can be stored once", self.heads)
        if not 1 <= sum(run.count for run in self.layers) <= _MAX_LAYERS:
            raise refuse(f"between 1 and {_MAX_LAYERS} layers", len(self.layers))
        names = self.layer_names()
        if len(set(names)) != len(names):
            raise refuse("every layer has a name of its own", names[0])
        self._check_parts()
        if self.payload_bytes > _MAX_PAYLOAD:
            raise refuse(f"a payload of at most {_MAX_PAYLOAD} bytes", self.payload_bytes)

    def _check_parts(self) -> None:
        if not 1 <= len(self.parts) <= 2 or len({p.name for p in self.parts}) != len(self.parts):
            raise refuse("one or two parts with different names", [p.name for p in self.parts])
        inner = "X" if self.cell else "ND"
        wanted = sorted("PH" + inner + "S" * (len(self.parts) > 1))
        for part in self.parts:
            if not 1 <= part.width <= _MAX_WIDTH or sorted(part.order) != wanted:
                raise refuse(f"a part has a width and the axes {''.join(wanted)}", part)
        if len({part.order.partition("S")[0] for part in self.parts if "S" in part.order}) > 1:
            raise refuse("all parts have the same axes before S", [p.order for p in self.parts])

    @property
    def heads_per_shard(self) -> int:
        return max(1, self.heads // self.tp)

    @property
    def pieces(self) -> int:
        return self.block_tokens // self.piece_tokens

    @property
    def num_layers(self) -> int:
        return sum(run.count for run in self.layers)

    @property
    def layer_bytes(self) -> int:
        width = sum(part.width for part in self.parts)
        return self.block_tokens * self.heads_per_shard * width * self.itemsize

    @property
    def payload_bytes(self) -> int:
        return self.num_layers * self.layer_bytes

    @property
    def shards(self) -> tuple[int, ...]:
        """The shards that store payloads."""
        return (0,) if self.once else tuple(range(self.tp))

    def layer_names(self) -> list[str]:
        return [name for run in self.layers for name in run.names()]

    def head_range(self, shard: int) -> tuple[int, int]:
        """Heads [from, to) of the model that `shard` holds; with fewer heads than shards, neighbours hold the same head."""
        if not 0 <= shard < self.tp:
            raise refuse(f"shards count from 0 to {self.tp - 1}", shard)
        if self.heads >= self.tp:
            return shard * self.heads_per_shard, (shard + 1) * self.heads_per_shard
        first = shard * self.heads // self.tp
        return first, first + 1

    def sizes(self, part: Part) -> dict[str, int]:
        """Steps along each axis; D counts elements, X bytes."""
        cell = self.piece_tokens * part.width * self.itemsize
        return {
            "P": self.pieces,
            "H": self.heads_per_shard,
            "N": self.piece_tokens,
            "D": part.width,
            "X": cell,
        }

    def strides(self, part: Part) -> tuple[int, dict[str, int]]:
        """(bytes from the layer's begin to the part's first element, bytes per step of each axis but S)."""
        strides: dict[str, int] = {}
        step = 1 if self.cell else self.itemsize
        inner, offset = part.order, 0
        if "S" in part.order:
            outer, _, inner = part.order.partition("S")
            sizes = self.sizes(part)
            for axis in reversed(inner):
                strides[axis] = step
                step *= sizes[axis]
            behind = {p.name: self._inner_bytes(p) for p in self.parts}
            before = [p.name for p in self.parts[: self.parts.index(part)]]
            offset = sum(behind[name] for name in before)
            step, inner = sum(behind.values()), outer
        sizes = self.sizes(part)
        for axis in reversed(inner):
            strides[axis] = step
            step *= sizes[axis]
        return offset, strides

    def _inner_bytes(self, part: Part) -> int:
        sizes = self.sizes(part)
        unit = 1 if self.cell else self.itemsize
        return unit * math.prod(sizes[axis] for axis in part.order.partition("S")[2])


def refuse(rule: str, value: object) -> NotProtected:
    return NotProtected(
        "this is no layout of KV blocks",
        where="layout descriptor",
        value=value,
        rule=rule,
        remedy="recompute what was stored under it",
    )
