"""Blocks as large as a segment or larger: segments grow with them, and what can never fit is refused once, at the start."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from door import core, name, read_back, seal_chain

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv import disk

RECORD = b"namespace"
BLOCK = 3 << 20


def config(folder: Path, **keys: Any) -> Config:
    return Config.load({"disk_dir": str(folder), "arena_name": "big", **keys}, environ={})


def test_segments_are_as_configured_or_hold_several_blocks_within_the_cap(
    tmp_path: Path, rng: random.Random
) -> None:
    for _ in range(2000):
        payload = rng.choice([1, 4096, rng.randrange(1, 1 << 22), rng.randrange(1, 5 << 30)])
        cap = rng.choice([16 << 20, rng.randrange(16 << 20, 1 << 32), 64 << 30, 1 << 42])
        wanted = rng.choice([1 << 20, 256 << 20, 4 << 30])
        chosen = config(tmp_path, disk_bytes=cap, disk_segment_bytes=wanted)
        record = (payload + 2 * 4096 - 1) // 4096 * 4096
        try:
            size = disk.segment_bytes(chosen, payload)
        except NotProtected as error:
            assert record + 5 * 4096 > min(4 << 30, cap // 8 // 4096 * 4096), error
            continue
        assert record + 5 * 4096 <= size <= min(4 << 30, cap // 8)
        if size > wanted:
            assert size <= disk.BLOCKS_OF_SEGMENT * record + 5 * 4096
        if size < wanted:
            assert size == cap // 8 // 4096 * 4096


def test_the_core_takes_exactly_what_the_rule_says_fits(tmp_path: Path) -> None:
    """The rule and the core must agree to the byte: one more page, and the block is refused."""
    size = 1 << 20
    fits = size - 6 * 4096
    log = core.DiskLog.open(str(tmp_path / "log"), segment_bytes=size)
    space = log.add_namespace(RECORD)
    for payload, code in ((bytes(fits), "ok"), (bytes(fits + 1), "invalid")):
        chosen = config(tmp_path, disk_bytes=8 * size + (8 << 20), disk_segment_bytes=size)
        assert disk.segment_bytes(chosen, len(payload)) > size - (code == "invalid")
        key = core.DiskKey.seal(
            namespace=space,
            shard=0,
            position=0,
            epoch=1,
            block_hash=b"%d" % len(payload),
            parent_link=space,
            payload=payload,
        )
        try:
            assert log.append(key, payload) == code
        except core.CoreError as error:
            assert error.code == code
            assert "larger segments" in str(error)
    assert log.flush()
    assert log.close()


def test_blocks_larger_than_the_configured_segments_are_stored_and_come_back(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], tmp_path: Path
) -> None:
    arena = make_arena(slots=12, slot_bytes=BLOCK)
    writer = make_writer(arena, record=RECORD)
    chosen = config(tmp_path, disk_bytes="256MiB", disk_segment_bytes="1MiB")
    filler = disk.open_backing(chosen, 0, arena, writer, RECORD)
    assert filler is not None
    hashes = [name(i) for i in range(10)]
    seal_chain(writer, hashes)
    parents = [None, *hashes]
    filler._backing.spill([(h, parents[i], i) for i, h in enumerate(hashes)])
    assert filler.wait(60)
    assert filler._backing.stats()["spilled_blocks"] == 10
    assert filler._backing.trouble() == ""
    kept = {h: read_back(writer, h, parents[i]) for i, h in enumerate(hashes)}
    filler.close(10)
    filler.close_log()
    log = disk.open_reader(chosen, 0)
    assert log is not None
    assert {e.key.block_hash: log.read(e) for e in log.entries()} == kept
    sizes = {p.stat().st_size for p in disk.folder(chosen, 0).glob("seg-*")}
    assert max(sizes) > 2 * BLOCK, "several records share a segment"
    log.close()


def test_a_block_that_no_segment_can_hold_is_refused_at_the_start_with_what_to_raise(
    make_arena: Callable[..., Any],
    make_writer: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arena = make_arena(slots=4, slot_bytes=BLOCK)
    writer = make_writer(arena, record=RECORD)
    with caplog.at_level(logging.ERROR):
        filler = disk.open_backing(config(tmp_path, disk_bytes="16MiB"), 0, arena, writer, RECORD)
    assert filler is None
    (said,) = [r.getMessage() for r in caplog.records]
    assert said.startswith("NOT PROTECTED on disk")
    enough = 8 * (BLOCK + 6 * 4096)
    assert f"raise disk_bytes to {enough}" in said
    assert not list(tmp_path.glob("*/*/seg-*"))
    again = disk.open_backing(config(tmp_path, disk_bytes=enough), 0, arena, writer, RECORD)
    assert again is not None
    again.close(5)
    again.close_log()
