"""The copy engine: background stores and loads, their order, their statuses, their ends.

Source memory is plain bytes arrays; every loaded byte is compared.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from door import code_of, core, name, token

BLOCK = 3000  # split unevenly over two regions
PARTS = (1000, 2000)
BLOCKS = 40


class Memory:
    """An engine's memory: two regions with gaps between the blocks, filled with random bytes."""

    def __init__(self, rng: random.Random) -> None:
        self.regions = [bytearray(rng.randbytes((part + 24) * BLOCKS)) for part in PARTS]
        self.layout = core.Layout(
            [
                (ctypes.addressof(ctypes.c_char.from_buffer(region)), part + 24, part, BLOCKS)
                for region, part in zip(self.regions, PARTS, strict=True)
            ]
        )

    def block(self, i: int) -> bytes:
        return b"".join(
            bytes(region[i * (part + 24) : i * (part + 24) + part])
            for region, part in zip(self.regions, PARTS, strict=True)
        )

    def wipe(self) -> None:
        for region in self.regions:
            region[:] = bytes(len(region))


def chain(ids: Sequence[int], prefix: str = "b") -> list[Any]:
    """Blocks of one prefix: the i-th at position i, its bytes in block `ids[i]`."""
    return [
        core.Block(block_id, name(i, prefix), name(i - 1, prefix) if i else None, i)
        for i, block_id in enumerate(ids)
    ]


@pytest.fixture
def memory(rng: random.Random) -> Memory:
    return Memory(rng)


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def engine(
    request: pytest.FixtureRequest,
    make_arena: Callable[..., Any],
    make_writer: Callable[..., Any],
    memory: Memory,
) -> Any:
    arena = make_arena(slot_bytes=BLOCK, slots=64)
    made = core.CopyEngine(make_writer(arena), memory.layout, threads=request.param)
    made_for[id(made)] = arena
    yield made
    assert made.close()


made_for: dict[int, Any] = {}


def results(engine: Any) -> dict[int, list[str]]:
    assert engine.wait(60)
    return {result.job_id: result.statuses for result in engine.poll()}


def test_layout_measures_a_block_and_refuses_nonsense(memory: Memory) -> None:
    assert (memory.layout.block_bytes, memory.layout.num_blocks) == (BLOCK, BLOCKS)
    for regions in ([], [(0, 1, 1, 1)], [(64, 1, 2, 1)], [(64, 1, 0, 1)], [(64, 2**63, 1, 4)]):
        assert code_of(core.Layout, regions) == "invalid"


def test_an_engine_needs_the_arenas_block_size_and_a_sane_number_of_threads(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], memory: Memory
) -> None:
    assert code_of(core.CopyEngine, make_writer(make_arena()), memory.layout) == "mismatch"
    writer = make_writer(make_arena(slot_bytes=BLOCK))
    assert code_of(core.CopyEngine, writer, memory.layout, threads=0) == "invalid"
    assert code_of(core.CopyEngine, writer, memory.layout, threads=65) == "invalid"


def test_a_chain_goes_out_and_comes_back_equal(engine: Any, memory: Memory) -> None:
    ids = list(range(30))
    before = [memory.block(i) for i in ids]
    engine.store(1, chain(ids))
    assert engine.wait(60)
    (stored,) = engine.poll()
    assert (stored.job_id, stored.kind, stored.statuses) == (1, "store", ["ok"] * 30)
    assert (stored.bytes, stored.detail) == (30 * BLOCK, "")
    assert stored.seconds > 0
    memory.wipe()
    engine.load(2, chain(ids[::-1]))
    assert results(engine) == {2: ["ok"] * 30}
    assert [memory.block(i) for i in ids] == before[::-1]
    assert engine.backlog() == (0, 0)


def test_what_is_there_already_is_not_copied_again(engine: Any) -> None:
    engine.store(1, chain(range(5)))
    engine.store(2, chain(range(5)))
    engine.store(3, chain(range(7)))
    assert results(engine) == {1: ["ok"] * 5, 2: ["present"] * 5, 3: ["present"] * 5 + ["ok"] * 2}


