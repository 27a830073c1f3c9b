"""The rank masks of DeepEP, NIXL EP and NCCL EP: read into `liveness`, and pushed, so that no kernel waits 100 s for a rank known to be dead.

Each adapter holds its library's calls against `signatures.json` when it is made: a library that changed is a clear error at start.
"""

from __future__ import annotations

import ctypes
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.experts.liveness import Seen

_FILE = Path(__file__).with_name("signatures.json")


class MaskAdapter(Protocol):
    """One library's mask of one group of ranks. Calls are ordered by the stream that the library uses."""

    name: str

    def query(self) -> dict[int, Seen]:
        """Waits for the device."""

    def push(self, alive: Sequence[int]) -> list[int]:
        """Makes the library skip every rank that is not in `alive`, and send to those that are. Returns the ranks that changed."""

    def clean(self) -> None:
        """Forgets all masks. Collective in NCCL EP: every rank that is alive calls it."""


def recorded() -> dict[str, Any]:
    """The calls as they were when this was written: per library its source, version and parameters."""
    found: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return found


def check(library: str, target: Any) -> None:
    """Raises `NotProtected` when a call of `target` is missing or has other parameters than recorded."""
    entry = recorded()[library]
    for name, parameters in entry["calls"].items():
        function = getattr(target, name, None)
        seen = None if function is None else _parameters(function)
        if seen != parameters:
            raise NotProtected(
                f"{library} has other mask calls than this version knows",
                where=name,
                value="missing" if seen is None else f"({', '.join(seen)})",
                rule=f"({', '.join(parameters)}), as in {entry['source']} at {entry['version']}",
                remedy=f"a {library} of that version, or an adapter for this one; until then masks are left to the library's own timeouts",
            )


def _parameters(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ["unknown"]
    return [
        p.name if p.default is inspect.Parameter.empty else f"{p.name}={p.default!r}"
        for p in parameters
    ]


class _BufferMasks:
    """What DeepEP's and NIXL EP's buffers share: one call per rank, 0 where the rank is not masked."""

    library = ""
    prefix = ""

    def __init__(self, buffer: Any, ranks: int, *, own: int, device: str = "cuda") -> None:
        """`ranks`: length of the library's mask (NIXL: its capacity). `own` is never masked."""
        check(self.library, buffer)
        self.name, self._buffer, self._ranks, self._own, self._device = (
            self.library, buffer, ranks, own, device
        )  # fmt: skip

    def _raw(self) -> list[int]:
        import torch

        status = torch.zeros(self._ranks, dtype=torch.int32, device=self._device)
        getattr(self._buffer, f"{self.prefix}query_mask_buffer")(status)
        return [int(value) for value in status.tolist()]

    def query(self) -> dict[int, Seen]:
        return {rank: self._seen(value) for rank, value in enumerate(self._raw())}

    def _seen(self, value: int) -> Seen:
        return "masked" if value else "active"

    def push(self, alive: Sequence[int]) -> list[int]:
        changed = []
        for rank, value in enumerate(self._raw()):
            wanted = rank not in alive and rank != self._own
            if self._seen(value) != "unknown" and wanted != bool(value):
                getattr(self._buffer, f"{self.prefix}update_mask_buffer")(rank, wanted)
                changed.append(rank)
        return changed

    def clean(self) -> None:
        getattr(self._buffer, f"{self.prefix}clean_mask_buffer")()


class DeepEpMasks(_BufferMasks):
    """DeepEP's low-latency buffer, made with `enable_shrink`."""

    library, prefix = "deep_ep", "low_latency_"


class NixlEpMasks(_BufferMasks):
    """NIXL EP's buffer. Ranks that were never connected read -1 and are left alone: only `connect_ranks` may bring them in."""

    library = "nixl_ep"

    def _seen(self, value: int) -> Seen:
        return "unknown" if value < 0 else super()._seen(value)

    def clean(self) -> None:
        """NOTE: the library's own clean marks its whole capacity active, ranks that never were there included; so each connected rank is
        unmasked by itself."""
        for rank, value in enumerate(self._raw()):
            if value > 0:
                self._buffer.update_mask_buffer(rank, False)


_C = {
    "ncclEpGroup_t": ctypes.c_void_p, "cudaStream_t": ctypes.c_void_p, "int*": ctypes.c_void_p, "const int*": ctypes.c_void_p,
}  # fmt: skip


class NcclEpMasks:
    """NCCL EP through its C calls: `library` is a path or an opened `ctypes` library, `group` the address of an ncclEpGroup_t."""

    name = "nccl_ep"

    def __init__(
        self, library: Any, group: int, ranks: int, *, own: int, stream: int = 0, device: str = "cuda"
    ) -> None:  # fmt: skip
        entry = recorded()["nccl_ep"]
        opened = ctypes.CDLL(str(library)) if isinstance(library, (str, Path)) else library
        self._calls: dict[str, Any] = {}
        for name, parameters in entry["calls"].items():
            try:
                call = getattr(opened, name)
            except AttributeError:
                raise NotProtected(
                    "nccl_ep lacks a mask call", where=name, value=str(library),
                    rule=f"{entry['source']} {entry['version']} has it", remedy="that version of libnccl_ep.so",
                ) from None  # fmt: skip
            call.argtypes, call.restype = [_C[p] for p in parameters], ctypes.c_int
            self._calls[name] = call
        self._group, self._ranks, self._own, self._stream, self._device = (
            group,
            ranks,
            own,
            stream,
            device,
        )
        self._pushed: Any = None

    def query(self) -> dict[int, Seen]:
        import torch

        status = torch.full((self._ranks,), -1, dtype=torch.int32, device=self._device)
        self._call("ncclEpMaskQuery", self._group, status.data_ptr(), self._stream)
        return {
            rank: "active" if value == 1 else "masked" if value == 0 else "unknown"
            for rank, value in enumerate(status.tolist())
        }

    def push(self, alive: Sequence[int]) -> list[int]:
        before = self.query()
        wanted = [int(rank in alive or rank == self._own) for rank in range(self._ranks)]
        # Kept until the next push: the copy from it is ordered by the stream and may still be under way.
        self._pushed = (ctypes.c_int * self._ranks)(*wanted)
        self._call("ncclEpMaskUpdate", self._group, ctypes.addressof(self._pushed), self._stream)
        return [rank for rank, on in enumerate(wanted) if (before[rank] == "active") != bool(on)]

    def clean(self) -> None:
        self._call("ncclEpMaskClean", self._group, self._stream)
        self._call("ncclEpErrorClear", self._group)

    def timed_out(self) -> bool:
        """Whether a kernel masked a rank since the last `clean`: reads a host flag and waits for nothing."""
        error = ctypes.c_int(0)
        self._call("ncclEpGetAsyncError", self._group, ctypes.addressof(error))
        return bool(error.value)

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._calls[name](*arguments)
        if code:
            raise NotProtected(
                "NCCL EP refused a mask call", where=name, value=f"ncclResult_t {code}",
                rule="0", remedy="make the group with enable_mask (low-latency mode only)",
            )  # fmt: skip
