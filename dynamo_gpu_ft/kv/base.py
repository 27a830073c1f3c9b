"""The `Tier` contract: a place outside the engine where KV snapshot blocks of one shard live.

`kv.arena.HostTier` (engine tensors in host memory) and `kv.device.DeviceTier` (engine tensors on a GPU) implement it over
the arena; `sim.tier.MemoryTier` is the small model that the contract suite holds them against.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from dynamo_gpu_ft.kv.blocks import BlockRef, JobResult


class Tier(Protocol):
    """One shard's writer and reader of a tier. Called from one thread; copies run on the tier's own threads.

    Promises: `store`, `load`, `hold`, `release`, `drop` and `poll` never block on a copy. A job's engine blocks must stay untouched by
    others until its result was polled or `cancel` returned. A block reported "ok" by a load has passed namespace, epoch,
    link and payload digest; any other status means its engine bytes are undefined. No method raises for a
    bad block: that is a status. `FencedError`-like conditions come as the status "fenced".
    """

    block_bytes: int  # payload of one block of this shard

    def store(self, job_id: int, blocks: Sequence[BlockRef]) -> None:
        """Queues a copy out. Blocks of one job seal in order; each new block starts held by its request."""

    def load(self, job_id: int, blocks: Sequence[BlockRef]) -> None:
        """Queues a copy in. The first bad block fails itself and all later blocks of the job."""

    def hold(self, block_hashes: Sequence[bytes]) -> None:
        """An open request needs these blocks: evict them last. Takes effect after the stores queued before."""

    def release(self, block_hashes: Sequence[bytes]) -> None:
        """Undoes one `hold` (or the hold a store began with). Takes effect after the stores queued before."""

    def drop(self, block_hashes: Sequence[bytes]) -> None:
        """As `release`; a block that nobody holds then is taken out of the tier at once."""

    def pin(self, job_id: int, block_hashes: Sequence[bytes], until: int) -> None:
        """Keeps blocks until `until` (seconds since 1970; `policy.UNTIL_UNPINNED`; 0 unpins) whoever dies, after the stores queued
        before. The job ends with one status: "ok", "not_found" (none of them is there), "full" (above the tier's cap: nothing
        was changed)."""

    def cancel(self, job_ids: Iterable[int]) -> None:
        """Drops what has not started and waits for the block being copied, at most that long. Results: "cancelled"."""

    def poll(self) -> list[JobResult]:
        """Results since the last call."""

    def backlog(self) -> tuple[int, int]:
        """(blocks, bytes) of stores queued or running."""

    def wait(self, timeout: float) -> bool:
        """Blocks until no work is queued or running, at most `timeout` seconds; True when there is none."""

    def close(self, timeout: float = 5.0) -> None:
        """Stops the threads (at most `timeout` seconds) and gives up the shard's writer lock. Sealed blocks stay."""
