"""Prefixes converted between arenas: bit for bit, in order, whole or not at all, and nothing of which a source byte was not verified."""

from __future__ import annotations

import ctypes
import dataclasses
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from converter_world import BLOCKS, HND, SOURCE, TARGETS, World
from door import code_of, core, name, token
from relayout_world import payload

from dynamo_gpu_ft.kv.convert import compiled
from dynamo_gpu_ft.kv.geometry import ShardLayout
from dynamo_gpu_ft.kv.relayout import plan


@pytest.fixture
def world(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], rng: random.Random
) -> World:
    return World(make_arena, make_writer, rng, SOURCE)


@pytest.mark.parametrize("layout", TARGETS)
def test_a_prefix_is_converted_bit_for_bit_into_every_shard(
    world: World, layout: ShardLayout
) -> None:
    for shard in layout.shards:
        made = world.target(layout, shard)
        assert made.run() == ["ok"] * len(made.names)
        made.check(len(made.names))
        assert made.run() == ["present"] * len(made.names)


@pytest.mark.parametrize("layout", TARGETS)
def test_a_prefix_can_be_converted_in_parts(world: World, layout: ShardLayout) -> None:
    made = world.target(layout, 0)
    for first in range(0, len(made.names), 3):
        part = made.run(first, min(first + 3, len(made.names)))
        assert set(part) == {"ok"}
    made.check(len(made.names))


@pytest.mark.parametrize("layout", TARGETS)
def test_a_damaged_source_block_ends_the_prefix_before_anything_made_of_it(
    world: World, layout: ShardLayout
) -> None:
    world.damage(1, 5)
    made = world.target(layout, layout.shards[-1])
    good = 5 * SOURCE.block_tokens // layout.block_tokens
    statuses = made.run()
    assert statuses == ["ok"] * good + ["digest"] + ["chain"] * (len(made.names) - good - 1)
    made.check(good)


def test_damage_in_a_shard_that_is_not_needed_does_not_matter(world: World) -> None:
    world.damage(1, 0)
    made = world.target(TARGETS[1], 0)  # heads 0 of 4: all in source shard 0
    assert set(made.run()) == {"ok"}
    made.check(len(made.names))


def test_a_source_that_is_missing_evicted_or_of_another_chain_ends_the_prefix(world: World) -> None:
    made = world.target(TARGETS[0], 0)
    made.world.names[6] = b"nobody"
    assert made.run() == ["ok"] * 6 + ["not_found", "chain"]
    made.check(6)
    other = world.target(TARGETS[0], 0)
    world.names[3], world.names[4] = world.names[4], world.names[3]
    assert other.run() == ["ok"] * 3 + ["chain"] * 5
    other.check(3)


def test_sources_sealed_after_the_readers_epoch_are_not_used(world: World) -> None:
    made = world.target(TARGETS[0], 0)
    too_early = core.Converter(
        made.writer,
        world.arena,
        namespace=0,
        max_epoch=world.arena.epoch - 1,
        shards=made.plan.source_shards,
        phases=compiled(made.plan),
    )
    result = too_early.convert(made.list(), source_parent=None, timeout=30.0)
    assert result.statuses == ["epoch"] + ["chain"] * 7
    assert "epoch" in result.detail
    made.check(0)


def test_blocks_of_another_namespace_are_not_sources(world: World) -> None:
    foreign = world.arena.add_namespace(b"another model")
    made = world.target(TARGETS[0], 0)
    wrong = core.Converter(
        made.writer,
        world.arena,
        namespace=foreign,
        max_epoch=world.arena.epoch,
        shards=made.plan.source_shards,
        phases=compiled(made.plan),
    )
    assert wrong.convert(made.list(), source_parent=None, timeout=30.0).statuses[0] == "not_found"
    made.check(0)


def test_two_layouts_of_one_arena_convert_into_each_other(world: World) -> None:
    layout = dataclasses.replace(SOURCE, parts=HND)
    found = plan(SOURCE, layout, 0)
    chosen = token()
    writer = world.make_writer(world.arena, 0, b"target", token=chosen)
    converter = core.Converter(
        writer, world.arena, namespace=0, max_epoch=writer.epoch, shards=[0], phases=compiled(found)
    )
    targets = [
        core.Target(world.names[p], world.names[p - 1] if p else None, p, [world.names[p]])
        for p in range(BLOCKS)
    ]
    assert converter.convert(targets, source_parent=None, timeout=30.0).statuses == ["ok"] * BLOCKS
    for p in range(BLOCKS):
        read = writer.find(block_hash=world.names[p], parent_hash=world.names[p - 1] if p else None)
        assert ctypes.string_at(read.address, read.payload_bytes) == payload(
            world.model, layout, 0, p
        )


def test_a_full_arena_gives_up_other_blocks_before_the_sources_that_are_still_needed(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], rng: random.Random
) -> None:
    once = dataclasses.replace(SOURCE, tp=1)
    world = World(lambda **how: make_arena(**{**how, "slots": BLOCKS + 2}), make_writer, rng, once)
    layout = dataclasses.replace(once, parts=HND)
    world.writers[0].touch(world.names)  # as a prefix is used: its end is the first to go
    make_writer(world.arena, 0, b"later")  # two epochs on, the source's holds no longer count
    writer = make_writer(world.arena, 0, b"target")
    converter = core.Converter(
        writer,
        world.arena,
        namespace=0,
        max_epoch=writer.epoch,
        shards=[0],
        phases=compiled(plan(once, layout, 0)),
    )
    targets = [
        core.Target(world.names[p], world.names[p - 1] if p else None, p, [world.names[p]])
        for p in range(BLOCKS)
    ]
    assert converter.convert(targets, source_parent=None, timeout=30.0).statuses == ["ok"] * BLOCKS


