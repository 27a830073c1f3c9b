"""A small writer of a disk log that is killed or stopped at a random instant, while it appends, seals, collects and compresses.

Started with `python -S` by test_disk_kill.py. What was reported as durable it notes in a shared file, one byte per block, after
the fact: a kill can only make the notes too small. A block it drops is noted before.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import itertools
import mmap
import os
import sys
from typing import Any

BLOCKS = 1500  # names of one folder that are noted
BEYOND = 2 * BLOCKS  # where the names begin that an endless writer goes on with, unnoted
RECORD = b'{"engine": "killed"}'
ABSENT, DURABLE, DROPPED = range(3)
READY = BLOCKS  # the byte behind the blocks'
SEGMENT = 256 << 10


def load_core(path: str) -> Any:
    loader = importlib.machinery.ExtensionFileLoader("_core", path)
    core = importlib.util.module_from_spec(importlib.util.spec_from_loader("_core", loader))
    loader.exec_module(core)
    return core


def payload_of(seed: int, number: int) -> bytes:
    """Every third one does not shrink."""
    name = b"%d/%d" % (seed, number)
    size = 1 + int.from_bytes(hashlib.sha256(name).digest()[:4], "little") % 30_000
    if number % 3 == 0:
        return hashlib.shake_128(name).digest(size)
    return (hashlib.shake_128(name).digest(64) * (size // 64 + 1))[:size]


def key_of(core: Any, namespace: bytes, seed: int, number: int) -> tuple[Any, bytes]:
    payload = payload_of(seed, number)
    key = core.DiskKey.seal(
        namespace=namespace,
        shard=0,
        position=0,
        epoch=1,
        block_hash=b"%d/%d" % (seed, number),
        parent_link=namespace,
        payload=payload,
    )
    return key, payload


def options(mode: str) -> dict[str, Any]:
    """`mode`: words of "threads", "cap", "zstd", and "endless", which is the writer's own."""
    words = mode.split("+")
    return {
        "segment_bytes": SEGMENT,
        "window_ms": 2,
        "group_bytes": 128 << 10,
        "staging_bytes": 1 << 20,
        "live_ratio": 0.7,
        "idle_ms": 0,
        "backend": "threads" if "threads" in words else "best",
        "cap_bytes": 2 << 20 if "cap" in words else 0,
        "compress": "zstd" if "zstd" in words else "none",
    }


def main() -> None:
    core_path, folder, notes_path, seed_text, mode = sys.argv[1:]
    core, seed = load_core(core_path), int(seed_text)
    with open(notes_path, "r+b") as file:
        notes = mmap.mmap(file.fileno(), 0)
    try:
        log = core.DiskLog.open(folder, **options(mode))
        namespace = log.add_namespace(RECORD)
        notes[READY] = 1
        unnoted = itertools.count(BEYOND) if "endless" in mode.split("+") else range(0)
        for number in itertools.chain(range(BLOCKS), unnoted):
            key, payload = key_of(core, namespace, seed, number)
            log.append(key, payload, number)
            for ticket, status in log.poll():
                if status == "ok":
                    if ticket < BLOCKS:
                        notes[ticket] = DURABLE
                elif status == "fenced":
                    raise core.CoreError("fenced")
                else:
                    raise AssertionError(status)
            victim = number - 40
            # Dead records are what collection needs.
            if 0 <= victim < BLOCKS and number % 2 == 0 and notes[victim] == DURABLE:
                notes[victim] = DROPPED
                entry = log.find_link(key_of(core, namespace, seed, victim)[0].link)
                if entry is not None:
                    log.drop(entry)
        log.flush()
        log.close()
    except core.CoreError as error:
        code = {"fenced": 3, "busy": 4}.get(getattr(error, "code", "fenced"), 5)
        if code == 5:
            print(f"{error.code}: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(code)
    os._exit(0)


if __name__ == "__main__":
    main()
