"""Layout as data: where one block's bytes are inside the engine's KV tensors.

`describe` looks only at shapes, strides and addresses (no torch import), so the same code serves CPU and CUDA tensors. A block's
payload is the concatenation of its fragments in region order; fingerprint and geometry go into the namespace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv.geometry import Opaque, Part, ShardLayout
from dynamo_gpu_ft.kv.geometry_record import fold

UNDESCRIBED = Opaque("the engine says nothing about its layout")


@dataclass(frozen=True, slots=True)
class Region:
    """Fragment of block b is `fragment_bytes` bytes at `address + b * stride_bytes`; b < `num_blocks`."""

    address: int
    stride_bytes: int
    fragment_bytes: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine knows of its KV cache that shapes and strides do not tell.

    `axes` names the dimensions of its tensors (B kernel blocks, S k/v, H heads, N tokens, C content, D content of one part);
    `parts` lists (name, elements) of the content in order. `inner` is "rows" (one token's content of one head lies together),
    "k_columns" (per head: K by columns, then V by rows), or "cell:" and a name, when only that kernel knows."""

    axes: str
    block_tokens: int
    heads: int
    tp: int
    dtype: str
    parts: tuple[tuple[str, int], ...]
    inner: str


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """All regions of one shard. `fingerprint` is equal for two engines whose blocks are exchangeable byte for byte;
    `geometry` says how to convert them when it is not."""

    regions: tuple[Region, ...]
    fingerprint: tuple[str, ...]
    geometry: ShardLayout | Opaque = UNDESCRIBED

    @property
    def block_bytes(self) -> int:
        return sum(region.fragment_bytes for region in self.regions)

    @property
    def num_blocks(self) -> int:
        return min(region.num_blocks for region in self.regions)

    def native(self) -> list[tuple[int, int, int, int]]:
        return [(r.address, r.stride_bytes, r.fragment_bytes, r.num_blocks) for r in self.regions]


def _refuse(name: str, value: str, rule: str) -> NotProtected:
    return NotProtected(
        what="this KV cache layout cannot be snapshotted",
        where=f"layer {name}",
        value=value,
        rule=rule,
        remedy="open a report with this line, or serve without the connector",
    )


def _dense_bytes(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> int | None:
    """Bytes of a tensor whose elements fill one contiguous range in *some* dimension order; None when they do not."""
    expected = 1
    for size, stride in sorted(zip(shape, strides, strict=True), key=lambda p: p[1]):
        if size == 1:
            continue
        if stride != expected:
            return None
        expected *= size
    return expected * itemsize


def _split_kv(shape: Sequence[int], num_blocks: int) -> bool:
    """Whether the tensor keeps K and V in two planes before the block dimension."""
    return (
        len(shape) >= 2 and shape[0] == 2 and shape[1] >= num_blocks and shape[1] % num_blocks == 0
    )


def describe_tensor(
    name: str,
    shape: Sequence[int],
    strides: Sequence[int],
    itemsize: int,
    address: int,
    num_blocks: int,
) -> list[Region]:
    """Regions of one layer's tensor; `strides` in elements. The block dimension is the first whose size is a whole multiple of
    `num_blocks` (an attention kernel may cut the manager's block into several of its own); a dimension of 2 before
    it (K and V apart) gives two regions."""
    if _split_kv(shape, num_blocks):
        plane = strides[0] * itemsize
        halves = [address, address + plane]
        inner_shape, inner_strides = shape[1:], strides[1:]
    else:
        halves, inner_shape, inner_strides = [address], shape, strides
    if not inner_shape or inner_shape[0] < num_blocks or inner_shape[0] % num_blocks:
        rule = f"one of the leading dimensions counts the {num_blocks} blocks"
        raise _refuse(name, f"shape {tuple(shape)}", rule)
    ratio = inner_shape[0] // num_blocks
    per_kernel_block = _dense_bytes(inner_shape[1:], inner_strides[1:], itemsize)
    stride = inner_strides[0] * itemsize
    if per_kernel_block is None or (ratio > 1 and stride != per_kernel_block):
        value = f"shape {tuple(shape)}, strides {tuple(strides)}"
        raise _refuse(name, value, "the bytes of one block of one layer are contiguous")
    return [Region(base, stride * ratio, per_kernel_block * ratio, num_blocks) for base in halves]


def describe(
    tensors: Mapping[str, Any], num_blocks: int, facts: Facts | Opaque | None = None
) -> BlockLayout:
    """Layout of `{layer name: tensor}` (torch tensors or anything with shape, stride(), element_size(), data_ptr(), dtype).

    Layers that share storage are counted once. Without `facts` the blocks can be stored and restored, but not converted.
    Raises `NotProtected` with the layer and the rule it breaks."""
    regions: list[Region] = []
    fingerprint: list[str] = []
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if isinstance(tensor, (list, tuple)):
            value = f"{len(tensor)} tensors"
            raise _refuse(
                name, value, "one tensor per layer: state-space state is not KV of tokens"
            )
        address = int(tensor.data_ptr())
        if address in seen:
            continue
        seen.add(address)
        shape, strides = tuple(tensor.shape), tuple(tensor.stride())
        size = int(tensor.element_size())
        regions += describe_tensor(name, shape, strides, size, address, num_blocks)
        block_dim = 1 if _split_kv(shape, num_blocks) else 0
        inner = (*shape[:block_dim], shape[block_dim] // num_blocks, *shape[block_dim + 1 :])
        order = tuple(sorted(range(len(strides)), key=lambda d: -strides[d]))
        fingerprint.append(f"{name}:{tensor.dtype}:{inner}:{order}")
        shapes[name] = (inner, strides, size)
    if not regions:
        raise _refuse("(none)", "no tensors", "the engine registers at least one KV tensor")
    _refuse_hybrids(shapes)
    if facts is None:
        return BlockLayout(tuple(regions), tuple(fingerprint))
    geometry = facts if isinstance(facts, Opaque) else geometry_of(shapes, facts)
    if (
        isinstance(geometry, ShardLayout)
        and sum(r.fragment_bytes for r in regions) != geometry.payload_bytes
    ):
        geometry = Opaque("the tensors hold more or fewer bytes per block than the engine says")
    return BlockLayout(tuple(regions), tuple(fingerprint), geometry)


def _refuse_hybrids(shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], int]]) -> None:
    """Layers of several kinds have block tables of their own: one block id would not mean the same tokens in all of them."""
    (first, (shape, _, size)), *others = shapes.items()
    for name, (other, _, other_size) in others:
        if (other, other_size) != (shape, size):
            value = f"blocks of {other} elements of {other_size} bytes"
            raise _refuse(name, value, f"as in layer {first}: {shape} of {size} bytes")