def test_sources_evicted_by_a_live_engine_during_conversions_never_end_in_wrong_blocks(
    world: World, rng: random.Random
) -> None:
    stop = threading.Event()
    payloads = {
        (shard, at): payload(world.model, SOURCE, shard, at)
        for shard in SOURCE.shards
        for at in range(BLOCKS)
    }

    def evict() -> None:
        """Fills the source arena over and over, and stores the prefix again."""
        number = 0
        while not stop.is_set():
            for shard, writer in world.writers.items():
                writer.release(world.names)
                for _ in range(world.arena.slots):
                    number += 1
                    claim = writer.claim(block_hash=name(number, "x"), parent_hash=None, position=0)
                    ctypes.memset(claim.address, number % 251, world.arena.slot_bytes)
                    claim.seal()
                    writer.release([name(number, "x")])
                for at, block_hash in enumerate(world.names):
                    parent = world.names[at - 1] if at else None
                    claim = writer.claim(block_hash=block_hash, parent_hash=parent, position=at)
                    if claim is not None:
                        ctypes.memmove(claim.address, payloads[shard, at], world.arena.slot_bytes)
                        claim.seal()

    thread = threading.Thread(target=evict)
    thread.start()
    try:
        seen: set[str] = set()
        for _ in range(150):
            made = world.target(TARGETS[1], rng.randrange(4))  # of one source shard
            statuses = made.run()
            seen |= set(statuses)
            good = next((i for i, s in enumerate(statuses) if s != "ok"), len(statuses))
            made.check(good)
    finally:
        stop.set()
        thread.join(30)
    assert {"ok", "not_found"} <= seen <= {"ok", "changed", "not_found", "chain"}, seen


def test_a_deadline_and_a_cancel_leave_whole_blocks_only(world: World) -> None:
    made = world.target(TARGETS[3], 0)
    assert made.run(timeout=0.0) == ["timed_out"] + ["chain"] * 31
    made.check(0)
    answers: list[Any] = []
    for _ in range(50):
        again = world.target(TARGETS[3], 0)
        thread = threading.Thread(target=lambda again=again: answers.append(again.run()))
        thread.start()
        again.converter.cancel()
        thread.join(30)
        assert not thread.is_alive()
        good = answers[-1].count("ok")
        assert answers[-1][good : good + 1] in ([], ["cancelled"])
        again.check(good)


def test_a_fenced_writer_converts_nothing(world: World) -> None:
    made = world.target(TARGETS[0], 0)
    world.make_writer(made.arena, 0, b"target")  # its successor
    assert made.run() == ["fenced"] + ["chain"] * 7
    assert made.arena.counts()["sealed"] == 0


def test_a_full_target_arena_is_said_and_nothing_is_half_written(world: World) -> None:
    made = world.target(TARGETS[0], 0, slots=3)
    taken = [made.writer.claim(block_hash=name(i), parent_hash=None, position=0) for i in range(3)]
    assert made.run() == ["full"] + ["chain"] * 7
    for claim in taken:
        claim.abandon()
    assert made.run(0, 2) == ["ok", "ok"]
    made.check(2)


def test_targets_that_contradict_each_other_are_refused_as_a_whole(world: World) -> None:
    made = world.target(TARGETS[3], 0)  # four targets of each source block
    good = made.list()
    strange = core.Target(made.names[1], made.names[0], 1, [world.names[7]])
    refused: list[list[Any]] = [
        [good[0], good[2]],
        [good[1], good[0]],
        [good[0], strange],
        [core.Target(b"a", b"parent", 0, [b"s"])],
        [core.Target(b"a", None, 1, [b"s"])],
        [core.Target(b"a", None, 0, [])],
        [core.Target(b"a", None, 0, [b"x" * 65])],
    ]
    for targets in refused:
        assert (
            code_of(made.converter.convert, targets, source_parent=None, timeout=1.0) == "invalid"
        )
    assert code_of(made.converter.convert, good, source_parent=b"x", timeout=1.0) == "invalid"
    assert code_of(made.converter.convert, good, source_parent=None, timeout=-1.0) == "invalid"
    assert made.converter.convert([], source_parent=None, timeout=1.0).statuses == []
    made.check(0)


def test_plans_that_do_not_fit_the_arenas_are_refused(world: World) -> None:
    made = world.target(TARGETS[0], 0)
    how: dict[str, Any] = {"namespace": 0, "max_epoch": 9, "shards": [0, 1]}
    other = compiled(plan(SOURCE, TARGETS[1], 0))
    whole = compiled(made.plan)
    assert code_of(core.Converter, made.writer, world.arena, **how, phases=other) == "invalid"
    assert code_of(core.Converter, made.writer, made.arena, **how, phases=whole) == "mismatch"
    assert code_of(core.Converter, made.writer, world.arena, **how, phases=[]) == "invalid"
    how["shards"] = [0]
    assert code_of(core.Converter, made.writer, world.arena, **how, phases=other) == "mismatch"
    how["namespace"] = 7
    assert code_of(core.Converter, made.writer, world.arena, **how, phases=whole) == "invalid"


def test_a_converter_outlives_the_handles_it_was_made_of(world: World) -> None:
    made = world.target(TARGETS[0], 0)
    targets = made.list()
    world.arena.close()
    assert made.converter.convert(targets, source_parent=None, timeout=30.0).statuses == ["ok"] * 8
    made.check(8)
