"""Rows of experts in one torch tensor, on a GPU or not, with pinned landing memory: what an engine's weights are to the slot store.

The tensor is allocated once and never moves, so captured graphs keep its address. Importing this needs no torch; using it does.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dynamo_gpu_ft import native
from dynamo_gpu_ft.errors import SlotError
from dynamo_gpu_ft.experts.records import Geometry

if TYPE_CHECKING:
    import torch


class DeviceRows:
    """`Rows` over `image`: uint8 [layers, rows, expert_bytes], contiguous. Copies run on a stream of their own, beside the engine's steps."""

    def __init__(
        self, geometry: Geometry, image: torch.Tensor, *, deadline_s: float = 10.0
    ) -> None:
        """A copy that takes longer than `deadline_s` is an error: the device hangs."""
        import torch

        shape = (geometry.layers, geometry.rows, geometry.expert_bytes)
        if tuple(image.shape) != shape or image.dtype != torch.uint8 or not image.is_contiguous():
            raise SlotError(
                "a tensor cannot hold these rows", value=(tuple(image.shape), str(image.dtype)),
                rule=f"contiguous uint8 {shape}",
            )  # fmt: skip
        self.image, self._deadline_s = image, deadline_s
        self._stream = torch.cuda.Stream(image.device) if image.is_cuda else None
        self._back = torch.empty(geometry.expert_bytes, dtype=torch.uint8, pin_memory=image.is_cuda)

    def write(self, layer: int, row: int, data: memoryview) -> None:
        import torch

        source = torch.frombuffer(data, dtype=torch.uint8)
        self._copy(self.image[layer, row], source)

    def digest(self, layer: int, row: int) -> bytes:
        """NOTE: reads the row back over the bus, which costs as much as writing it; nothing less sees what the device really holds."""
        self._copy(self._back, self.image[layer, row])
        return native.load().digest(view(self._back))

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        import torch

        if self._stream is None:
            target.copy_(source)
            return
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        wait_until(arrived.query, self._deadline_s)


def wait_until(done: Callable[[], bool], deadline_s: float) -> None:
    """Polls, because waiting for a device that hangs never ends. Raises `SlotError` past the deadline."""
    give_up = time.monotonic() + deadline_s
    while not done():
        if time.monotonic() > give_up:
            raise SlotError(
                "a copy of an expert does not end", value=f"{deadline_s:g} s",
                rule="42 MiB take a few milliseconds", remedy="the health room's verdict on this GPU",
            )  # fmt: skip
        time.sleep(50e-6)


def pinned(size: int) -> memoryview:
    """Landing memory that the device's copy engine reads at full rate; ordinary memory where there is no GPU."""
    import torch

    return view(torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available()))


def view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous host tensor, which the view keeps alive."""
    room = (ctypes.c_char * tensor.numel()).from_address(tensor.data_ptr())
    room.owner = tensor
    return memoryview(room).cast("B")
