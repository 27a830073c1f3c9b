"""KV of another layout as an engine finds it: in a former arena or in logs, by the scheduler's question and the worker's filler."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from converter_world import BLOCKS, SOURCE, TARGETS, World
from door import core, name, token
from relayout_world import payload

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.kv import disk, former, namespace
from dynamo_gpu_ft.kv.backed import Filled
from dynamo_gpu_ft.kv.blocks import BlockRef
from dynamo_gpu_ft.kv.fillers import ConvertFiller
from dynamo_gpu_ft.kv.geometry import ShardLayout
from dynamo_gpu_ft.kv.shelves import Shelves

ENGINE = {"model": "m"}


def record_of(layout: ShardLayout, **engine: str) -> bytes:
    return namespace.encode({**ENGINE, **engine}, [str(layout.tp)], geometry=layout)


class Place:
    """A former engine's KV in a folder, and a new engine of another layout that looks for it."""

    def __init__(self, world: World, folder: Path, layout: ShardLayout) -> None:
        self.world, self.layout = world, layout
        self.config = Config(arena_dir=str(folder), disk_dir=str(folder / "disk"))
        self.own = core.Arena.create(
            self.config.arena_path, slot_bytes=layout.payload_bytes, slots=64, ledger_bytes=1 << 16
        )
        self.record = record_of(layout)
        chosen = token()
        self.epoch = self.own.begin_epoch(chosen)
        space = self.own.add_namespace(self.record)
        self.writer = self.own.attach_writer(shard=0, token=chosen, namespace=space)
        self.hashes = world.names  # blocks of equal size have equal names
        if layout.block_tokens != SOURCE.block_tokens:
            count = BLOCKS * SOURCE.block_tokens // layout.block_tokens
            self.hashes = [name(i, "t") for i in range(count)]

    def names(self, tokens: int) -> Sequence[bytes]:
        return self.hashes if tokens == self.layout.block_tokens else self.world.names

    def restored(self, shelves: Shelves, count: int) -> list[str]:
        index = shelves.index(self.layout.shards, self.epoch, self.layout.block_tokens)
        usable = index.usable(self.names, len(self.hashes))
        assert usable.blocks == count
        refs = [
            BlockRef(i, self.hashes[i], self.hashes[i - 1] if i else None, i, sources)
            for i, sources in enumerate(usable.sources)
        ]
        return list(self.filled(shelves, refs).statuses)

    def filled(self, shelves: Shelves, refs: list[BlockRef]) -> Filled:
        filler = ConvertFiller(lambda wanted: shelves.converter(self.writer, 0, wanted))
        filler.fill(1, refs, 30.0)
        deadline = time.monotonic() + 60
        while not (done := filler.poll()):
            assert time.monotonic() < deadline
            time.sleep(0)
        filler.close(10.0)
        return done[0]

    def check(self, count: int) -> None:
        for i in range(count):
            parent = self.hashes[i - 1] if i else None
            read = self.writer.find(block_hash=self.hashes[i], parent_hash=parent)
            read.verify()
            found = ctypes.string_at(read.address, self.own.slot_bytes)
            assert found == payload(self.world.model, self.layout, 0, i)


@pytest.fixture
def world(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], rng: random.Random
) -> Iterator[World]:
    made = World(make_arena, make_writer, rng, SOURCE)
    record = record_of(SOURCE)
    chosen = token()
    for shard in SOURCE.shards:
        made.writers[shard].close()
        made.writers[shard] = make_writer(made.arena, shard, record, token=chosen)
        made.seal(shard, made.names, 0)
    return made


@pytest.mark.parametrize("layout", [t for t in TARGETS if t.tp == 1])
def test_a_former_arena_is_found_asked_and_converted_from(
    world: World, folder: Path, layout: ShardLayout
) -> None:
    place = Place(world, folder, layout)
    os.rename(world.arena.path, former.path_of(Path(place.config.arena_path)))
    shelves = Shelves(place.own, place.record, place.config)
    assert place.restored(shelves, len(place.hashes)) == ["ok"] * len(place.hashes)
    place.check(len(place.hashes))
    shelves.close()


