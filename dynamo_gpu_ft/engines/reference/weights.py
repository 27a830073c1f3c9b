"""A shard's weights in one allocation, filled by the weight sources, read back for digests, the neighbour file and peers.

The addresses in it never change while the rank lives: a recovery of others leaves them alone, captured graphs may hold them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import torch

from dynamo_gpu_ft import native
from dynamo_gpu_ft.recovery.processes import this_process
from dynamo_gpu_ft.recovery.weights.base import Need
from dynamo_gpu_ft.recovery.weights.peer import Place, Table

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
NAMES = {dtype: name for name, dtype in TYPES.items()}
_ALIGN = 64


class ShardWeights:
    """The `Sink` of one shard. `tensors` by checkpoint name; on `device`, all of `dtype`. `room` is memory to use if it is large enough."""

    def __init__(
        self,
        needs: Sequence[Need],
        dtype: torch.dtype,
        device: torch.device,
        room: torch.Tensor | None = None,
    ) -> None:
        self.needs = tuple(needs)
        self.dtype, self.device = NAMES[dtype], device
        sizes = [-(-need.size(self.dtype) // _ALIGN) * _ALIGN for need in self.needs]
        self._image = room if room is not None else torch.empty(0, dtype=torch.uint8)
        if len(self._image) < sum(sizes) + _ALIGN or self._image.device != device:
            self._image = torch.empty(sum(sizes) + _ALIGN, dtype=torch.uint8, device=device)
        begin = -self._image.data_ptr() % _ALIGN
        self.tensors: dict[str, torch.Tensor] = {}
        for need, size in zip(self.needs, sizes, strict=True):
            data = self._image[begin : begin + need.size(self.dtype)]
            self.tensors[need.tensor] = data.view(dtype).view(need.shape)
            begin += size
        self._scratch: dict[Need, bytearray] = {}

    @property
    def total_bytes(self) -> int:
        return sum(need.size(self.dtype) for need in self.needs)

    # -- Sink ------------------------------------------------------------------------------------------------------

    def room(self, need: Need, dtype: str) -> memoryview:
        if dtype == self.dtype and self.device.type == "cpu":
            return view(self.tensors[need.tensor])
        self._scratch[need] = bytearray(need.size(dtype))
        return memoryview(self._scratch[need])

    def filled(self, need: Need, dtype: str) -> bool:
        data = self._scratch.pop(need, None)
        if data:
            source = torch.frombuffer(data, dtype=TYPES[dtype]).view(need.shape)
            self.tensors[need.tensor].copy_(source)
        return data is None

    # -- reading back ------------------------------------------------------------------------------------------------

    def host(self, need: Need) -> memoryview:
        """The tensor's bytes in host memory: itself on the CPU, a copy of what the device holds elsewhere."""
        tensor = self.tensors[need.tensor]
        return view(tensor if self.device.type == "cpu" else tensor.cpu())

    def digest(self, need: Need) -> bytes:
        return native.load().digest(self.host(need))

    def kept(self) -> list[tuple[Need, str, memoryview]]:
        """What the neighbour file keeps."""
        return [(need, self.dtype, self.host(need)) for need in self.needs]

    def table(self, model: str, digests: Mapping[str, bytes]) -> Table | None:
        """What a peer on this machine reads; None for weights on a device."""
        if self.device.type != "cpu":
            return None
        own = this_process()
        places = [
            Place(need.tensor, need.box, self.dtype, self.tensors[need.tensor].data_ptr(), digests[str(need)])
            for need in self.needs
        ]  # fmt: skip
        return Table(own.pid, own.started, model, tuple(places))


def room_for(needs: Sequence[Need], dtype: torch.dtype) -> int:
    """Bytes that these needs take up in a rank."""
    return sum(-(-need.size(NAMES[dtype]) // _ALIGN) * _ALIGN for need in needs) + _ALIGN


def view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, which the view keeps alive."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        return memoryview(bytearray())
    room = (ctypes.c_char * size).from_address(tensor.data_ptr())
    room.owner = tensor
    return memoryview(room).cast("B")
