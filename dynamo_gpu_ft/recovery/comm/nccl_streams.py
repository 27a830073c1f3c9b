"""What NCCL's calls are put on, and how the end of them is seen: torch's streams on a GPU, and host memory with a simulated NCCL.

Below `nccl.py`; torch is imported where a stream is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_uint64, c_void_p
from typing import Protocol

from dynamo_gpu_ft.recovery.comm.base import CommError
from dynamo_gpu_ft.recovery.comm.nccl_library import NcclLibrary


class Stream(Protocol):
    """The device's queue that collectives are put on. `device`: where their tensors lie, as torch names it."""

    @property
    def device(self) -> str: ...

    def pointer(self) -> int: ...

    def mark(self) -> Callable[[], bool]:
        """Says, whenever it is asked, whether all that was put on the stream before is done."""


class CudaStream:
    """torch's current stream of the current device."""

    device = "cuda"

    def pointer(self) -> int:
        import torch

        return int(torch.cuda.current_stream().cuda_stream)

    def mark(self) -> Callable[[], bool]:
        import torch

        event = torch.cuda.Event()
        event.record()
        return event.query  # type: ignore[no-any-return]


class HostStream:
    """One stream for a whole process, in host memory. Raises `CommError` for a real library, which cannot reach that."""

    device = "cpu"

    def __init__(self, library: NcclLibrary) -> None:
        if not library.simulated:
            raise CommError(f"the NCCL at {library.path} is a real one: its tensors lie on GPUs")
        self._library = library

    def pointer(self) -> int:
        return 0

    def mark(self) -> Callable[[], bool]:
        mark = c_uint64(0)
        if self._library.simulated_done(c_void_p(0), mark):
            return lambda: True
        return lambda: self._library.simulated_done(c_void_p(0), mark)
