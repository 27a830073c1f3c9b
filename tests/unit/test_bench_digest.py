"""The digest bench measures what it says: every way looks at every byte, and the rows name a baseline of the same run."""

from __future__ import annotations

import mmap

import pytest

from bench import digest
from bench.rows import Options
from dynamo_gpu_ft import native


def test_every_way_takes_any_block_of_the_buffer() -> None:
    memory, target = mmap.mmap(-1, 1 << 20), mmap.mmap(-1, 1 << 20)
    digest._fill_without_zeros(memory)
    core = native.load()
    ways = (
        digest._plain_ways(memory, target)
        | digest._our_ways(core, memory)
        | digest._other_ways(memory)
    )
    for way in ways.values():
        way(4096, 8192)
    assert ways["read"](0, len(memory)) is None  # no zero byte ends it early
    assert target[4096:12288] == memory[4096:12288]
    assert ways[f"{core.DIGEST}.{core.build_info()['digest_variant']}"](0, 4096) == core.digest(
        memory[:4096]
    )


def test_a_quick_run_gives_a_row_per_way_with_its_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "SIZES", (1 << 20,))
    rows = digest.measure(Options(quick=True, say=lambda line: None))
    names = {row.name for row in rows}
    assert {"digest.zlib.crc32.1MiB", "digest.hashlib.blake2b.1MiB"} <= names
    assert all(row.baseline and row.ratio and row.unit == "GB/s" for row in rows)
