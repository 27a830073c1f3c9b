"""Loads the native core on demand, or says why it is not there.

The only door between Python and `csrc/`: everybody asks `load()` and gets the typed module described in `_core.pyi`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, cast

from dynamo_gpu_ft.errors import CoreUnavailable

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

__all__ = ["Core", "CoreUnavailable", "available", "load"]


class Core(Protocol):
    """What the core module offers; `_core.pyi` says what each of them does."""

    VERSION: str
    DIGEST: str
    CoreError: type[_core.CoreError]
    Arena: type[_core.Arena]
    Layout: type[_core.Layout]
    Block: type[_core.Block]
    CopyEngine: type[_core.CopyEngine]
    StridedCopy: type[_core.StridedCopy]
    Relayout: type[_core.Relayout]
    Target: type[_core.Target]
    Converter: type[_core.Converter]
    Device: type[_core.Device]
    DeviceEngine: type[_core.DeviceEngine]
    DiskLog: type[_core.DiskLog]
    DiskKey: type[_core.DiskKey]
    DiskEntry: type[_core.DiskEntry]
    Identity: type[_core.Identity]
    Backing: type[_core.Backing]
    WatchQueue: type[_core.WatchQueue]
    Beat: type[_core.Beat]
    HangWatch: type[_core.HangWatch]
    HangJudge: type[_core.HangJudge]
    WatchRecord: type[_core.WatchRecord]
    NvmlWatcher: type[_core.NvmlWatcher]
    WatchedGpu: type[_core.WatchedGpu]
    LogReader: type[_core.LogReader]
    TraceReader: type[_core.TraceReader]

    def look_at_heartbeats(self, path: str) -> list[dict[str, Any]]: ...
    def log_readable(self, path: str | PathLike[str]) -> None: ...
    def trace_readable(self, path: str | PathLike[str] = "") -> None: ...
    def parse_line(self, line: bytes) -> _core.WatchRecord | None: ...
    def parse_log(
        self,
        source: bytes | bytearray | memoryview | str | PathLike[str],
        *,
        format: str = "auto",
        window: float = 1.0,
    ) -> list[_core.WatchRecord]: ...
    def build_info(self) -> dict[str, str]: ...
    def make_heartbeat_file(self, path: str, ranks: int) -> None: ...
    def link_of(self, identity: _core.Identity) -> bytes: ...
    def read_block(
        self, arena: _core.Arena, slot: int, into: bytearray | memoryview | None = None
    ) -> _core.Identity: ...
    def digest(self, data: bytes | memoryview) -> bytes: ...
    def backed_prefix(
        self,
        *,
        arena: _core.Arena | None,
        logs: Sequence[_core.DiskLog | None],
        record: bytes,
        payload_bytes: int,
        shards: Sequence[int],
        block_hashes: Sequence[bytes],
        max_epoch: int,
    ) -> tuple[int, str, int, bytes]: ...
    def disk_users(self, folder: str) -> tuple[int, bool]: ...
    def disk_set_aside(self, folder: str, to: str, *, even_if_read: bool = False) -> None: ...
    def device_mix(self, data: bytes, first: int) -> int: ...
    def place_room(
        self, sizes: _core.PlaceSizes, loads: bytes, alive: bytes, domains: bytes
    ) -> int: ...
    def place_plan(
        self,
        sizes: _core.PlaceSizes,
        loads: bytes,
        alive: bytes,
        domains: bytes,
        old: bytes | None,
        max_moves: int,
    ) -> bytes: ...
    def place_recover(
        self,
        sizes: _core.PlaceSizes,
        loads: bytes,
        alive: bytes,
        domains: bytes,
        old: bytes | None,
        max_moves: int,
    ) -> bytes: ...
    def place_repair(
        self,
        sizes: _core.PlaceSizes,
        loads: bytes,
        alive: bytes,
        domains: bytes,
        old: bytes | None,
        max_moves: int,
    ) -> bytes: ...
    def place_examine(
        self, sizes: _core.PlaceSizes, loads: bytes, alive: bytes, domains: bytes, table: bytes
    ) -> tuple[tuple[int, int], tuple[int, int], list[tuple[int, int]], list[int], list[int]]: ...


def load() -> Core:
    """The core module. The first call loads a shared library; later calls cost a dictionary lookup.

    Raises `CoreUnavailable` with the loader's own words and the command that mends it.
    """
    try:
        return cast(Core, importlib.import_module("dynamo_gpu_ft.native._core"))
    except ImportError as error:
        raise CoreUnavailable(
            "the native core cannot be loaded",
            where="dynamo_gpu_ft.native._core",
            value=str(error),
            rule="it is built by g++ when the package is installed",
            remedy="pip install -e . (needs g++ and Python's headers), or python setup.py build_ext --inplace",
        ) from error


def available() -> tuple[bool, str]:
    """(True, version and digest) or (False, why not). Never raises."""
    try:
        core = load()
    except CoreUnavailable as error:
        return False, str(error)
    return True, f"version {core.VERSION}, digest {core.DIGEST}"
