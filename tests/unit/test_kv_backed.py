"""`BackedTier` over the simulated tier with fillers under the test's control: order, give-up, holds, reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from dynamo_gpu_ft.kv.backed import BackedTier, Filled
from dynamo_gpu_ft.kv.blocks import BlockRef, Sources
from dynamo_gpu_ft.sim.tier import MemoryTier

SIZE = 8


class Shop:
    """A filler that has some blocks and brings them into the tier when told to deliver."""

    def __init__(self, source: str, tier: MemoryTier, stock: dict[bytes, bytes]) -> None:
        self.source, self.tier, self.stock = source, tier, stock
        self.asked: list[int] = []
        self.cancelled: list[int] = []
        self.closed = False
        self._open: dict[int, Sequence[BlockRef]] = {}
        self._done: list[Filled] = []

    def fill(self, job_id: int, blocks: Sequence[BlockRef], seconds: float) -> None:
        assert seconds > 0
        self.asked.append(job_id)
        self._open[job_id] = blocks

    def cancel(self, job_ids: Iterable[int]) -> None:
        self.cancelled += job_ids

    def poll(self) -> list[Filled]:
        done, self._done = self._done, []
        return done

    def close(self, timeout: float) -> None:
        self.closed = True

    def deliver(self, job_id: int, missing: str = "not_found") -> None:
        statuses = []
        for block in self._open.pop(job_id):
            if block.block_hash in self.tier.blocks:
                statuses.append("present")
            elif block.block_hash in self.stock:
                payload = self.stock[block.block_hash]
                self.tier.blocks[block.block_hash] = (block.parent_hash, payload)
                self.tier.holds[block.block_hash] = 1
                statuses.append("ok")
            else:
                statuses.append(missing if missing not in statuses else "chain")
        size = statuses.count("ok") * SIZE
        self._done.append(Filled(job_id, tuple(statuses), size, 0.5))


def hash_of(position: int) -> bytes:
    return b"h%d" % position


def chain(count: int, converted_from: int | None = None) -> list[BlockRef]:
    made = []
    for i in range(count):
        sources = None
        if converted_from is not None and i >= converted_from:
            sources = Sources((b"s%d" % i,), None, b"other layout")
        made.append(BlockRef(i, hash_of(i), hash_of(i - 1) if i else None, i, sources))
    return made


class World:
    def __init__(self, disk: dict[bytes, bytes], other: dict[bytes, bytes] | None = None) -> None:
        self.engine: dict[int, bytes] = {}
        self.inner = MemoryTier(SIZE, lambda b: bytes([b]) * SIZE, self.engine.__setitem__)
        self.disk = Shop("disk", self.inner, disk)
        self.other = Shop("convert", self.inner, other or {})
        self.spilled: list[bytes] = []
        self.tier = BackedTier(self.inner, [self.disk, self.other], self)

    def spill(self, blocks: Sequence[BlockRef]) -> None:
        self.spilled += [b.block_hash for b in blocks]

    def wait(self, timeout: float) -> bool:
        return True

    def result(self) -> tuple[str, ...]:
        while self.inner.step():
            pass
        (result,) = self.tier.poll()
        return result.statuses


def test_a_load_waits_for_the_disk_and_then_comes_from_the_arena() -> None:
    world = World({hash_of(i): b"payload%d" % i for i in range(3)})
    world.tier.load(1, chain(3))
    assert not world.inner.step(), "nothing touches the engine before the disk has answered"
    world.disk.deliver(1)
    world.tier.poll()
    while world.inner.step():
        pass
    (result,) = world.tier.poll()
    assert result.statuses == ("ok", "ok", "ok")
    assert world.engine == {i: b"payload%d" % i for i in range(3)}
    assert ("disk", 3 * SIZE, 0.5) in result.moved


def test_what_a_filler_brought_is_released_after_the_load() -> None:
    world = World({hash_of(0): b"payload0"})
    world.tier.load(1, chain(1))
    world.disk.deliver(1)
    world.tier.poll()
    world.result()
    world.inner.wait(1)
    assert world.inner.holds[hash_of(0)] == 0


def test_the_reason_of_the_filler_is_told_rather_than_not_found() -> None:
    world = World({hash_of(0): b"payload0"})
    world.tier.load(1, chain(3))
    world.disk.deliver(1, missing="digest")
    world.tier.poll()
    assert world.result() == ("ok", "digest", "chain")


def test_conversions_are_asked_for_only_where_blocks_have_sources() -> None:
    world = World({}, {hash_of(1): b"convert1"})
    world.tier.load(1, chain(1))
    world.disk.deliver(1)
    world.tier.poll()
    assert world.other.asked == []
    world.tier.load(2, chain(2, converted_from=1))
    world.disk.deliver(2)
    world.tier.poll()
    assert world.other.asked == [2]


def test_a_load_given_up_at_the_disk_never_reaches_the_engine() -> None:
    world = World({hash_of(0): b"payload0"})
    world.tier.load(1, chain(1))
    world.tier.cancel([1])
    assert world.result() == ("cancelled",)
    assert world.disk.cancelled == [1]
    world.disk.deliver(1)
    assert world.tier.poll() == []
    world.inner.wait(1)
    assert world.engine == {}
    assert world.inner.holds[hash_of(0)] == 0, "the late arrival is not held for ever"


def test_a_filler_out_of_time_is_not_asked_and_the_arena_decides() -> None:
    world = World({hash_of(0): b"payload0"})
    late = BackedTier(world.inner, [world.disk], fill_seconds=0.0)
    late.load(1, chain(1))
    while world.inner.step():
        pass
    (result,) = late.poll()
    assert result.statuses == ("not_found",)
    assert world.disk.asked == []


def test_only_sealed_blocks_are_spilled() -> None:
    world = World({})
    world.inner.capacity = 2
    world.tier.store(1, chain(3))
    while world.inner.step():
        pass
    world.tier.poll()
    assert world.spilled == [hash_of(0), hash_of(1)]


def test_a_tail_is_not_spilled() -> None:
    world = World({})
    *whole, last = chain(3)
    world.tier.store(1, [*whole, dataclasses.replace(last, tail=True)])
    while world.inner.step():
        pass
    world.tier.poll()
    assert world.spilled == [hash_of(0), hash_of(1)]
    world.tier.drop([last.block_hash])
    assert world.tier.wait(1.0)
    assert set(world.inner.blocks) == {hash_of(0), hash_of(1)}


def test_closing_ends_every_filler_first() -> None:
    world = World({})
    world.tier.close(0.5)
    assert world.disk.closed
    assert world.other.closed
