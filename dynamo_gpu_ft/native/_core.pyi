"""Typed stub of the native door (csrc/bind*.cpp). Every call releases the GIL; every failure raises `CoreError`. Attributes are read-only.

The arena is one file in a memory file system. Slots hold one engine block of one shard each; the index maps
(namespace, shard, block hash) to slots; the ledger is an append-only log. See csrc/arena/README.md for the bytes.
"""

from collections.abc import Sequence
from typing import Final

from dynamo_gpu_ft.native._backing import Backing as Backing
from dynamo_gpu_ft.native._backing import Fetched as Fetched
from dynamo_gpu_ft.native._backing import backed_prefix as backed_prefix
from dynamo_gpu_ft.native._beats import Beat as Beat
from dynamo_gpu_ft.native._beats import HangJudge as HangJudge
from dynamo_gpu_ft.native._beats import HangWatch as HangWatch
from dynamo_gpu_ft.native._beats import look_at_heartbeats as look_at_heartbeats
from dynamo_gpu_ft.native._beats import make_heartbeat_file as make_heartbeat_file
from dynamo_gpu_ft.native._device import Device as Device
from dynamo_gpu_ft.native._device import DeviceEngine as DeviceEngine
from dynamo_gpu_ft.native._device import device_pace as device_pace
from dynamo_gpu_ft.native._device import device_plan as device_plan
from dynamo_gpu_ft.native._disk import DiskEntry as DiskEntry
from dynamo_gpu_ft.native._disk import DiskKey as DiskKey
from dynamo_gpu_ft.native._disk import DiskLog as DiskLog
from dynamo_gpu_ft.native._disk import disk_set_aside as disk_set_aside
from dynamo_gpu_ft.native._disk import disk_users as disk_users
from dynamo_gpu_ft.native._place import PlaceSizes as PlaceSizes
from dynamo_gpu_ft.native._place import place_examine as place_examine
from dynamo_gpu_ft.native._place import place_plan as place_plan
from dynamo_gpu_ft.native._place import place_recover as place_recover
from dynamo_gpu_ft.native._place import place_repair as place_repair
from dynamo_gpu_ft.native._place import place_room as place_room
from dynamo_gpu_ft.native._watch import LogReader as LogReader
from dynamo_gpu_ft.native._watch import NvmlWatcher as NvmlWatcher
from dynamo_gpu_ft.native._watch import TraceReader as TraceReader
from dynamo_gpu_ft.native._watch import WatchedGpu as WatchedGpu
from dynamo_gpu_ft.native._watch import WatchQueue as WatchQueue
from dynamo_gpu_ft.native._watch import WatchRecord as WatchRecord
from dynamo_gpu_ft.native._watch import log_readable as log_readable
from dynamo_gpu_ft.native._watch import parse_line as parse_line
from dynamo_gpu_ft.native._watch import parse_log as parse_log
from dynamo_gpu_ft.native._watch import trace_readable as trace_readable

class CoreError(RuntimeError):
    """`code` is the lower-case status name without prefix: "busy", "fenced", "no_space", "damaged", "mismatch", ..."""

    code: str

VERSION: Final[str]
DIGEST: Final[str]  # "xxh3_128" or "crc32c": what new arenas are made with

def build_info() -> dict[str, str]: ...
def link_of(identity: Identity) -> bytes:
    """The link that follows from the rest of an identity, by the digest `DIGEST`. "invalid" when its hash is none."""

def read_block(arena: Arena, slot: int, into: bytearray | memoryview | None = None) -> Identity:
    """The identity of the block sealed in `slot`; its payload is copied to `into` and verified there. Mutates nothing.

    Errors: "not_found" (nothing sealed there), "changed", "damaged", "digest", "invalid" (another size)."""

def digest(data: bytes | memoryview, kind: int | None = None) -> bytes:
    """16-byte digest of `data` with `DIGEST`, or with one of `digest_kinds` by its number ("not_found" beyond them)."""

def digest_kinds() -> list[tuple[str, str]]:
    """(name, instructions) of every digest that this build and this processor have. Instructions never change a value."""

def device_mix(data: bytes, first: int) -> int:
    """The 64-bit digest that the copy kernels take: of words of 8 bytes, number `first` on."""

class SlotInfo:
    slot: int
    state: str  # "empty" | "writing" | "sealed"
    namespace: int  # index into Arena.namespaces(); -1 when not sealed
    shard: int
    position: int  # block index inside its prefix
    epoch: int
    generation: int
    block_hash: bytes
    payload_bytes: int
    last_used: int
    held: bool  # held by an open request of this or the previous epoch
    protected: bool  # used a second time
    pinned_until: (
        int  # seconds since 1970; 2**32 - 1: until unpinned; 0: not pinned, or not any more
    )

