"""The arena as a tier: opening it for an engine, joining an epoch, and the host-memory copy path.

Sits between the engine adapters and the native core. `join` is what every process of an engine does at start;
`HostTier` is the `Tier` for engine tensors that the CPU can read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import ArenaError, NotProtected
from dynamo_gpu_ft.kv.blocks import BlockRef, JobResult
from dynamo_gpu_ft.kv.layout import BlockLayout

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core


def slots_for(arena_bytes: int, ledger_bytes: int, slot_bytes: int) -> int:
    """How many slots of `slot_bytes` fit `arena_bytes` beside the ledger and 512 bytes of index per slot."""
    page = 4096
    stride = (slot_bytes + page - 1) // page * page + 512
    slots = (arena_bytes - 2 * ledger_bytes) // stride
    if slots < 2:
        raise NotProtected(
            "the arena is too small for this model's KV blocks",
            where="arena_bytes",
            value=arena_bytes,
            rule=f"room for two blocks of {slot_bytes} bytes beside a ledger of 2 x {ledger_bytes} bytes",
            remedy="raise DYN_GPU_FT_ARENA_BYTES",
        )
    return int(slots)


def token_of(engine_id: str) -> bytes:
    """16 bytes that name one start of one engine; every rank derives the same from the engine's own id."""
    return hashlib.sha256(engine_id.encode()).digest()[:16]


def _explain(error: _core.CoreError, path: Path) -> ArenaError:
    remedy = {
        "no_space": "set DYN_GPU_FT_ARENA_DIR to a file system with room, or lower DYN_GPU_FT_ARENA_BYTES",
        "mismatch": "another model or block size owns this arena: set DYN_GPU_FT_ARENA_NAME, or remove the file",
        "busy": "another live engine writes this arena: give this one its own DYN_GPU_FT_ARENA_NAME",
        "invalid": "check DYN_GPU_FT_ARENA_BYTES and DYN_GPU_FT_LEDGER_BYTES",
        "damaged": "look at it with `dynamo-gpu-ft inspect`, then remove the file",
        "version": "remove the file: it was made by another version",
    }.get(error.code, "run `dynamo-gpu-ft doctor`")
    return ArenaError(
        "the arena cannot be used",
        where=str(path),
        value=str(error),
        rule=error.code,
        remedy=remedy,
    )


def open_or_create(path: Path, *, slot_bytes: int, config: Config) -> _core.Arena:
    """Opens the arena for blocks of `slot_bytes`, making it when there is none. Raises `ArenaError` or `NotProtected`."""
    core = native.load()
    slots = slots_for(config.arena_bytes, config.ledger_bytes, slot_bytes)
    try:
        return core.Arena.open_or_create(
            str(path), slot_bytes=slot_bytes, slots=slots, ledger_bytes=config.ledger_bytes
        )
    except core.CoreError as error:
        raise _explain(error, path) from error


def open_existing(path: Path, *, read_only: bool = False) -> _core.Arena:
    """Opens an arena that some other process made. Raises `ArenaError`."""
    core = native.load()
    try:
        return core.Arena.open(str(path), read_only=read_only)
    except core.CoreError as error:
        raise _explain(error, path) from error


def begin_epoch(arena: _core.Arena, engine_id: str, *, takeover: bool, floor: int = 0) -> int:
    """Joins (or, first of its engine, opens) the epoch of `engine_id`, a new one above `floor`.

    Raises `ArenaError` "busy" or "fenced"."""
    core = native.load()
    try:
        return arena.begin_epoch(token_of(engine_id), takeover=takeover, floor=floor)
    except core.CoreError as error:
        raise _explain(error, Path(arena.path)) from error


def attach_writer(
    arena: _core.Arena, *, shard: int, engine_id: str, record: bytes, takeover: bool
) -> _core.Writer:
    """The shard's right to write in its engine's epoch. Raises `ArenaError`."""
    core = native.load()
    try:
        namespace = arena.add_namespace(record)
        return arena.attach_writer(
            shard=shard, token=token_of(engine_id), namespace=namespace, takeover=takeover
        )
    except core.CoreError as error:
        raise _explain(error, Path(arena.path)) from error


def apply_limits(arena: _core.Arena, *, namespace: int, config: Config) -> None:
    """Writes the caps of the eviction policy and this namespace's quota into the arena. Raises `ArenaError`."""
    core = native.load()
    quota = config.namespace_quota
    try:
        arena.set_caps(
            protected_part=round(config.protected_share * 1000),
            pinned_part=round(config.pinned_share * 1000),
        )
        arena.set_quota(namespace, max(1, int(arena.slots * quota)) if quota else 0)
    except core.CoreError as error:
        raise _explain(error, Path(arena.path)) from error


class HostTier:
    """`Tier` over the arena for engine tensors in host memory: the native copy engine does everything.

    The caller keeps the tensors behind `layout` alive until `close` returned."""

    def __init__(self, writer: _core.Writer, layout: BlockLayout, *, threads: int = 1) -> None:
        self._core = native.load()
        self._writer = writer
        self._engine = self._core.CopyEngine(
            writer, self._core.Layout(layout.native()), threads=threads
        )
        self.block_bytes = layout.block_bytes

    def _native(self, blocks: Sequence[BlockRef]) -> list[_core.Block]:
        make = self._core.Block
        return [make(b.block_id, b.block_hash, b.parent_hash, b.position) for b in blocks]

    def store(self, job_id: int, blocks: Sequence[BlockRef]) -> None:
        self._engine.store(job_id, self._native(blocks))

    def load(self, job_id: int, blocks: Sequence[BlockRef]) -> None:
        self._engine.load(job_id, self._native(blocks))

    def hold(self, block_hashes: Sequence[bytes]) -> None:
        self._engine.hold(block_hashes)

    def release(self, block_hashes: Sequence[bytes]) -> None:
        self._engine.release(block_hashes)

    def drop(self, block_hashes: Sequence[bytes]) -> None:
        self._engine.drop(block_hashes)

    def pin(self, job_id: int, block_hashes: Sequence[bytes], until: int) -> None:
        self._engine.pin(job_id, block_hashes, until=until)

    def cancel(self, job_ids: Iterable[int]) -> None:
        self._engine.cancel(list(job_ids))

    def poll(self) -> list[JobResult]:
        return [
            JobResult(r.job_id, r.kind, tuple(r.statuses), r.bytes, r.seconds)
            for r in self._engine.poll()
        ]

    def backlog(self) -> tuple[int, int]:
        return self._engine.backlog()

    def wait(self, timeout: float) -> bool:
        return self._engine.wait(timeout)

    def close(self, timeout: float = 5.0) -> None:
        self._engine.close(timeout)
        self._writer.close()