def test_a_block_without_its_parent_is_not_stored(engine: Any) -> None:
    engine.store(1, chain(range(4))[2:])
    assert results(engine) == {1: ["no_parent", "no_parent"]}


def test_a_load_ends_at_the_first_block_that_cannot_be_used(engine: Any) -> None:
    engine.store(1, chain(range(4)))
    assert engine.wait(60)
    engine.load(2, chain(range(7)))
    engine.load(3, chain(range(3), prefix="unknown"))
    got = results(engine)
    assert got[2] == ["ok"] * 4 + ["not_found", "chain", "chain"]
    assert got[3] == ["not_found", "chain", "chain"]


def test_a_load_may_start_in_the_middle_of_a_prefix(engine: Any, memory: Memory) -> None:
    engine.store(1, chain(range(10)))
    assert engine.wait(60)
    before = [memory.block(i) for i in range(10)]
    memory.wipe()
    engine.load(2, chain(range(10))[6:])
    assert results(engine)[2] == ["ok"] * 4
    assert [memory.block(i) for i in range(6, 10)] == before[6:]


def test_a_changed_payload_fails_its_block_and_all_behind_it_then_can_be_stored_again(
    engine: Any, memory: Memory
) -> None:
    arena = made_for[id(engine)]
    engine.store(1, chain(range(8)))
    assert engine.wait(60)
    (slot,) = [info.slot for info in arena.scan() if info.position == 3]
    # Payloads lie one page apart at the end of the file.
    address = arena.base_address() + arena.file_bytes - 64 * 4096 + slot * 4096
    ctypes.memset(address + BLOCK - 1, 0x55, 1)
    ctypes.memset(address, 0x55, 1)
    engine.load(2, chain(range(8)))
    assert results(engine)[2] == ["ok"] * 3 + ["digest"] + ["chain"] * 4
    assert memory.block(2) == memory.block(2)
    engine.store(3, chain(range(8)))
    assert results(engine)[3][3] == "ok"


def test_arguments_that_break_a_rule_queue_nothing(engine: Any) -> None:
    assert (
        code_of(engine.store, 1, [*chain(range(3)), core.Block(BLOCKS, b"x", None, 0)]) == "invalid"
    )
    assert code_of(engine.load, 1, [core.Block(0, b"", None, 0)]) == "invalid"
    assert code_of(engine.load, 1, [core.Block(0, b"x" * 65, None, 0)]) == "invalid"
    assert code_of(engine.store, 1, [core.Block(0, b"x", None, 1)]) == "invalid"
    assert engine.backlog() == (0, 0)
    assert engine.poll() == []
    engine.store(1, [])
    assert results(engine) == {1: []}


def test_one_job_id_names_one_job_at_a_time(engine: Any) -> None:
    engine.store(1, chain(range(20)))
    try:
        engine.store(1, chain(range(2), prefix="c"))
    except core.CoreError as error:
        assert error.code == "invalid"  # the first was still at work
    assert engine.wait(60)


def test_a_cancelled_job_touches_its_memory_no_more(engine: Any, memory: Memory) -> None:
    before = [memory.block(i) for i in range(BLOCKS)]
    for job in range(100):
        engine.store(job, chain(range(8), prefix=f"job{job}-"))
    engine.cancel([*range(100), 999])
    assert engine.backlog() == (0, 0)
    memory.wipe()  # would be sealed as zeros by a store that went on
    got = results(engine)
    assert set(got) == set(range(100))
    for job, statuses in got.items():
        kept = statuses.index("cancelled") if "cancelled" in statuses else 8
        assert statuses == ["ok"] * kept + ["cancelled"] * (8 - kept)
        if kept and job >= 95:
            engine.load(1000 + job, chain(range(kept), prefix=f"job{job}-"))
            assert results(engine) == {1000 + job: ["ok"] * kept}
            assert [memory.block(i) for i in range(kept)] == before[:kept]