class Prefix:
    """Answer of `Arena.usable_prefix`: how much is there and why it ends."""

    blocks: int  # usable leading blocks, over all asked shards
    reason: str  # "complete" | "missing" | "writing" | "chain" | "epoch" | "namespace" | "damaged"
    shard: int  # the shard that ended the prefix, -1 when complete

class Arena:
    """One mapped arena. Safe to share between threads."""

    @staticmethod
    def create(path: str, *, slot_bytes: int, slots: int, ledger_bytes: int) -> Arena:
        """Makes and allocates the whole file (mode 0600), publishes it by rename; blocks for the allocation.

        Errors: "exists", "no_space" (says bytes wanted and free), "invalid" (geometry), "io"."""
    @staticmethod
    def open(path: str, *, read_only: bool = False) -> Arena:
        """Maps an existing arena; linear in the index, never in the payload. Errors: "not_found", "damaged", "version", "mismatch", "io"."""
    @staticmethod
    def open_or_create(path: str, *, slot_bytes: int, slots: int, ledger_bytes: int) -> Arena:
        """Race-free between ranks. "mismatch" when an existing arena has another `slot_bytes` (names both)."""
    def close(self) -> None: ...
    path: str
    slot_bytes: int
    slots: int
    ledger_bytes: int
    digest_name: str
    epoch: int
    file_bytes: int
    def counts(self) -> dict[str, int]:
        """empty, writing, sealed, held, protected, pinned: a scan of the states. The last three are parts of sealed and may overlap."""
    def base_address(self) -> int:
        """Address of the mapping (for registering it with a device)."""
    def add_namespace(self, record: bytes) -> int:
        """Index of `record` (<= 4096 bytes), adding it if new. Errors: "full", "read_only", "timed_out"."""
    def namespaces(self) -> list[bytes]: ...
    def set_caps(self, *, protected_part: int, pinned_part: int) -> None:
        """Thousandths of the slots that protected (0-1000) and pinned (0-900) blocks may keep; for everybody who maps the arena."""
    def caps(self) -> tuple[int, int]:
        """(protected_part, pinned_part)."""
    def set_quota(self, namespace: int, slots: int) -> None:
        """The slots a namespace may have, 0: no limit. Above it the namespace evicts its own blocks first."""
    def usage(self) -> list[tuple[int, int, int]]:
        """(used, quota, blocks evicted because of the quota) of every namespace; used is counted by a scan."""
    def begin_epoch(self, token: bytes, *, takeover: bool = False, floor: int = 0) -> int:
        """Epoch of the engine start named by the 16-byte `token`: the first caller opens a new one above `floor` (the newest epoch of
        blocks kept outside this arena), later callers with the same token join it whatever their floor.
        "busy" (names the pid) if another token's writer is alive and not `takeover`; "fenced" if the token was superseded."""
    def attach_writer(
        self, *, shard: int, token: bytes, namespace: int, takeover: bool = False
    ) -> Writer:
        """The one live writer of `shard` in the token's epoch. Its lock dies with the process.

        Error "busy" while another lives, or has a claim open. With `takeover` that one is "fenced" instead: it may live and copy on, but seals
        and marks nothing any more, and a slot that it has open is given to nobody until its claim is over or its process is gone."""
    def usable_prefix(
        self,
        *,
        namespace: int,
        shards: Sequence[int],
        block_hashes: Sequence[bytes],
        max_epoch: int,
    ) -> Prefix:
        """Walks states and links (no payload): the longest prefix sealed in every shard. Microseconds per block; mutates nothing."""
    def scan(self) -> list[SlotInfo]:
        """Every non-empty slot."""
    def verify(self, slot: int) -> str:
        """Reads the payload of a sealed slot: "ok" | "digest" | "seal" | "changed" | "empty"."""
    def open_ledger(self, *, takeover: bool = False) -> Ledger: ...
    def read_ledger(self) -> LedgerRecords: ...

class Layout:
    """Where a block lives in the engine: regions of (base address, bytes from one block to the next, bytes of one block's fragment, block count).

    A block's payload is the concatenation of its fragments in region order; its length must equal the arena's payload length."""

    def __init__(self, regions: Sequence[tuple[int, int, int, int]]) -> None: ...
    block_bytes: int
    num_blocks: int

