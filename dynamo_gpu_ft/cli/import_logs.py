"""`import --disk`: the blocks of a folder that `export` wrote into the disk logs of their shards, each a log of its own.

Everything was verified before; what one import needs of room, sizes and names is checked for all shards before the first byte is
written. The log digests each block once more on its way, and a block counts when its commit record is durable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli.progress import tracked
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import ArenaError, PortableError
from dynamo_gpu_ft.kv import disk, portable

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

#: As in csrc/disk: the longest namespace record, the first shard number that no log is named by.
MAX_RECORD, MAX_SHARDS = 4096, 100_000
#: Of the cap: the rest is what collecting needs. More would push its own first blocks out.
USABLE = 0.75
FLUSH_S = 600.0

#: (number of the namespace, identity, bytes) of one shard's blocks, parents first.
Payloads = Callable[[int], Iterator[tuple[int, "_core.Identity", bytes]]]


def fill(
    config: Config,
    manifest: portable.Manifest,
    spaces: list[list[_core.Identity]],
    payloads: Payloads,
) -> dict[str, Any]:
    """Stores verified blocks. Raises `PortableError` before anything is written, or later when the folder is no longer what was
    verified; `ArenaError` when a log stops in the middle of it (in use, no room, a failing disk). What was committed by then
    is whole."""
    counts = Counter(i.shard for found in spaces for i in found)
    records = [portable.unhex(space.record, "record") for space in manifest.namespaces]
    _check(config, manifest, records, counts)
    results: Counter[str] = Counter()
    for shard, count in sorted(counts.items()):
        results += _fill_one(
            config, manifest, records, shard, tracked(payloads(shard), count, f"shard {shard}")
        )
    return {
        "disk": str(disk.folder(config, 0).parent),
        "shards": sorted(counts),
        "stored": results["ok"],
        "present": results["present"],
    }


def _check(
    config: Config, manifest: portable.Manifest, records: list[bytes], counts: Counter[int]
) -> None:
    for record in records:
        if not 1 <= len(record) <= MAX_RECORD:
            raise portable.refuse(
                "record", len(record), f"namespace records of 1 to {MAX_RECORD} bytes"
            )
    for shard in counts:
        if shard >= MAX_SHARDS:
            raise portable.refuse("shard", shard, f"shards below {MAX_SHARDS}")
    disk.segment_bytes(config, manifest.payload_bytes)
    record_bytes = disk.record_bytes(manifest.payload_bytes)
    most = max(counts.values(), default=0)
    if most * record_bytes > USABLE * config.disk_bytes:
        raise PortableError(
            "the blocks do not fit into a disk log",
            where=config.disk_dir,
            value=most * record_bytes,
            rule=f"{USABLE:.0%} of disk_bytes, {config.disk_bytes}",
            remedy=f"raise DYN_GPU_FT_DISK_BYTES to {int(most * record_bytes / USABLE) + 1} or export fewer",
        )


def _fill_one(
    config: Config,
    manifest: portable.Manifest,
    records: list[bytes],
    shard: int,
    payloads: Iterator[tuple[int, _core.Identity, bytes]],
) -> Counter[str]:
    core, path = native.load(), disk.folder(config, shard)
    results: Counter[str] = Counter()
    log = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = disk.open_writer(config, shard, manifest.payload_bytes, manifest.digest)
        for record in records:
            log.add_namespace(record)
        for ticket, (_, identity, data) in enumerate(payloads):
            if log.append(_key(identity), data, ticket, FLUSH_S) == "present":
                results["present"] += 1
            results.update(said for _, said in log.poll())
        flushed = log.flush(FLUSH_S)
        results.update(said for _, said in log.poll())
        stats = log.stats()
        if not flushed or stats["reason"] != "ok":
            raise _stopped(
                str(path), stats["reason"], stats["reason_text"] or "the disk is too slow"
            )
    except core.CoreError as error:
        raise _stopped(str(path), error.code, str(error)) from error
    except OSError as error:
        raise _stopped(str(path), "io", str(error)) from error
    finally:
        if log is not None:
            log.close()
    return results


def _key(identity: _core.Identity) -> _core.DiskKey:
    return native.load().DiskKey(
        namespace=identity.namespace_id,
        shard=identity.shard,
        position=identity.position,
        epoch=identity.epoch,
        block_hash=identity.block_hash,
        parent_link=identity.parent_link,
        payload_bytes=identity.payload_bytes,
        link=identity.link,
        digest=identity.digest,
    )


def _stopped(path: str, code: str, text: str) -> ArenaError:
    return ArenaError(
        "the import stopped",
        where=path,
        value=text,
        rule=code,
        remedy="what was committed by then is whole; end a live engine of this log, free room, or name another folder",
    )
