"""Prefixes converted straight from disk logs: only the needed ranges are read, and bad records end the prefix."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from converter_world import BLOCKS, SOURCE, TARGETS, World
from door import code_of, core
from relayout_world import payload

from dynamo_gpu_ft.kv.convert import compiled


def logs_of(
    world: World, folder: Path, record: bytes, spoiled: tuple[int, int] | None = None
) -> list[Any]:
    """A log per source shard with the world's prefix; block `spoiled` continues a chain that is not there."""
    logs = []
    for shard in SOURCE.shards:
        log = core.DiskLog.open(str(folder / f"shard-{shard}"), digest=core.DIGEST)
        root = log.add_namespace(record)
        parent = root
        for at, block_hash in enumerate(world.names):
            data = payload(world.model, SOURCE, shard, at)
            key = core.DiskKey.seal(
                namespace=root,
                shard=shard,
                position=at,
                epoch=1,
                block_hash=block_hash,
                parent_link=b"x" * 16 if spoiled == (shard, at) else parent,
                payload=data,
            )
            log.append(key, data, at)
            parent = key.link
        assert log.flush(30.0)
        logs.append(log)
    return logs


@pytest.fixture
def world(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], rng: random.Random
) -> World:
    return World(make_arena, make_writer, rng, SOURCE)


def from_logs(made: Any, logs: list[Any], record: bytes, max_epoch: int = 9) -> Any:
    return core.Converter.from_logs(
        made.writer,
        [logs[s] for s in made.plan.source_shards],
        namespace_id=core.digest(record),
        payload_bytes=SOURCE.payload_bytes,
        max_epoch=max_epoch,
        shards=made.plan.source_shards,
        phases=compiled(made.plan),
    )


def test_a_prefix_in_disk_logs_is_converted_bit_for_bit(world: World, tmp_path: Path) -> None:
    logs = logs_of(world, tmp_path, b"record")
    for layout in TARGETS:
        for shard in layout.shards:
            made = world.target(layout, shard)
            made.converter = from_logs(made, logs, b"record")
            assert set(made.run()) == {"ok"}
            made.check(len(made.names))


def test_other_chains_epochs_and_namespaces_on_disk_are_not_used(
    world: World, tmp_path: Path
) -> None:
    logs = logs_of(world, tmp_path, b"record", spoiled=(1, 4))
    made = world.target(TARGETS[0], 0)
    made.converter = from_logs(made, logs, b"record")
    assert made.run() == ["ok"] * 4 + ["chain"] * (BLOCKS - 4)
    made.check(4)
    for record, epoch, reason in ((b"record", 0, "epoch"), (b"other", 9, "not_found")):
        other = world.target(TARGETS[0], 0)
        other.converter = from_logs(other, logs, record, epoch)
        assert other.run()[0] == reason
        other.check(0)
    assert (
        code_of(
            core.Converter.from_logs,
            made.writer,
            [],
            namespace_id=bytes(16),
            payload_bytes=1,
            max_epoch=1,
            shards=[0],
            phases=compiled(made.plan),
        )
        == "invalid"
    )