class Writer:
    """A shard's right to write, in one epoch. All methods raise "fenced" once the epoch has moved on."""

    shard: int
    epoch: int
    namespace: int
    def claim(self, *, block_hash: bytes, parent_hash: bytes | None, position: int) -> Claim | None:
        """A slot in WRITING (held once sealed), or None when an equal block with the right parent link is sealed already (touched and held).

        Errors: "no_parent" (parent not sealed), "full" (nothing evictable)."""
    def hold(self, block_hashes: Sequence[bytes]) -> None: ...
    def release(self, block_hashes: Sequence[bytes]) -> None: ...
    def touch(self, block_hashes: Sequence[bytes]) -> None:
        """Another request used this prefix: protects it. The last block gets the oldest stamp, so parents outlive children."""
    def pin(self, block_hashes: Sequence[bytes], *, until: int) -> int:
        """Keeps blocks until `until` (seconds since 1970; 2**32 - 1: until unpinned; 0: unpins), whoever dies; how many are pinned then.

        A pin is never shortened by another. Error: "full" (nothing was changed) above the arena's cap. Linear in the slots."""
    def find(self, *, block_hash: bytes, parent_hash: bytes | None) -> Read:
        """A sealed block for reading. Errors: "not_found", "chain", "epoch"."""
    def close(self) -> None: ...

class Identity:
    """What a block is for life, wherever it lies: all that its link was made from. Ids, links and digests have 16 bytes."""

    def __init__(
        self,
        *,
        namespace_id: bytes,
        shard: int,
        position: int,
        epoch: int,
        payload_bytes: int,
        block_hash: bytes,
        parent_link: bytes,
        link: bytes,
        digest: bytes,
    ) -> None: ...
    namespace_id: bytes
    shard: int
    position: int
    epoch: int
    payload_bytes: int
    block_hash: bytes
    parent_link: bytes
    link: bytes
    digest: bytes

class Claim:
    slot: int
    address: int  # of the slot's payload inside the mapping
    def seal(self) -> None:
        """Digests the payload in place, writes link and seal, publishes by one release-store."""
    def seal_as(self, identity: Identity, *, parent_hash: bytes | None, hold: bool = True) -> bool:
        """Seals the payload as the block it was when it was sealed first; False when that very block is sealed already.

        Errors: "invalid" (of another namespace, shard or claim), "mismatch", "epoch" (newer than the writer), "damaged" (its link does
        not follow from it), "digest", "no_parent", "chain" (the parent here is not the one it continues). The claim is over then."""
    def abandon(self) -> None: ...

class Read:
    slot: int
    address: int
    payload_bytes: int
    identity: Identity
    def verify(self) -> None:
        """Digest of the payload and re-check of the generation. Errors: "digest" (the block is dropped, so that it can be stored again), "changed"."""
    def recheck(self) -> None:
        """After copying out: the slot is still the one verified. Error: "changed"."""

class Block:
    """One block of a job. `block_id` indexes the layout; `parent_hash` is None for position 0."""

    def __init__(
        self, block_id: int, block_hash: bytes, parent_hash: bytes | None, position: int
    ) -> None: ...

class JobResult:
    job_id: int
    kind: str  # "store" | "load" | "pin" (then one status in all)
    # per block: "ok" | "present" | "no_parent" | "full" | "fenced" | "cancelled" | "not_found" | "chain" | "digest" |
    # "changed" | "epoch" | "damaged" | "device" | any other status name
    statuses: list[str]
    bytes: int  # payload bytes copied
    seconds: float
    detail: str  # text of the first failure, "" when there was none

class CopyEngine:
    """The CPU copy path: background threads that copy and digest in one pass. FIFO per kind; loads go before stores."""

    def __init__(self, writer: Writer, layout: Layout, *, threads: int = 1) -> None: ...
    def store(self, job_id: int, blocks: Sequence[Block]) -> None:
        """Queues; returns at once. Blocks of one job are sealed in order. New blocks start held."""
    def load(self, job_id: int, blocks: Sequence[Block]) -> None:
        """Queues; a bad block fails and with it all later ones of the job ("chain")."""
    def hold(self, block_hashes: Sequence[bytes]) -> None:
        """Queued behind earlier stores."""
    def release(self, block_hashes: Sequence[bytes]) -> None:
        """Queued behind earlier stores."""
    def touch(self, block_hashes: Sequence[bytes]) -> None:
        """Queued behind earlier stores."""
    def drop(self, block_hashes: Sequence[bytes]) -> None:
        """Queued behind earlier stores: `release`, and blocks that nobody holds then are taken out of the arena."""
    def pin(self, job_id: int, block_hashes: Sequence[bytes], *, until: int) -> None:
        """As `Writer.pin`, queued behind earlier stores: a job with one status, "not_found" when none of the blocks is there."""
    def cancel(self, job_ids: Sequence[int]) -> None:
        """Drops what has not started and waits for the block being copied (bounded by one block's copy); results say "cancelled"."""
    def poll(self) -> list[JobResult]:
        """Finished jobs since the last call; never blocks."""
    def wait(self, timeout: float) -> bool:
        """Blocks until all queued work is done or `timeout` seconds passed; True when done."""
    def backlog(self) -> tuple[int, int]:
        """(blocks, bytes) queued or running for store."""
    def close(self, timeout: float = 5.0) -> bool: ...

