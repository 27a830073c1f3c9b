"""The plain data that crosses the KV room: runs of blocks, jobs on them and what became of each block.

The scheduler side makes runs, the worker side turns them into jobs of a tier. No effects here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dynamo_gpu_ft.kv.tail import Tail

Names = tuple[bytes, ...]

#: Statuses after which a stored block is safely in the tier.
STORED = frozenset({"ok", "present"})


@dataclass(frozen=True, slots=True)
class Sources:
    """The blocks of another layout that one block can be converted from: their names in token order, the name of the block
    before the first of them (None at the begin), the namespace record they are under, and whether in logs or in an arena."""

    names: tuple[bytes, ...]
    parent: bytes | None
    origin: bytes
    on_disk: bool = False


@dataclass(frozen=True, slots=True)
class BlockRef:
    """One engine block: where it is in the engine (`block_id`) and what it is (`block_hash`, opaque engine bytes).

    `parent_hash` is the hash of the block before it in the prefix, None at `position` 0. `sources` is None for a
    block that lies in its own layout. A `tail` is an open block under a name of its own (`kv.tail`): it stays in the arena."""

    block_id: int
    block_hash: bytes
    parent_hash: bytes | None
    position: int
    sources: Sources | None = None
    tail: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive blocks of one request's prefix, starting at block index `first`.

    For a load, `sources` has an entry per block (or none at all), and `timeout_s` is when computing is the better way (None:
    the tier's own limit). `tail`: the last block is a tail of so many tokens; 0 when all blocks are whole."""

    request_id: str
    first: int
    block_ids: tuple[int, ...]
    block_hashes: tuple[bytes, ...]
    parent_hash: bytes | None
    sources: tuple[Sources | None, ...] = ()
    timeout_s: float | None = None
    tail: int = 0

    def refs(self) -> list[BlockRef]:
        refs, parent = [], self.parent_hash
        pairs = zip(self.block_ids, self.block_hashes, strict=True)
        for offset, (block_id, block_hash) in enumerate(pairs):
            sources = self.sources[offset] if self.sources else None
            tail = self.tail > 0 and offset == len(self.block_ids) - 1
            refs.append(BlockRef(block_id, block_hash, parent, self.first + offset, sources, tail))
            parent = block_hash
        return refs


def make_run(
    request_id: str, first: int, block_ids: Sequence[int], prefix_hashes: Sequence[bytes]
) -> Run:
    """The run of `block_ids` that begins at block index `first` of the prefix named by `prefix_hashes`."""
    parent = bytes(prefix_hashes[first - 1]) if first else None
    hashes = tuple(bytes(h) for h in prefix_hashes[first : first + len(block_ids)])
    return Run(request_id, first, tuple(block_ids), hashes, parent)


@dataclass(frozen=True, slots=True)
class Pin:
    """Blocks that must stay when their request is over, until a time in seconds since 1970; 0 ends their pin."""

    request_id: str
    block_hashes: tuple[bytes, ...]
    until: int


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of a job: one status per block, in order ("ok", "present", "cancelled", "digest", ...).

    `moved` says for a load what came from where: (source, bytes, seconds); empty when all of `bytes` came from the arena."""

    job_id: int
    kind: str  # "store" | "load" | "pin" (then one status in all)
    statuses: tuple[str, ...]
    bytes: int
    seconds: float
    moved: tuple[tuple[str, int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usable:
    """Precise answer to "how much of this prefix can be restored": leading blocks, and why it ends there.

    `runs` say where they come from, in prefix order: ("arena" | "disk" | "convert", blocks). The blocks of the last run, if
    it is "convert", have their `sources`. With a `tail`, the last of `blocks` is that one."""

    blocks: int
    reason: str  # "complete" | "missing" | "writing" | "chain" | "epoch" | "namespace" | "damaged"
    shard: int = -1  # the shard that ended the prefix; -1 when complete
    runs: tuple[tuple[str, int], ...] = ()
    sources: tuple[Sources, ...] = ()
    tail: Tail | None = None


@dataclass(slots=True)
class PendingStore:
    """A store job that the tier has not finished: the policy's view of the backlog."""

    job_id: int
    request_id: str
    first: int
    block_ids: tuple[int, ...]
    bytes: int
    open: bool = True  # its request is still open
    sequence: int = field(default=0)  # order of submission
    tail: Tail | None = None
    block_hashes: Names = ()
