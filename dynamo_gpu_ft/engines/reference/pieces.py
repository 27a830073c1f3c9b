"""Pieces of a stage replayed as CUDA graphs: what lies between two sums of a layer is kernels of the same sizes on the same addresses.

Sums stay outside, so that no graph ever waits for a peer: the survivors of a loss keep theirs, whichever communicator comes next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Protocol

import torch

_log = logging.getLogger("dynamo_gpu_ft.engines.reference")

Replay = Callable[[], None]


class Capture(Protocol):
    """Records what `piece` does to its device. Returns how to do it again, and the tensor that holds the result each time; what `piece`
    itself has computed here does not count. Raises RuntimeError for what cannot be recorded."""

    def __call__(self, piece: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]: ...


class CudaCapture:
    """As CUDA graphs that share one pool of memory: they are replayed one after the other, and results are kept by who holds them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, piece: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        with torch.cuda.device(self._device):
            current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                piece()  # libraries choose their kernels, and get their memory, at a first call
            current.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Threads that copy KV call the driver meanwhile: only this one is watched.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                out = piece()
        return graph.replay, out


class Pieces:
    """One for a stage, whose weights and cache it must not outlive: graphs know them by their addresses. Without a `capture`, pieces are
    just called."""

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture
        self._kept: dict[Hashable, tuple[list[torch.Tensor], Replay, torch.Tensor]] = {}

    @property
    def captured(self) -> int:
        """How many different ones are kept."""
        return len(self._kept)

    def widened(self, tables: torch.Tensor) -> torch.Tensor:
        """Block tables [rows, n] of one of few widths: a power of two, filled up with block 0, which nobody's context has. Such blocks are
        masked and change no bit (see `attend`)."""
        wide = 1 << max(0, tables.shape[1] - 1).bit_length()
        if self._capture is None or wide == tables.shape[1]:
            return tables
        return torch.nn.functional.pad(tables, (0, wide - tables.shape[1]))

    def run(
        self, name: Hashable, piece: Callable[..., torch.Tensor], *given: torch.Tensor
    ) -> torch.Tensor:
        """`piece(*given)`; `name` says which piece it is, and everything but `given` that it reads stays where it is. The result holds until
        the next run of the same piece with the same shapes."""
        if self._capture is None:
            return piece(*given)
        key = (name, *(each.shape for each in given))
        if key not in self._kept:
            inputs = [each.clone() for each in given]
            try:
                self._kept[key] = (inputs, *self._capture(lambda: piece(*inputs)))
            except RuntimeError as error:
                _log.warning("this engine's steps run without CUDA graphs: %s", error)
                self._capture = None
                self._kept.clear()
                return piece(*given)
        inputs, replay, out = self._kept[key]
        for own, each in zip(inputs, given, strict=True):
            own.copy_(each)
        replay()
        return out


def pieces_for(device: torch.device, wanted: bool) -> Pieces:
    return Pieces(CudaCapture(device) if wanted and device.type == "cuda" else None)