def geometry_of(
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], int]], facts: Facts
) -> ShardLayout | Opaque:
    """The convertible layout of tensors of (shape per block, strides, item size), or why there is none."""
    kinds = {_orders(shape, strides, facts) for shape, strides, _ in shapes.values()}
    if len(kinds) != 1:
        return Opaque("its layers differ in order")
    found, itemsize = kinds.pop(), next(size for _, _, size in shapes.values())
    if isinstance(found, str):
        return Opaque(found)
    piece_tokens, orders = found
    cell = facts.inner.partition(":")[2] if facts.inner.startswith("cell:") else ""
    parts: tuple[Part, ...]
    if cell:
        parts = (Part("cell", sum(width for _, width in facts.parts), orders[0]),)
    else:
        pairs = zip(facts.parts, orders, strict=True)
        parts = tuple(Part(name, width, order) for (name, width), order in pairs)
    try:
        return ShardLayout(
            block_tokens=facts.block_tokens,
            piece_tokens=piece_tokens,
            heads=facts.heads,
            tp=facts.tp,
            dtype=facts.dtype,
            itemsize=itemsize,
            parts=parts,
            layers=fold(list(shapes)),
            cell=cell,
        )
    except NotProtected as error:
        return Opaque(error.rule)


def _orders(
    shape: tuple[int, ...], strides: tuple[int, ...], facts: Facts
) -> tuple[int, tuple[str, ...]] | str:
    """(tokens of a kernel block, axes of each part, outermost first), or what cannot be known."""
    if len(shape) != len(facts.axes):
        return f"its tensors have {len(shape)} dimensions, not {facts.axes}"
    size = dict(zip(facts.axes, shape, strict=True))
    widths = [width for _, width in facts.parts]
    content = size["C"] == sum(widths) if "C" in size else {size.get("D")} == set(widths)
    if not content or size.get("S", len(widths)) != len(widths):
        return "one token's content is not what the engine says"
    if size.get("H", 1) != max(1, facts.heads // facts.tp):
        return "a shard does not hold its share of the heads"
    if size["N"] * size["B"] != facts.block_tokens:
        return "its kernel blocks do not make up one block"
    # A dimension of one step can have any stride: it goes where it changes nothing.
    steps = dict(zip(facts.axes, strides, strict=True))
    inner = [a for a in "HN" if size.get(a, 1) == 1]
    inner += sorted((a for a in "HN" if size.get(a, 1) > 1), key=lambda a: -steps[a])
    last = "C" if "C" in size else "D"
    if steps[last] != 1 or any(size.get(a, 1) > 1 and steps[a] == 1 for a in "HN"):
        return "one token's content does not lie together"
    heads_first = inner == ["H", "N"] or size.get("H", 1) == 1
    select = "S" if len(widths) > 1 else ""
    if facts.inner.startswith("cell:"):
        return (size["N"], ("PHX",)) if heads_first else "its heads are not apart"
    if facts.inner == "k_columns":
        usable = heads_first and last == "C" and len(set(widths)) == 1 and len(widths) == 2
        return (size["N"], ("PHSDN", "PHSND")) if usable else "its heads are not apart"
    if facts.inner != "rows":
        return f"its inner order {facts.inner!r} is not known"
    rows = "".join(inner)
    if "S" not in size:
        return size["N"], tuple(f"P{rows}{select}D" for _ in widths)
    if facts.axes.index("S") < facts.axes.index("B"):
        return size["N"], tuple(f"SP{rows}D" for _ in widths)
    if size["S"] > 1 and any(size.get(a, 1) > 1 and steps[a] >= steps["S"] for a in "HN"):
        return "K and V of a block are interleaved"
    return size["N"], tuple(f"PS{rows}D" for _ in widths)
