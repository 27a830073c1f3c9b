"""The device copy engine on the CPU twin: every way of copying, order behind the engine's stream, registration, and its end.

The twin is simulated: it runs late and in stream order, so a missing wait shows here as wrong bytes.
"""

from __future__ import annotations

import ctypes
import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from device_world import (
    ALWAYS_PACK,
    BLOCK,
    BLOCKS,
    IMAGE,
    DeviceMemory,
    chain,
    device_engine,
    results,
)
from door import code_of, core, name

WAYS = {
    "plain": {"version": 12020, "kernels": False},
    "batched": {"version": 13000, "kernels": False},
    "packed": {"version": 13000, "kernels": True},
    "packed without batches": {"version": 12020, "kernels": True},
    "not registered": {"version": 13000, "kernels": True, "register_bytes": 0},
}


@pytest.fixture
def world(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], rng: random.Random
) -> Any:
    def make(slots: int = 64, **options: Any) -> Any:
        how = {
            key: options.pop(key)
            for key in ("device_digest", "pack", "threads", "rate")
            if key in options
        }
        pack = how.pop("pack", ALWAYS_PACK)
        device = core.Device.twin(seed=rng.randrange(2**32), **options)
        if options.get("kernels", True):
            device.use_kernels([IMAGE, IMAGE])
        arena = make_arena(slot_bytes=BLOCK, slots=slots)
        memory = DeviceMemory(device, rng)
        writer = make_writer(arena)
        engine = device_engine(writer, device, memory, pack_out=pack, pack_in=pack, **how)
        made.append((engine, device))
        return arena, device, memory, engine

    made: list[Any] = []
    yield make
    for engine, device in made:
        device.twin_set()
        assert engine.close(30)
        assert device.twin_calls()[1] == 0, "everything is unregistered"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("digest", [False, True], ids=["", "with the device digest"])
def test_a_chain_goes_out_and_comes_back_equal(world: Any, way: str, digest: bool) -> None:
    _arena, _device, memory, engine = world(device_digest=digest, **WAYS[way])
    before = [memory.read(i) for i in range(BLOCKS)]
    engine.store(1, chain(range(BLOCKS)))
    assert results(engine) == {1: ["ok"] * BLOCKS}
    memory.wipe()
    engine.load(2, chain(range(BLOCKS)[::-1]))
    assert results(engine) == {2: ["ok"] * BLOCKS}
    assert [memory.read(i) for i in range(BLOCKS)] == before[::-1]
    facts = engine.facts()
    assert (facts["packed_pieces"] > 0) == way.startswith(("packed", "not"))
    assert facts["retries"] == facts["mixups"] == 0


def test_a_large_fragment_takes_no_detour(world: Any) -> None:
    _arena, _device, _memory, engine = world(pack=[(1, 512)])
    engine.store(1, chain(range(BLOCKS)))
    assert results(engine) == {1: ["ok"] * BLOCKS}
    assert engine.facts()["packed_pieces"] == 0
    assert engine.facts()["direct_copies"] == 3 * BLOCKS


@pytest.mark.parametrize("way", WAYS)
def test_a_store_waits_for_what_the_engine_still_writes(world: Any, way: str) -> None:
    _arena, device, memory, engine = world(**WAYS[way])
    stream = device.twin_stream()
    for block in range(4):
        for at, size in memory.fragments(block):
            device.twin_fill(stream, at, size, 100 + block, 0.01)
    engine.store_after(1, chain(range(4)), stream)
    assert results(engine) == {1: ["ok"] * 4}
    memory.wipe()
    engine.load(2, chain([10, 11, 12, 13]))
    assert results(engine) == {2: ["ok"] * 4}
    assert [memory.read(10 + i) for i in range(4)] == [bytes([100 + i]) * BLOCK for i in range(4)]


@pytest.mark.parametrize("way", WAYS)
def test_a_load_waits_for_what_the_engine_still_reads(world: Any, way: str) -> None:
    _arena, device, memory, engine = world(**WAYS[way])
    engine.store(1, chain(range(2)))
    assert results(engine) == {1: ["ok"] * 2}
    stream, seen = device.twin_stream(), device.twin_allocate(BLOCK)
    old, target = memory.read(7), seen
    for at, size in memory.fragments(7):
        device.twin_copy(stream, target, at, size, 0.01)
        target += size
    engine.load_after(2, chain([7, 8]), stream)
    assert results(engine) == {2: ["ok"] * 2}
    assert device.twin_read(seen, BLOCK) == old
    assert memory.read(7) == memory.read(0)


