"""The disk log of each shard as the arena's backing: where it lies, who opens it how, and its two faces in Python.

Each worker writes its own shard's log; the scheduler's process reads all of them to know what can be restored. A log that
cannot be opened or written leaves the arena as it is: the reason is said once, and blocks stay in memory only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import GpuFtError, NotProtected
from dynamo_gpu_ft.kv.fillers import DiskFiller
from dynamo_gpu_ft.metrics import metrics

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

_log = logging.getLogger("dynamo_gpu_ft.kv")

#: A segment holds at least so many blocks where the cap allows it: collecting and sealing go by whole segments.
BLOCKS_OF_SEGMENT = 8
#: The format's: pages, what a segment needs beside its blocks, its greatest size, and how many of them a cap holds.
PAGE, AROUND, LARGEST_SEGMENT, SEGMENTS_OF_CAP = 4096, 5 * 4096, 4 << 30, 8


def record_bytes(payload_bytes: int) -> int:
    """What a block takes on disk: a header page, and whole pages of payload."""
    return PAGE + -(-payload_bytes // PAGE) * PAGE


def segment_bytes(config: Config, payload_bytes: int) -> int:
    """The size of a log's files for blocks of `payload_bytes`: the configured one, or what holds several of them. Pure.

    Raises `NotProtected` when not even one block fits."""
    record = record_bytes(payload_bytes)
    largest = min(LARGEST_SEGMENT, config.disk_bytes // SEGMENTS_OF_CAP // PAGE * PAGE)
    least = record + AROUND
    if least > LARGEST_SEGMENT:
        raise NotProtected(
            "a KV block is too large for a disk log",
            value=payload_bytes,
            rule=f"a block and {AROUND + PAGE} bytes fit into a segment of {LARGEST_SEGMENT}",
            remedy="use smaller KV blocks",
        )
    if least > largest:
        raise NotProtected(
            "a KV block is too large for the room of the disk log",
            value=payload_bytes,
            rule=f"disk_bytes / {SEGMENTS_OF_CAP} holds a block and {AROUND + PAGE} bytes",
            remedy=f"raise disk_bytes to {least * SEGMENTS_OF_CAP} or more",
        )
    several = BLOCKS_OF_SEGMENT * record + AROUND
    return min(max(config.disk_segment_bytes, several), largest)


def folder(config: Config, shard: int) -> Path:
    """Where the log of `shard` lies; `disk_dir` must not be empty."""
    return Path(config.disk_dir) / config.arena_name / f"shard-{shard}"


def shards_on_disk(config: Config) -> list[int]:
    """The shards that have a log, of whatever engine."""
    if not config.disk_dir:
        return []
    named = (path.name.removeprefix("shard-") for path in folder(config, 0).parent.glob("shard-*"))
    return sorted(int(number) for number in named if number.isdecimal() and len(number) < 6)


def open_backing(
    config: Config, shard: int, arena: _core.Arena, writer: _core.Writer, record: bytes
) -> DiskFiller | None:
    """The shard's log behind its arena; None when there is to be none or it cannot be had (said in the log)."""
    if not config.disk_dir:
        return None
    core = native.load()
    path = folder(config, shard)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened = open_writer(config, shard, arena.slot_bytes, arena.digest_name)
        opened.add_namespace(record)
        queued = max(1, config.disk_lag_bytes // arena.slot_bytes)
        return DiskFiller(core.Backing(writer, opened, queue_blocks=queued), opened)
    except (OSError, GpuFtError, core.CoreError) as error:
        _log.error("NOT PROTECTED on disk: the log %s cannot be opened: %s", path, error)
        metrics().set("disk_protected", 0)
        return None


def open_writer(config: Config, shard: int, payload_bytes: int, digest: str) -> _core.DiskLog:
    """The shard's log for writing blocks of one size. Raises `NotProtected` (they can never fit) and `CoreError`."""
    return native.load().DiskLog.open(
        str(folder(config, shard)),
        cap_bytes=config.disk_bytes,
        segment_bytes=segment_bytes(config, payload_bytes),
        compress=config.disk_compress,
        read_threads=config.copy_threads,
        takeover=config.takeover,
        digest=digest,
    )


def open_reader(config: Config, shard: int) -> _core.DiskLog | None:
    """The shard's log for reading; None when there is none or it cannot be read."""
    core = native.load()
    path = folder(config, shard)
    if not path.is_dir():
        return None
    try:
        return core.DiskLog.open(str(path), read_only=True, read_threads=config.copy_threads)
    except core.CoreError as error:
        _log.warning("the log %s is not read: %s", path, error)
        return None


def epoch_floor(config: Config, shards: Sequence[int]) -> int:
    """The newest epoch of any block in the shards' logs: an arena made after a reboot must begin above it."""
    newest = 0
    for shard in shards if config.disk_dir else ():
        log = open_reader(config, shard)
        if log is not None:
            newest = max(newest, int(log.stats()["max_epoch"]))
            log.close()
    return newest
