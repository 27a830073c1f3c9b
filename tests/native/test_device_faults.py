"""Every driver call fails once, the device is lost or wedged at every call: no wrong byte is ever reported "ok", nothing hangs.

Simulated, on the CPU twin. GFT_DEVICE_SWEEP=<number> tries more call indices per sweep.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from device_world import ALWAYS_PACK, BLOCK, IMAGE, DeviceMemory, chain, device_engine
from door import core

STORED = 6
POINTS = int(os.environ.get("GFT_DEVICE_SWEEP", "60"))
STATUSES = {
    "ok",
    "present",
    "no_parent",
    "device",
    "cancelled",
    "chain",
    "not_found",
    "digest",
    "closed",
}


class Life:
    """One device, one arena, one engine, and what the engine's blocks must hold."""

    def __init__(
        self,
        make_arena: Any,
        make_writer: Any,
        rng: random.Random,
        timeout: float = 10.0,
        **options: Any,
    ) -> None:
        self.device = core.Device.twin(seed=rng.randrange(2**32), timeout=timeout, **options)
        self.device.use_kernels([IMAGE, IMAGE])
        self.memory = DeviceMemory(self.device, rng)
        self.data = [self.memory.read(i) for i in range(STORED)]
        self.arena = make_arena(slot_bytes=BLOCK, slots=32)
        self.writer = make_writer(self.arena)
        self.stream = self.device.twin_stream()
        self.engine: Any = None

    def make(self, **how: Any) -> None:
        how = {"pack_out": ALWAYS_PACK, "pack_in": ALWAYS_PACK, "device_digest": True, **how}
        self.engine = device_engine(self.writer, self.device, self.memory, **how)

    def submit(self, load: bool, job: int, blocks: Any) -> bool:
        try:
            (self.engine.load_after if load else self.engine.store_after)(job, blocks, self.stream)
        except core.CoreError as error:
            assert error.code == "device"
            return False
        return True

    def round(self, job: int) -> None:
        """Stores a chain, loads it elsewhere; whatever is said to be there must be there, byte for byte."""
        prefix = f"r{job}-"
        self.submit(False, job, chain(range(STORED), prefix))
        assert self.engine.wait(30), "nothing hangs"
        self.statuses(job)
        if not self.submit(True, job + 1, chain(range(10, 10 + STORED), prefix)):
            return
        assert self.engine.wait(30), "nothing hangs"
        for i, status in enumerate(self.statuses(job + 1)):
            if status == "ok":
                assert self.memory.read(10 + i) == self.data[i], f"block {i} is wrong"

    def statuses(self, job: int) -> list[str]:
        found = {result.job_id: result for result in self.engine.poll()}
        statuses = found[job].statuses if job in found else []
        assert set(statuses) <= STATUSES, statuses
        return list(statuses)

    def check_arena(self) -> None:
        """What is sealed is what the engine had, whoever looks."""
        for info in self.arena.scan():
            if info.state == "sealed":
                assert self.arena.verify(info.slot) == "ok"


@pytest.fixture
def life(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], rng: random.Random
) -> Callable[..., Life]:
    return lambda **options: Life(make_arena, make_writer, rng, **options)


def calls_of_a_life(life: Callable[..., Life]) -> int:
    one = life()
    before = one.device.twin_calls()[0]
    one.make()
    one.round(1)
    assert one.engine.close(30)
    return int(one.device.twin_calls()[0] - before)