def test_a_cancelled_store_need_not_wait_for_the_engine(world: Any) -> None:
    arena, device, memory, engine = world()
    stream = device.twin_stream()
    (at, size), *_ = memory.fragments(0)
    device.twin_fill(stream, at, size, 1, 2.0)
    engine.store_after(1, chain(range(5)), stream)
    engine.store(2, chain(range(1, 6), prefix="c"))  # none that the engine still writes
    engine.cancel([1])
    got = results(engine)
    assert got[1] == ["cancelled"] * 5
    assert got[2] == ["ok"] * 5
    assert arena.counts()["writing"] == 0


def test_after_a_cancel_the_blocks_belong_to_the_engine_again(world: Any) -> None:
    _arena, _device, memory, engine = world(work_seconds=1e-3)
    before = [memory.read(i) for i in range(BLOCKS)]
    for job in range(20):
        engine.store(job, chain(range(8), prefix=f"job{job}-"))
    engine.cancel(range(20))
    memory.wipe()  # would be sealed as zeros by a store that went on
    for job, statuses in sorted(results(engine).items()):
        kept = statuses.index("cancelled") if "cancelled" in statuses else 8
        assert statuses == ["ok"] * kept + ["cancelled"] * (8 - kept)
        engine.load(1000 + job, chain(range(kept), prefix=f"job{job}-"))
        assert results(engine) == {1000 + job: ["ok"] * kept}
        assert [memory.read(i) for i in range(kept)] == before[:kept]
        memory.wipe()


def test_a_damaged_payload_fails_its_block_and_all_behind_it(world: Any) -> None:
    arena, _device, _memory, engine = world()
    engine.store(1, chain(range(8)))
    assert results(engine) == {1: ["ok"] * 8}
    (slot,) = [info.slot for info in arena.scan() if info.position == 3]
    address = arena.base_address() + arena.file_bytes - 64 * 4096 + slot * 4096
    ctypes.memset(address + 5, ctypes.string_at(address + 5, 1)[0] ^ 1, 1)
    engine.load(2, chain(range(8)))
    assert results(engine)[2] == ["ok"] * 3 + ["digest"] + ["chain"] * 4


def test_a_bit_that_changed_on_the_way_out_is_found_and_the_block_copied_again(world: Any) -> None:
    _arena, device, memory, engine = world(device_digest=True)
    before = [memory.read(i) for i in range(4)]
    device.twin_set(flip_every=3)
    engine.store(1, chain(range(4)))
    got = results(engine)[1]
    device.twin_set()
    assert engine.facts()["mixups"] >= 1
    good = got.index("digest") if "digest" in got else 4
    assert set(got[good:]) <= {"digest", "no_parent"}
    memory.wipe()
    engine.load(2, chain(range(good)))
    assert results(engine)[2] == ["ok"] * good
    assert [memory.read(i) for i in range(good)] == before[:good]


def test_bytes_that_change_every_time_are_never_sealed(world: Any) -> None:
    arena, device, _memory, engine = world(device_digest=True, threads=1)
    device.twin_set(flip_every=1)
    engine.store(1, chain(range(1)))
    assert results(engine) == {1: ["digest"]}
    device.twin_set()
    assert arena.counts()["sealed"] == 0


def test_registration_goes_on_behind_copies_and_says_how_far_it_is(world: Any) -> None:
    arena, device, _memory, engine = world(slots=512)
    engine.store(1, chain(range(BLOCKS)))
    assert results(engine) == {1: ["ok"] * BLOCKS}
    until(lambda: engine.facts()["registration_done"])
    facts = engine.facts()
    assert facts["registered_bytes"] == facts["payload_bytes"] == 512 * 4096
    assert device.twin_calls()[1] == 512 * 4096
    assert facts["registration_failed"] == 0
    assert arena.counts()["sealed"] == BLOCKS


def test_a_limit_on_registering_ends_it_and_copies_go_on(world: Any) -> None:
    _arena, _device, memory, engine = world(slots=512, register_bytes=1 << 20)
    until(lambda: engine.facts()["registration_done"])
    assert engine.facts()["registered_bytes"] == 1 << 20
    assert engine.facts()["registration_failed"] == 1
    before = [memory.read(i) for i in range(BLOCKS)]
    for job in range(20):  # more than fit the registered part
        engine.store(job, chain(range(BLOCKS), prefix=f"j{job}-"))
    assert all(set(each) == {"ok"} for each in results(engine).values())
    memory.wipe()
    engine.load(100, chain(range(BLOCKS), prefix="j19-"))
    assert results(engine)[100] == ["ok"] * BLOCKS
    assert [memory.read(i) for i in range(BLOCKS)] == before
    assert engine.facts()["bounced_bytes"] > 0


