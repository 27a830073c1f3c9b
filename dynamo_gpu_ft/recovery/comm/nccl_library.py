"""The part of libnccl that communicators need, by ctypes: loaded without a GPU, asked what it has, every status checked.

Below `nccl.py`. Signatures and constants are those of nccl.h (2.18 to 2.32); what a library offers is found by its symbols.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.recovery.comm.base import CommError

SUCCESS, IN_PROGRESS, TIMED_OUT = 0, 7, 8
SHRINK_ABORT = 1  # end what runs on the parent first; nothing is shared with it
UNDEFINED = -(2**31)
OPS = {"sum": 0, "max": 2, "min": 3}
TYPES = {
    "int8": 0, "uint8": 1, "bool": 1, "int32": 2, "int64": 4, "float16": 6, "float32": 7, "float64": 8, "bfloat16": 9,
    "float8_e4m3fn": 10, "float8_e5m2": 11,
}  # fmt: skip

OLDEST = 21800
"""Non-blocking communicators that can be aborted in every state, and the layout of `Config` that every later version accepts."""

SINCE = {
    "shrink": ("ncclCommShrink", 22703),
    "revoke": ("ncclCommRevoke", 22807),
    "grow": ("ncclCommGrow", 22902),
    "suspend": ("ncclCommSuspend", 22907),
}
"""What came after `OLDEST`: its symbol, and the version that has it first. Facts of NVIDIA's release notes; the symbols decide."""

SIMULATED = "simulatedNcclDone"
"""The one symbol that sim/nccl has beyond NCCL's: whether what was put on a stream is over."""


class UniqueId(ctypes.Structure):
    _fields_ = [("internal", c_char * 128)]


class Config(ctypes.Structure):
    """ncclConfig_t as of 2.18: a later library takes the fields that it does not find for unset, by `size` and `version`."""

    _fields_ = [
        ("size", c_size_t),
        ("magic", c_uint),
        ("version", c_uint),
        ("blocking", c_int),
        ("cga_cluster_size", c_int),
        ("min_ctas", c_int),
        ("max_ctas", c_int),
        ("net_name", c_char_p),
        ("split_share", c_int),
    ]

    @classmethod
    def non_blocking(cls) -> Config:
        u = UNDEFINED
        return cls(ctypes.sizeof(cls), 0xCAFEBEEF, OLDEST, 0, u, u, u, None, u)


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "ncclGetVersion": (POINTER(c_int),),
    "ncclGetUniqueId": (POINTER(UniqueId),),
    "ncclCommInitRankConfig": (POINTER(c_void_p), c_int, UniqueId, c_int, POINTER(Config)),
    "ncclCommAbort": (c_void_p,),
    "ncclCommGetAsyncError": (c_void_p, POINTER(c_int)),
    "ncclCommShrink": (c_void_p, POINTER(c_int), c_int, POINTER(c_void_p), POINTER(Config), c_int),
    "ncclCommRevoke": (c_void_p, c_int),
    "ncclCommGetUniqueId": (c_void_p, POINTER(UniqueId)),
    "ncclCommGrow": (c_void_p, c_int, POINTER(UniqueId), c_int, POINTER(c_void_p), POINTER(Config)),
    "ncclAllReduce": (c_void_p, c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p),
    "ncclBroadcast": (c_void_p, c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p),
    "ncclAllGather": (c_void_p, c_void_p, c_size_t, c_int, c_void_p, c_void_p),
    "ncclSend": (c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p),
    "ncclRecv": (c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p),
    "ncclGroupStart": (),
    "ncclGroupEnd": (),
    SIMULATED: (c_void_p, POINTER(c_uint64)),
}


class NcclLibrary:
    """`version` as NCCL codes it (23203 is 2.32.3); `features` are the keys of SINCE that it has. `path` is a file; empty: the one of
    torch's own packages, else the machine's. `simulated`: it has no GPU behind it, and is taken only where `path` names it.

    Raises `CommError` if there is none, or one that is too old."""

    def __init__(self, path: str = "") -> None:
        self.path, self._library = _loaded(path)
        self.simulated = getattr(self._library, SIMULATED, None) is not None
        if self.simulated and not path:
            raise CommError(f"the NCCL at {self.path} is a simulated one and was not asked for")
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._library, name, None)
            if function is not None:
                function.argtypes, function.restype = arguments, c_int
        number = c_int()
        self.call("ncclGetVersion", byref(number))
        self.version = number.value
        if self.version < OLDEST:
            raise CommError(
                f"NCCL {shown(self.version)} at {self.path} is too old: {shown(OLDEST)} or newer is needed"
            )
        self.features = frozenset(
            name for name, (symbol, _) in SINCE.items() if getattr(self._library, symbol, None)
        )

    def call(self, name: str, *arguments: Any) -> None:
        """Raises `CommError` for any status but success and in progress."""
        status = getattr(self._library, name)(*arguments)
        if status not in (SUCCESS, IN_PROGRESS):
            raise CommError(f"{name}: {self._said(status)}")

    def simulated_done(self, stream: c_void_p, mark: c_uint64) -> bool:
        """With a mark of 0: sets it to what was put on the stream until now; False unless that is nothing. Else whether all of that is over."""
        return bool(getattr(self._library, SIMULATED)(stream, byref(mark)))

    def progress(self, comm: c_void_p) -> bool:
        """True when nothing is in progress any more. Raises `CommError` for what went wrong meanwhile."""
        status = c_int(SUCCESS)
        self.call("ncclCommGetAsyncError", comm, byref(status))
        if status.value not in (SUCCESS, IN_PROGRESS):
            raise CommError(f"NCCL reports: {self._said(status.value)}")
        return status.value == SUCCESS

    def _said(self, status: int) -> str:
        text = self._library.ncclGetErrorString
        text.restype = c_char_p
        return f"{(text(status) or b'?').decode(errors='replace')} (status {status})"


def shown(version: int) -> str:
    """23203 -> "2.32.3"."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def _loaded(path: str) -> tuple[str, Any]:
    tried = []
    for candidate in [path] if path else _candidates():
        try:
            return candidate, ctypes.CDLL(candidate)
        except OSError as error:
            tried.append(f"{candidate}: {error}")
    raise CommError("no NCCL here: " + "; ".join(tried))


def _candidates() -> list[str]:
    """The one of torch's own packages first: two different NCCLs in a process do no good."""
    found = []
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec("nvidia.nccl")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            file = Path(folder, "lib", "libnccl.so.2")
            found += [os.fspath(file)] if file.exists() else []
    return [*found, "libnccl.so.2"]