def points(total: int, rng: random.Random) -> list[int]:
    """All calls of a life when there are few, else the first ones and a random part of the rest."""
    every = range(1, total + 20)
    if len(every) <= POINTS:
        return list(every)
    return sorted({*range(1, POINTS // 2), *rng.sample(every, POINTS // 2)})


@pytest.mark.parametrize(
    "code", [999, 1, 2, 801], ids=["unknown", "invalid", "memory", "unsupported"]
)
def test_any_call_may_fail_once(life: Callable[..., Life], rng: random.Random, code: int) -> None:
    total = calls_of_a_life(life)
    for point in points(total, rng)[:: 1 if code == 999 else 3]:
        one = life()
        one.device.twin_set(fail_at=point, fail_with=code)
        try:
            one.make()
        except core.CoreError as error:
            assert error.code == "device"
            continue
        one.round(1)
        one.round(3)
        one.round(5)
        assert "ok" in one_more(one), f"call {point} failed once and nothing works since"
        one.check_arena()
        assert one.engine.close(30)


def one_more(one: Life) -> list[str]:
    assert one.submit(False, 100, chain(range(STORED), "last"))
    assert one.engine.wait(30)
    return one.statuses(100)


def test_the_device_may_be_lost_at_any_call(life: Callable[..., Life], rng: random.Random) -> None:
    total = calls_of_a_life(life)
    for point in points(total, rng):
        one = life()
        one.device.twin_set(lose_at=point)
        try:
            one.make()
        except core.CoreError as error:
            assert error.code == "device"
            continue
        one.round(1)
        one.round(3)
        one.check_arena()
        started = time.monotonic()
        one.engine.close(5)
        assert time.monotonic() - started < 10
        assert one.device.facts()["lost"] == "yes" or one.device.twin_calls()[0] < point + 200


def test_slots_a_lost_device_may_write_to_stay_out_of_use(
    life: Callable[..., Life], make_writer: Callable[..., Any]
) -> None:
    one = life(work_seconds=5e-3)
    one.make(threads=1)
    one.submit(False, 1, chain(range(STORED), "x"))
    while one.arena.counts()["writing"] == 0 and one.engine.backlog()[0]:
        pass
    one.device.twin_set(lose_at=1)
    assert one.engine.wait(30)
    assert set(one.statuses(1)) == {"device"}
    writing = one.arena.counts()["writing"]
    assert one.engine.close(30)
    one.writer.close()
    later = make_writer(one.arena, shard=1)
    for i in range(32):
        try:
            later.claim(block_hash=b"%d" % i, parent_hash=None, position=0).seal()
        except core.CoreError as error:
            assert error.code == "full"
    assert one.arena.counts()["writing"] == writing, "no slot of the lost device was given away"


def test_a_call_that_never_comes_back_costs_deadlines_and_no_more(
    life: Callable[..., Life], rng: random.Random
) -> None:
    for point in rng.sample(range(1, 120), 6):
        one = life(timeout=0.2)
        one.make(threads=1)
        started = time.monotonic()
        # Not before the submission: a thread of the engine that asks a wedged driver itself is lost with it.
        one.device.twin_fill(one.stream, one.memory.bases[0], 16, 1, 0.02)
        assert one.submit(False, 1, chain(range(STORED), "x"))
        one.device.twin_set(block_at=point)
        one.engine.wait(2)
        statuses = one.statuses(1)
        assert set(statuses) <= {"ok", "device"}, statuses
        one.check_arena()
        closed = one.engine.close(1)
        assert time.monotonic() - started < 10
        one.device.twin_set()
        assert one.engine.close(30) or not closed
        one.check_arena()


def wedge(one: Life, under_way: bool) -> None:
    """No further driver call comes back: while the engine's stream is waited for, or with copies under way."""
    if under_way:
        now = one.device.twin_calls()[0]
        while one.device.twin_calls()[0] < now + 12:
            pass
    one.device.twin_set(block_at=1, work_seconds=0.05)


@pytest.mark.parametrize("under_way", [False, True])
def test_a_wedged_store_is_reported_and_never_sealed_later(
    life: Callable[..., Life], under_way: bool
) -> None:
    one = life(timeout=0.2, work_seconds=0.01)
    one.make(threads=1, device_digest=False)
    assert one.submit(False, 1, chain(range(STORED), "warm"))
    assert one.engine.wait(30)
    one.statuses(1)
    assert one.submit(False, 2, chain(range(STORED), "x"))
    wedge(one, under_way)
    assert one.engine.wait(10)
    assert set(one.statuses(2)) == {"device"}
    sealed = one.arena.counts()["sealed"]
    assert one.engine.facts()["device_stuck"] == 1
    assert not one.engine.close(0.2)
    one.memory.wipe()  # the engine uses its blocks for something else
    one.device.twin_set()
    assert one.engine.close(30)
    assert one.arena.counts()["sealed"] == sealed


def test_a_wedged_load_keeps_its_target_until_the_device_is_done(life: Callable[..., Life]) -> None:
    one = life(timeout=0.2, work_seconds=0.01)
    one.make(threads=1)
    assert one.submit(False, 1, chain(range(STORED), "x"))
    assert one.engine.wait(30)
    assert set(one.statuses(1)) == {"ok"}
    assert one.submit(True, 2, chain(range(10, 10 + STORED), "x"))
    wedge(one, under_way=True)
    assert not one.engine.wait(1), "a load whose copy may still arrive has no result"
    one.device.twin_set()
    assert one.engine.wait(30)
    for i, status in enumerate(one.statuses(2)):
        if status == "ok":
            assert one.memory.read(10 + i) == one.data[i]
    assert one.engine.close(30)


def test_slow_copies_out_are_given_up_and_their_slots_held(life: Callable[..., Life]) -> None:
    one = life(timeout=0.1, work_seconds=0.5)
    one.make(threads=1)
    assert one.submit(False, 1, chain(range(STORED), "x"))
    assert one.engine.wait(30)
    assert set(one.statuses(1)) == {"device"}
    assert one.engine.facts()["overdue"] == 1
    assert one.arena.counts()["writing"] == STORED
    one.engine.close(0.1)
    assert one.arena.counts()["sealed"] == 0


def test_closing_while_copies_are_under_way_ends_them(life: Callable[..., Life]) -> None:
    for seconds in (0.0, 0.005, 5.0):
        one = life(work_seconds=1e-3)
        one.make()
        for job in range(10):
            one.submit(False, job, chain(range(STORED), f"j{job}-"))
        one.engine.close(seconds)
        assert one.engine.close(30)
        assert one.arena.counts()["writing"] == 0
        assert one.device.twin_calls()[1] == 0
        one.check_arena()


def test_dropping_an_engine_with_copies_under_way_ends_it(life: Callable[..., Life]) -> None:
    one = life(work_seconds=1e-3)
    one.make()
    for job in range(10):
        one.submit(False, job, chain(range(STORED), f"j{job}-"))
    one.engine = None
    assert one.arena.counts()["writing"] == 0
    assert one.device.twin_calls()[1] == 0
