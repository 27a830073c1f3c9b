"""Typed stub of the disk backing's part of the native door (csrc/bind_backing.cpp); `_core` gives these names out.

Every call releases the GIL; every failure raises `CoreError`. See csrc/backing/backing.h for the promises.
"""

from collections.abc import Sequence

from dynamo_gpu_ft.native._core import Arena, Writer
from dynamo_gpu_ft.native._disk import DiskLog

def backed_prefix(
    *,
    arena: Arena | None,
    logs: Sequence[DiskLog | None],
    record: bytes,
    payload_bytes: int,
    shards: Sequence[int],
    block_hashes: Sequence[bytes],
    max_epoch: int,
) -> tuple[int, str, int, bytes]:
    """(usable blocks, why it ends, shard that ended it, per block 1 if some shard has it in its log only).

    As `Arena.usable_prefix`, over an arena and one log per shard (or none): a chain may go from one to the other and back. A place
    that does not know the namespace `record`, or has payloads of another length, holds nothing of it."""

class Fetched:
    job_id: int
    # per block: "ok" (read, verified, sealed in the arena, held once) | "present" | "cancelled" | "timed_out" | "chain" (behind the
    # first failure) | any other status name
    statuses: list[str]
    bytes: int  # read from disk
    seconds: float
    detail: str  # of the first failure

class Backing:
    """A shard's disk log behind its arena. Two threads of its own; blocks are (hash, parent hash or None, position)."""

    def __init__(self, writer: Writer, log: DiskLog, *, queue_blocks: int) -> None: ...
    def spill(self, blocks: Sequence[tuple[bytes, bytes | None, int]]) -> None:
        """Queues sealed blocks for the log and returns; beyond `queue_blocks` the oldest are left out."""
    def fetch(
        self, job_id: int, blocks: Sequence[tuple[bytes, bytes | None, int]], seconds: float
    ) -> None:
        """Queues consecutive blocks of a prefix to be brought into the arena, within `seconds`; `poll` answers."""
    def cancel(self, job_ids: Sequence[int]) -> None:
        """Returns at once; the jobs are still answered."""
    def poll(self) -> list[Fetched]: ...
    def wait(self, timeout: float) -> bool:
        """Until everything spilled is durable (or refused) and every fetch is over; False when the time is."""
    def stats(self) -> dict[str, int]:
        """spilled_blocks, spilled_bytes, spill_queue, dropped_queue, dropped_evicted, dropped_log, fetched_blocks, fetched_bytes."""
    def trouble(self) -> str:
        """The log's latest reason for refusing a block, "" when it takes them."""
    def close(self, timeout: float = 5.0) -> bool:
        """Spills what it can within `timeout`; the log stays open."""
