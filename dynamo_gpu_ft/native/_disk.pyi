"""Typed stub of the disk log's part of the native door (csrc/bind_disk.cpp); `_core` gives these names out.

Every call releases the GIL; every failure raises `CoreError`. See csrc/disk/README.md for the bytes and csrc/disk/log.h for the promises.
"""

from collections.abc import Sequence
from typing import Any

def disk_users(folder: str) -> tuple[int, bool]:
    """(pid of the writer that has the log open or 0, whether somebody reads it), by its locks. Errors: "not_found", "invalid"."""

def disk_set_aside(folder: str, to: str, *, even_if_read: bool = False) -> None:
    """Renames the folder of a log that nobody has open. "busy" when somebody has; who opens it afterwards begins a new one."""

class DiskKey:
    """A block's identity as it was sealed in the arena; the disk log stores it verbatim. Ids, links and digests have 16 bytes."""

    namespace: bytes  # digest of the namespace record
    shard: int
    position: int
    epoch: int
    block_hash: bytes
    parent_link: bytes  # the namespace at position 0
    payload_bytes: int
    link: bytes
    digest: bytes
    def __init__(
        self,
        *,
        namespace: bytes,
        shard: int,
        position: int,
        epoch: int,
        block_hash: bytes,
        parent_link: bytes,
        payload_bytes: int,
        link: bytes,
        digest: bytes,
    ) -> None: ...
    @staticmethod
    def seal(
        *,
        namespace: bytes,
        shard: int,
        position: int,
        epoch: int,
        block_hash: bytes,
        parent_link: bytes,
        payload: bytes | bytearray | memoryview,
    ) -> DiskKey:
        """The identity the arena would have given `payload`: digest and link computed with `DIGEST`."""

class DiskEntry:
    """A committed record and where it lies."""

    key: DiskKey
    segment: int
    offset: int
    stored_bytes: int
    codec: str  # "none" | "zstd" | "lz4"

class DiskLog:
    """The disk log of one shard: a folder with one live writer and any number of readers. See csrc/disk/README.md."""

    @staticmethod
    def open(
        folder: str,
        *,
        read_only: bool = False,
        takeover: bool = False,
        segment_bytes: int = 0,
        cap_bytes: int = 0,
        staging_bytes: int = 0,
        group_bytes: int = 0,
        window_ms: int = 20,
        depth: int = 32,
        read_threads: int = 1,
        idle_ms: int = 10000,
        live_ratio: float = 0.5,
        compress: str = "none",
        backend: str = "best",
        direct: bool = True,
        digest: str = "",
        faults: Sequence[tuple[str, int, int, int]] = [],
    ) -> DiskLog:
        """Recovers what is there. 0: the default. `compress`: "none", "zstd", "lz4", in idle time. `backend`: "best", "io_uring",
        "threads". `read_threads`: how many verify what one `read_into` or fetch reads. `faults`: (kind "read" | "write" | "sync", first, how many, errno), for tests.

        Errors: "busy" (names the pid) without `takeover`; "not_found" (reader), "invalid", "mismatch", "damaged". A folder that can
        be read but not written opens with appends refused: see `stats`."""
    def add_namespace(self, record: bytes) -> bytes:
        """Its id; a block's namespace must be added before the block. "invalid" unless 1 to 4096 bytes."""
    def append(
        self,
        key: DiskKey,
        payload: bytes | bytearray | memoryview,
        ticket: int = 0,
        timeout: float = 30.0,
    ) -> str:
        """ "ok" (on its way: `poll` reports `ticket` once) or "present". Waits for staging memory, never for the disk.

        Errors: "digest", "timed_out", "invalid"; "no_space", "io", "read_only", "fenced": appends are refused, `stats` says why."""
    def poll(self) -> list[tuple[int, str]]:
        """(ticket, status) of appends settled since the last call; "ok": durable."""
    def flush(self, timeout: float = 30.0) -> bool:
        """Commits what was appended. False: not all of it is settled yet."""
    def find(
        self, namespace: bytes, shard: int, block_hash: bytes, position: int = -1
    ) -> list[DiskEntry]:
        """From memory, newest epoch first; any position when negative."""
    def find_link(self, link: bytes) -> DiskEntry | None: ...
    def entries(self) -> list[DiskEntry]: ...
    def namespaces(self) -> list[bytes]: ...
    def read(
        self, entry: DiskEntry, start: int = 0, size: int | None = None, timeout: float = 30.0
    ) -> bytes:
        """Verified bytes of the payload. Errors: "not_found", "digest", "damaged", "io", "mismatch", "timed_out", "invalid"."""
    def read_into(
        self,
        wanted: Sequence[tuple[DiskEntry, Sequence[tuple[int, int, int]]]],
        timeout: float = 30.0,
    ) -> list[tuple[str, str]]:
        """Many at once: (entry, [(from, bytes, address), ...]) gives (status, text) each. The addresses are the caller's risk."""
    def touch(self, links: Sequence[bytes]) -> None: ...
    def hold(self, links: Sequence[bytes]) -> None:
        """Counted; held blocks are the last that the byte cap takes."""
    def release(self, links: Sequence[bytes]) -> None: ...
    def drop(self, entry: DiskEntry) -> None: ...
    def refresh(self) -> None:
        """Reader: takes in what was committed or collected since; one small read when nothing was."""
    def stats(self) -> dict[str, Any]:
        """Counts, and "writable", "reason", "reason_text" (why appends are refused), "backend", "direct", "digest"."""
    def close(self, timeout: float = 30.0) -> bool:
        """Commits what was appended. False: something was still under way and was left to its thread."""
