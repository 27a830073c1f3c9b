"""Where the experts of a rank lie: one allocation on its device with room for every slot and one more per layer, which never moves.

A row of it holds one expert, its three tensors one after the other, each at a multiple of 64 bytes. Which row is whose is for the slot store.
"""

from __future__ import annotations

import torch

from dynamo_gpu_ft.engines.reference import needs, split
from dynamo_gpu_ft.engines.reference.shape import Shape
from dynamo_gpu_ft.engines.reference.weights import NAMES, view
from dynamo_gpu_ft.experts.device_rows import DeviceRows
from dynamo_gpu_ft.experts.records import Geometry
from dynamo_gpu_ft.experts.rows import HostRows, Rows
from dynamo_gpu_ft.recovery.weights.base import Need

_ALIGN = 64


def expert_needs(model: Shape, layer: int, expert: int) -> list[Need]:
    at = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
    wide, back = ((0, model.inner), (0, model.hidden)), ((0, model.hidden), (0, model.inner))
    return [Need(f"{at}.w1.weight", wide), Need(f"{at}.w3.weight", wide), Need(f"{at}.w2.weight", back)]  # fmt: skip


def other_needs(model: Shape) -> list[Need]:
    """Everything but the experts."""
    whole = split.even(model, 1, 1).cut(0)
    return [need for need in needs.of(model, whole) if ".experts." not in need.tensor]


def expert_bytes(model: Shape, dtype: torch.dtype) -> int:
    """Of one slot: three tensors, each at a multiple of 64 bytes."""
    return sum(_rounded(need, dtype) for need in expert_needs(model, 0, 0))


def _rounded(need: Need, dtype: torch.dtype) -> int:
    return -(-need.size(NAMES[dtype]) // _ALIGN) * _ALIGN


class SlotMemory:
    """`rows` is what the slot store writes and digests: by a stream of its own where `device` is a GPU, whose steps go on meanwhile."""

    def __init__(
        self, model: Shape, dtype: torch.dtype, geometry: Geometry, device: torch.device
    ) -> None:
        self._model, self._dtype, self._size = model, dtype, geometry.expert_bytes
        shape = (geometry.layers, geometry.rows, geometry.expert_bytes)
        self._pinned = device.type == "cuda"
        if device.type == "cpu":
            self._image = _room(geometry.payload_bytes)[: geometry.payload_bytes].view(shape)
        else:
            self._image = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.rows: Rows
        if device.type == "cpu":
            self.rows = HostRows(view(self._image), geometry)
        else:
            self.rows = DeviceRows(geometry, self._image)
        self._tensors: dict[tuple[int, int], tuple[torch.Tensor, ...]] = {}

    def tensors(self, layer: int, row: int) -> tuple[torch.Tensor, ...]:
        """w1, w3 [inner, hidden] and w2 [hidden, inner] of the expert in this row, where they lie."""
        if (layer, row) not in self._tensors:
            found, at = [], 0
            for need in expert_needs(self._model, 0, 0):
                data = self._image[layer, row, at : at + need.size(NAMES[self._dtype])]
                found.append(data.view(self._dtype).view(need.shape))
                at += _rounded(need, self._dtype)
            self._tensors[layer, row] = tuple(found)
        return self._tensors[layer, row]

    def landing(self) -> torch.Tensor:
        """Fresh host memory for one expert, and 64 bytes; what a GPU's copies can be made from at full rate."""
        return _room(self._size, pinned=self._pinned)

    def flip(self, layer: int, row: int) -> None:
        """Damages the row by one bit, which makes a weight so large or small that tokens would show it; for drills."""
        self._image[layer, row, 7:8].bitwise_xor_(0x40)


def _room(size: int, *, pinned: bool = False) -> torch.Tensor:
    """Zeroed host memory that begins at a multiple of 64, with as much to spare behind `size`."""
    raw = torch.zeros(size + 2 * _ALIGN, dtype=torch.uint8, pin_memory=pinned)
    begin = -raw.data_ptr() % _ALIGN
    return raw[begin : begin + size + _ALIGN]
