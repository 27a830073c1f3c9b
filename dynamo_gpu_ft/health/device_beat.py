"""The device's own half of a step heartbeat: after a step's work, the device writes its number where the judge reads it.

The host only queues work; a device that hangs is seen by the word that stops. Works inside CUDA graphs too, where the device counts by itself.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from dynamo_gpu_ft.errors import HealthError

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

_MAPPED = 2  # cudaHostRegisterMapped


class DeviceBeat:
    """Bound to one torch device and one `Beat`. On the CPU the "device" is the host itself: for tests.

    Mutates the beat's device word only. `mark` and `count` queue an 8-byte copy each on the current stream, and never wait for it.
    """

    def __init__(self, beat: _core.Beat, device: Any) -> None:
        """Makes the word's page known to the driver. Raises `HealthError` when the driver refuses."""
        import torch

        self._beat, self._device = beat, torch.device(device)
        address, page, page_bytes = beat.device_word()
        self._page = page if self._device.type == "cuda" else 0
        if self._page:
            result = int(torch.cuda.cudart().cudaHostRegister(page, page_bytes, _MAPPED))
            if result != 0:
                raise HealthError(
                    "the heartbeat's page cannot be registered with the driver",
                    where=str(self._device),
                    value=f"CUDA error {result}",
                    remedy="nothing: the host's half of the heartbeat goes on",
                )
        word = (ctypes.c_int64 * 1).from_address(address)
        self._word = torch.frombuffer(word, dtype=torch.int64)
        self._number = torch.zeros(1, dtype=torch.int64, device=self._device)

    def mark(self) -> None:
        """Everything queued so far on the current stream belongs to the steps begun so far."""
        self._number.fill_(self._beat.steps)
        self._word.copy_(self._number, non_blocking=True)

    def count(self) -> None:
        """One step more, counted by the device: what a CUDA graph of one step captures. Call `mark` once before the first replay."""
        self._number.add_(1)
        self._word.copy_(self._number, non_blocking=True)

    def close(self) -> None:
        """Takes the page back from the driver; blocks until what is queued is over. Safe to repeat."""
        page, self._page = self._page, 0
        if page:
            import torch

            torch.cuda.synchronize(self._device)
            torch.cuda.cudart().cudaHostUnregister(page)