def test_stores_keep_to_the_byte_budget_and_loads_do_not_wait_for_it(world: Any) -> None:
    _arena, _device, _memory, engine = world(rate=40 * BLOCK, threads=1)
    engine.store(1, chain(range(BLOCKS)))
    engine.store(2, chain(range(BLOCKS), prefix="c"))
    assert not engine.wait(0.2)
    engine.load(3, chain(range(1)))
    until(lambda: any(r.job_id == 3 for r in engine.poll()))
    assert engine.backlog()[0] > 0


def test_a_small_arena_turns_over(world: Any) -> None:
    arena, _device, _memory, engine = world(slots=8)
    for job in range(6):
        engine.store(job, chain(range(6), prefix=f"j{job}-"))
        engine.release([name(i, f"j{job}-") for i in range(6)])
    assert all(set(each) == {"ok"} for each in results(engine).values())
    assert arena.counts()["sealed"] == 8


def test_a_host_engine_knows_no_streams_and_a_twin_only_its_own_memory(world: Any) -> None:
    _arena, device, _memory, engine = world()
    assert code_of(device.twin_read, 4096, 16) == "invalid"
    assert code_of(engine.store, 1, [core.Block(BLOCKS, b"x", None, 0)]) == "invalid"
    assert code_of(core.Device.twin, gb_per_s=0.0) == "invalid"
    assert code_of(core.Device.open, 0) in ("not_found", "version", "device")


def test_options_that_break_a_rule_are_refused(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], rng: random.Random
) -> None:
    device = core.Device.twin()
    memory, writer = DeviceMemory(device, rng), make_writer(make_arena(slot_bytes=BLOCK))
    for wrong in (
        {"staging_bytes": 100},
        {"thread_blocks": 0},
        {"chunk_bytes": 0},
        {"chunk_bytes": (64 << 30) + 1},
        {"threads": 0},
        {"pack_out": [(4, 1), (4, 2)]},
    ):
        assert code_of(device_engine, writer, device, memory, **wrong) == "invalid"


def test_ways_of_copying_can_be_measured(rng: random.Random) -> None:
    device = core.Device.twin(gb_per_s=2.0, call_seconds=2e-5)
    assert code_of(device.measure, "kernel", load=False, bytes=4096, count=4) == "not_found"
    device.use_kernels([IMAGE, IMAGE])
    took = {
        w: device.measure(w, load=False, bytes=4096, count=64) for w in ("plain", "batch", "kernel")
    }
    assert took["batch"] < took["plain"]
    assert took["kernel"] < took["plain"]
    assert code_of(device.measure, "magic", load=False, bytes=4096, count=4) == "invalid"
    assert code_of(device.measure, "plain", load=True, bytes=4097, count=4) == "invalid"
    device.use_kernels([])
    assert device.facts()["kernels"] == "no"


def until(true: Callable[[], Any]) -> None:
    """Looks again and again, at most half a minute: what is waited for happens on a thread of the core."""
    for _ in range(3000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen within 30 s")


def test_jobs_of_both_directions_and_many_prefixes_mix(world: Any, rng: random.Random) -> None:
    _arena, _device, memory, engine = world(slots=256, threads=3)
    data = {i: memory.read(i) for i in range(BLOCKS)}
    jobs = itertools.count(1)
    sets = [rng.sample(range(BLOCKS // 2), 6) for _ in range(6)]
    for number, ids in enumerate(sets):
        engine.store(next(jobs), chain(ids, prefix=f"s{number}-"))
    assert all(set(each) == {"ok"} for each in results(engine).values())
    for number, ids in enumerate(sets):
        targets = [BLOCKS // 2 + i for i in range(6)]
        engine.load(next(jobs), chain(targets, prefix=f"s{number}-"))
        engine.store(next(jobs), chain(ids, prefix=f"t{number}-"))
        assert all(set(each) == {"ok"} for each in results(engine).values())
        assert [memory.read(t) for t in targets] == [data[i] for i in ids]