class Ledger:
    """The one live writer of the ledger."""

    used: int
    capacity: int  # of one half
    def append(self, kind: int, payload: bytes) -> None:
        """One record (generation, CRC); readable as soon as this returns. Errors: "full", "fenced"."""
    def begin_compaction(self) -> None:
        """Later appends go to the other half, unseen until commit. "busy" while a stopped former writer could still touch that half."""
    def commit_compaction(self) -> None:
        """The other half becomes the ledger by one release-store; a kill before leaves the old one whole."""
    def abort_compaction(self) -> None:
        """Later appends go to the old half again."""
    def close(self) -> None: ...

class LedgerRecords:
    records: list[tuple[int, bytes]]
    end: str  # "clean" | "torn" (bytes after the last whole record do not form one)

class StridedCopy:
    """Runs of `bytes` from source payload `source`, for every step along `dims` (count, bytes apart there, bytes apart here),
    outermost first, at most five."""

    def __init__(
        self,
        source: int,
        start: int,
        to: int,
        dims: Sequence[tuple[int, int, int]],
        bytes: int,
    ) -> None: ...

class Relayout:
    """A checked plan. "invalid" unless the copies stay inside their payloads and write each target byte exactly once."""

    def __init__(
        self, copies: Sequence[StridedCopy], source_bytes: Sequence[int], target_bytes: int
    ) -> None: ...
    source_bytes: list[int]
    target_bytes: int
    def run(
        self,
        sources: Sequence[bytes | bytearray | memoryview],
        target: bytearray | memoryview,
    ) -> None:
        """Converts contiguous buffers of exactly the plan's sizes. "invalid" for others."""
    def ranges(self, source: int) -> list[tuple[int, int]]:
        """(begin, bytes) of what `run` reads of a source payload: merged, in order."""

class Target:
    """A block to make, and the names of the source blocks it is made of, in order."""

    def __init__(
        self,
        block_hash: bytes,
        parent_hash: bytes | None,
        position: int,
        source_hashes: Sequence[bytes],
    ) -> None: ...

class Converted:
    # per target: "ok" (sealed and held) | "present" | why it and all after it ("chain") were not made: "not_found" |
    # "digest" | "changed" | "epoch" | "damaged" | "full" | "fenced" | "cancelled" | "timed_out" | ...
    statuses: list[str]
    bytes: int  # of targets sealed
    seconds: float
    detail: str  # text of the first failure, "" when there was none

class Converter:
    """Makes blocks of `writer`'s shard of sealed blocks of another layout, found in `source` under `namespace` and sealed
    there no later than `max_epoch`. Target block p goes through `phases[p % len(phases)]`; see kv/relayout.py.

    "invalid" or "mismatch" when plans, source and writer do not fit each other."""

    def __init__(
        self,
        writer: Writer,
        source: Arena,
        *,
        namespace: int,
        max_epoch: int,
        shards: Sequence[int],
        phases: Sequence[Relayout],
    ) -> None: ...
    @staticmethod
    def from_logs(
        writer: Writer,
        logs: Sequence[DiskLog],
        *,
        namespace_id: bytes,
        payload_bytes: int,
        max_epoch: int,
        shards: Sequence[int],
        phases: Sequence[Relayout],
    ) -> Converter:
        """The same from disk logs, one per shard in the order of `shards`, under the record with digest `namespace_id`. Reads only
        what the phases need, verified by chunks."""
    def convert(
        self, targets: Sequence[Target], *, source_parent: bytes | None, timeout: float
    ) -> Converted:
        """Converts consecutive blocks of one prefix, in this thread. Every source byte is verified before it is used; a block is
        sealed whole or not at all; the first failure ends the prefix. "invalid" (nothing done), "busy" (one call at a time)."""
    def cancel(self) -> None:
        """From any thread: a convert under way stops before its next block ("cancelled")."""