def test_new_blocks_start_held_and_marks_keep_their_place_in_the_queue(engine: Any) -> None:
    arena = made_for[id(engine)]
    engine.store(1, chain(range(10)))
    engine.release([name(i) for i in range(4)])
    engine.hold([name(0)])
    engine.store(2, chain(range(5), prefix="c"))
    assert engine.wait(60)
    held = {info.block_hash for info in arena.scan() if info.held}
    assert held == {name(0), *(name(i) for i in range(4, 10)), *(name(i, "c") for i in range(5))}


def test_what_an_earlier_epoch_held_is_dropped_by_its_successor_alone(engine: Any) -> None:
    arena = made_for[id(engine)]
    engine.store(1, chain(range(3)))
    engine.store(2, chain(range(3)))
    assert engine.wait(60)
    arena.begin_epoch(mine := token(), takeover=True)
    engine.drop([name(0)])
    assert engine.wait(60)
    assert arena.counts()["sealed"] == 3, "a fenced engine drops nothing"
    writer = arena.attach_writer(shard=0, token=mine, namespace=0)
    memory = Memory(random.Random(1))
    successor = core.CopyEngine(writer, memory.layout, threads=2)
    successor.drop([name(2)])
    assert successor.wait(60)
    assert {info.block_hash for info in arena.scan()} == {name(0), name(1)}
    assert successor.close()


def test_a_fenced_engine_stores_and_loads_nothing(engine: Any) -> None:
    arena = made_for[id(engine)]
    engine.store(1, chain(range(3)))
    assert engine.wait(60)
    arena.begin_epoch(token(), takeover=True)
    engine.store(2, chain(range(3), prefix="c"))
    engine.load(3, chain(range(3)))
    got = results(engine)
    assert got[2] == ["fenced"] * 3
    assert got[3][0] == "fenced"


def test_a_full_arena_keeps_the_newest_and_says_what_it_could_not_take(
    engine: Any, memory: Memory
) -> None:
    arena = made_for[id(engine)]
    for job in range(10):
        engine.store(job, chain(range(BLOCKS), prefix=f"job{job}-"))
    got = results(engine)
    assert all(statuses == ["ok"] * BLOCKS for statuses in got.values())
    assert arena.counts()["sealed"] == 64
    engine.load(100, chain(range(BLOCKS), prefix="job9-"))
    assert results(engine)[100] == ["ok"] * BLOCKS


def test_a_closed_engine_drops_what_is_queued_and_refuses_more(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], memory: Memory
) -> None:
    arena = make_arena(slot_bytes=BLOCK, slots=64)
    writer = make_writer(arena)
    engine = core.CopyEngine(writer, memory.layout)
    for job in range(50):
        engine.store(job, chain(range(BLOCKS), prefix=f"job{job}-"))
    engine.close(0)
    assert engine.close(60)
    assert code_of(engine.store, 1, []) == "closed"
    assert code_of(engine.hold, [b"x"]) == "closed"
    assert len({result.job_id for result in engine.poll()}) == 50
    writer.close()
    assert arena.counts()["writing"] == 0


def test_dropping_an_engine_with_work_queued_ends_it(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], memory: Memory
) -> None:
    arena = make_arena(slot_bytes=BLOCK, slots=64)
    engine = core.CopyEngine(make_writer(arena), memory.layout, threads=2)
    engine.store(1, chain(range(BLOCKS)))
    del engine
    assert arena.counts()["writing"] == 0


def test_a_forked_child_cannot_use_its_parents_engine(engine: Any) -> None:
    engine.store(1, chain(range(5)))
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        codes = []
        for call in (
            lambda: engine.store(2, []),
            engine.poll,
            lambda: engine.wait(1),
            engine.close,
            engine.backlog,
        ):
            try:
                call()
                codes.append("ok")
            except core.CoreError as error:
                codes.append(error.code)
        del engine
        os.write(write_end, " ".join(codes).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        assert set(pipe.read().split()) == {"forked"}
    os.waitpid(pid, 0)
    assert results(engine) == {1: ["ok"] * 5}


def test_waiting_has_a_deadline(engine: Any) -> None:
    assert engine.wait(0) is True
    assert engine.wait(float("nan")) is True
    assert engine.wait(-1) is True
    assert engine.wait(float("inf")) is True
