"""The `Tier` contract, run against every tier: the simulated one, the native host tier, the device tier on simulated devices."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv.base import Tier
from dynamo_gpu_ft.kv.blocks import BlockRef, JobResult
from dynamo_gpu_ft.kv.layout import describe
from dynamo_gpu_ft.kv.policy import UNTIL_UNPINNED
from dynamo_gpu_ft.sim.tier import MemoryTier

LAYERS, BLOCKS, FRAGMENT = 3, 16, 4096


class World:
    """An engine of LAYERS tensors with BLOCKS blocks, and one tier over it."""

    def __init__(self, tier: Tier, read: Callable[[int], bytes], fill: Callable[[int, int], None]):
        self.tier, self.read, self.fill = tier, read, fill

    def finish(self) -> dict[int, JobResult]:
        assert self.tier.wait(10.0)
        return {result.job_id: result for result in self.tier.poll()}


def hash_of(index: int) -> bytes:
    return f"block-{index}".encode().ljust(32, b".")


def chain(*block_ids: int, first: int = 0) -> list[BlockRef]:
    refs = []
    for offset, block_id in enumerate(block_ids):
        position = first + offset
        parent = hash_of(position - 1) if position else None
        refs.append(BlockRef(block_id, hash_of(position), parent, position))
    return refs


def memory_world(folder: Path) -> Iterator[World]:
    engine = {b: bytes(LAYERS * FRAGMENT) for b in range(BLOCKS)}
    tier = MemoryTier(LAYERS * FRAGMENT, engine.__getitem__, engine.__setitem__)

    def fill(block_id: int, value: int) -> None:
        engine[block_id] = bytes([value]) * (LAYERS * FRAGMENT)

    yield World(tier, engine.__getitem__, fill)


def arena_world(folder: Path, make: Callable[..., Tier]) -> Iterator[World]:
    torch = pytest.importorskip("torch")
    core = native.load()
    tensors = {f"l{i}": torch.zeros(BLOCKS, FRAGMENT, dtype=torch.uint8) for i in range(LAYERS)}
    layout = describe(tensors, BLOCKS)
    arena = core.Arena.create(
        str(folder / "a.arena"), slot_bytes=layout.block_bytes, slots=64, ledger_bytes=65536
    )
    token = uuid.uuid4().bytes
    arena.begin_epoch(token)
    namespace = arena.add_namespace(b"{}")
    writer = arena.attach_writer(shard=0, token=token, namespace=namespace)
    tier = make(arena, writer, layout, tensors)

    def read(block_id: int) -> bytes:
        return b"".join(bytes(t[block_id].numpy()) for t in tensors.values())

    def fill(block_id: int, value: int) -> None:
        for tensor in tensors.values():
            tensor[block_id] = value

    yield World(tier, read, fill)
    tier.close()
    arena.close()


def host(arena: Any, writer: Any, layout: Any, tensors: Any) -> Tier:
    from dynamo_gpu_ft.kv.arena import HostTier

    return HostTier(writer, layout, threads=2)


def device(arena: Any, writer: Any, layout: Any, tensors: Any, **options: Any) -> Tier:
    from dynamo_gpu_ft.kv.device import DeviceTier
    from dynamo_gpu_ft.sim.twin import twin_of

    twin = twin_of(tensors.values(), **options)
    return DeviceTier(arena, writer, layout, tensors, device=twin)


MAKERS: dict[str, Callable[..., Tier]] = {
    "host": host,
    "device (simulated)": device,
    "old device (simulated)": partial(device, version=12020, kernels=True, register_bytes=0),
}


@pytest.fixture(params=["memory (simulated)", *MAKERS])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param.startswith("memory"):
        yield from memory_world(tmp_path)
    else:
        yield from arena_world(tmp_path, MAKERS[request.param])


def test_a_stored_chain_loads_into_other_blocks_byte_for_byte(world: World) -> None:
    for block_id in (1, 2, 3):
        world.fill(block_id, 10 + block_id)
    world.tier.store(1, chain(1, 2, 3))
    world.tier.load(2, chain(7, 8, 9))
    world.finish()
    world.tier.load(3, chain(7, 8, 9))
    assert world.finish()[3].statuses == ("ok", "ok", "ok")
    assert [world.read(b) for b in (7, 8, 9)] == [world.read(b) for b in (1, 2, 3)]


def test_an_equal_block_is_not_stored_twice(world: World) -> None:
    world.tier.store(1, chain(1))
    world.tier.store(2, chain(2))
    results = world.finish()
    assert results[1].statuses == ("ok",)
    assert results[2].statuses == ("present",)
    assert results[2].bytes == 0


def test_a_block_without_its_parent_is_not_stored(world: World) -> None:
    world.tier.store(1, chain(4, first=3))
    assert world.finish()[1].statuses == ("no_parent",)


def test_a_missing_block_ends_the_load_and_later_ones_are_not_served(world: World) -> None:
    world.fill(1, 11)
    world.tier.store(1, chain(1))
    world.finish()
    world.tier.load(2, chain(5, 6, 7))
    statuses = world.finish()[2].statuses
    assert statuses[0] == "ok"
    assert "ok" not in statuses[1:]
    assert len(statuses) == 3


def test_a_chain_under_another_parent_is_not_served(world: World) -> None:
    world.tier.store(1, chain(1, 2))
    world.finish()
    stranger = BlockRef(5, hash_of(1), hash_of(9), 1)
    world.tier.load(2, [stranger])
    assert world.finish()[2].statuses != ("ok",)


def test_a_cancelled_job_says_so_and_a_finished_one_is_left_alone(world: World) -> None:
    world.tier.store(1, chain(1))
    world.finish()
    world.tier.cancel([1, 99])
    world.tier.store(2, chain(2))
    world.tier.cancel([2])
    status = world.finish()[2].statuses[0]
    assert status in ("cancelled", "present")


def test_the_backlog_is_empty_when_all_is_done(world: World) -> None:
    world.tier.store(1, chain(1, 2, 3))
    world.finish()
    assert world.tier.backlog() == (0, 0)


def test_holds_and_releases_take_their_turn_behind_stores(world: World) -> None:
    world.tier.store(1, chain(1, 2))
    world.tier.hold([hash_of(0)])
    world.tier.release([hash_of(0), hash_of(1)])
    assert world.finish()[1].statuses == ("ok", "ok")


def test_a_dropped_block_is_gone_behind_the_stores_before_and_can_be_stored_again(
    world: World,
) -> None:
    world.tier.store(1, chain(1, 2))
    world.tier.drop([hash_of(1), hash_of(9)])
    world.finish()
    world.tier.load(2, chain(5, 6))
    assert world.finish()[2].statuses == ("ok", "not_found")
    world.tier.store(3, chain(1, 2))
    assert world.finish()[3].statuses == ("present", "ok")


def test_a_drop_undoes_one_hold_and_the_last_one_takes_the_block(world: World) -> None:
    world.tier.store(1, chain(1))
    world.tier.store(2, chain(1))
    world.tier.drop([hash_of(0)])
    world.finish()
    world.tier.load(3, chain(5))
    assert world.finish()[3].statuses == ("ok",)
    world.tier.drop([hash_of(0)])
    world.finish()
    world.tier.load(4, chain(5))
    assert world.finish()[4].statuses == ("not_found",)


def test_results_are_handed_out_once(world: World) -> None:
    world.tier.store(1, chain(1))
    assert set(world.finish()) == {1}
    assert world.tier.poll() == []


def test_a_pin_is_a_job_with_one_status_behind_the_stores(world: World) -> None:
    world.tier.store(1, chain(1, 2))
    world.tier.pin(2, [hash_of(0), hash_of(1), hash_of(9)], UNTIL_UNPINNED)
    world.tier.pin(3, [hash_of(7)], UNTIL_UNPINNED)
    world.tier.pin(4, [hash_of(0)], 0)
    world.tier.store(5, chain(3, first=2))
    results = world.finish()
    assert [results[job].statuses for job in (2, 3, 4)] == [("ok",), ("not_found",), ("ok",)]
    assert {results[job].kind for job in (2, 3, 4)} == {"pin"}
    assert [results[job].bytes for job in (2, 3, 4)] == [0, 0, 0]
    assert results[5].statuses == ("ok",)


def test_a_pin_above_the_cap_is_refused(world: World) -> None:
    if isinstance(world.tier, MemoryTier):
        world.tier.most_pinned = 16
    world.tier.store(1, [BlockRef(i % BLOCKS, b"%d" % i, None, 0) for i in range(17)])
    world.tier.pin(2, [b"%d" % i for i in range(17)], UNTIL_UNPINNED)
    world.tier.pin(3, [b"%d" % i for i in range(16)], UNTIL_UNPINNED)
    results = world.finish()
    assert [results[job].statuses for job in (2, 3)] == [("full",), ("ok",)]
