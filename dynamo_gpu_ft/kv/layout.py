"""Layout as data: where one block's bytes are inside the engine's KV tensors.

`describe` looks only at shapes, strides and addresses (no torch import), so the same code serves CPU and CUDA tensors. A block's
payload is the concatenation of its fragments in region order; the fingerprint goes into the namespace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynamo_gpu_ft.errors import NotProtected


@dataclass(frozen=True, slots=True)
class Region:
    """Fragment of block b is `fragment_bytes` bytes at `address + b * stride_bytes`; b < `num_blocks`."""

    address: int
    stride_bytes: int
    fragment_bytes: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """All regions of one shard. `fingerprint` is equal for two engines whose blocks are exchangeable byte for byte."""

    regions: tuple[Region, ...]
    fingerprint: tuple[str, ...]

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


def describe(tensors: Mapping[str, Any], num_blocks: int) -> BlockLayout:
    """Layout of `{layer name: tensor}` (torch tensors or anything with shape, stride(), element_size(), data_ptr(), dtype).

    Layers that share storage are counted once. Raises `NotProtected` with the layer and the rule it breaks."""
    regions: list[Region] = []
    fingerprint: list[str] = []
    seen: set[int] = set()
    for name, tensor in tensors.items():
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
    if not regions:
        raise _refuse("(none)", "no tensors", "the engine registers at least one KV tensor")
    return BlockLayout(tuple(regions), tuple(fingerprint))