@pytest.mark.parametrize("layout", [t for t in TARGETS if t.tp == 1])
def test_logs_of_a_former_engine_are_found_asked_and_converted_from(
    world: World, folder: Path, layout: ShardLayout
) -> None:
    place = Place(world, folder, layout)
    for shard in SOURCE.shards:
        path = disk.folder(place.config, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        log = core.DiskLog.open(str(path), segment_bytes=1 << 20)
        log.add_namespace(record_of(SOURCE))
        backing = core.Backing(world.writers[shard], log, queue_blocks=64)
        backing.spill(
            [(h, world.names[i - 1] if i else None, i) for i, h in enumerate(world.names)]
        )
        assert backing.close(20.0)
        log.close()
    shelves = Shelves(place.own, place.record, place.config)
    assert place.restored(shelves, len(place.hashes)) == ["ok"] * len(place.hashes)
    place.check(len(place.hashes))
    shelves.close()


def test_kv_of_another_model_in_the_former_arena_is_no_candidate(
    world: World, folder: Path
) -> None:
    place = Place(world, folder, TARGETS[0])
    os.rename(world.arena.path, former.path_of(Path(place.config.arena_path)))
    shelves = Shelves(place.own, record_of(TARGETS[0], weights="other"), place.config)
    index = shelves.index((0,), place.epoch, TARGETS[0].block_tokens)
    assert index.usable(place.names, 8).blocks == 0
    shelves.close()


def test_a_damaged_source_ends_the_converted_prefix(world: World, folder: Path) -> None:
    place = Place(world, folder, TARGETS[0])
    read = world.writers[1].find(block_hash=world.names[3], parent_hash=world.names[2])
    ctypes.c_uint8.from_address(read.address + read.payload_bytes // 2).value ^= 1
    os.rename(world.arena.path, former.path_of(Path(place.config.arena_path)))
    shelves = Shelves(place.own, place.record, place.config)
    statuses = place.restored(shelves, len(place.hashes))
    assert statuses[:4] == ["ok", "ok", "ok", "digest"]
    place.check(3)
    shelves.close()


def test_a_former_arena_that_is_forgotten_is_neither_found_nor_converted_from(
    world: World, folder: Path
) -> None:
    place = Place(world, folder, TARGETS[0])
    os.rename(world.arena.path, former.path_of(Path(place.config.arena_path)))
    shelves = Shelves(place.own, place.record, place.config)
    index = shelves.index((0,), place.epoch, TARGETS[0].block_tokens)
    sources = index.usable(place.names, 8).sources
    assert len(sources) == 8
    shelves.forget_former()
    assert index.usable(place.names, 8).blocks == 0
    refs = [BlockRef(0, place.hashes[0], None, 0, sources[0])]
    assert place.filled(shelves, refs).statuses == ("not_found",)
    shelves.close()


def test_blocks_that_reach_the_disk_later_are_seen_without_being_asked_for(
    world: World, folder: Path
) -> None:
    place = Place(world, folder, TARGETS[0])
    path = disk.folder(place.config, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = core.DiskLog.open(str(path), segment_bytes=1 << 20, window_ms=1)
    log.add_namespace(place.record)
    shelves = Shelves(place.own, place.record, place.config)
    index = shelves.index((0,), place.epoch, TARGETS[0].block_tokens)
    os.rename(world.arena.path, former.path_of(Path(place.config.arena_path)))
    older = Shelves(place.own, place.record, place.config)
    assert place.restored(older, 8) == ["ok"] * 8
    older.close()
    backing = core.Backing(place.writer, log, queue_blocks=64)
    names = [(h, place.hashes[i - 1] if i else None, i) for i, h in enumerate(place.hashes)]
    backing.spill(names)
    assert backing.close(20.0)
    index._own = dataclasses.replace(index._own, arena=None)  # as if it had evicted everything
    deadline = time.monotonic() + 30
    while index.usable(place.names, 8).runs != (("disk", 8),):
        assert time.monotonic() < deadline
        time.sleep(0)
    shelves.close()
    log.close()
