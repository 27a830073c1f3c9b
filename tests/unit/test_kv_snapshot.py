"""The snapshot queue over a simulated tier: lag, preemption, ends of requests, failed loads."""

import pytest

from dynamo_gpu_ft.kv.blocks import Run
from dynamo_gpu_ft.kv.snapshot import SnapshotQueue
from dynamo_gpu_ft.sim.tier import MemoryTier

BLOCK = 100


class World:
    """An engine of byte blocks with a tier whose jobs run only when the test says so."""

    def __init__(self, *, max_lag_blocks: int = 100) -> None:
        self.engine: dict[int, bytes] = {}
        self.tier = MemoryTier(BLOCK, lambda b: self.engine[b], self.engine.__setitem__)
        self.queue = SnapshotQueue(
            self.tier, max_lag_bytes=max_lag_blocks * BLOCK, load_timeout_s=5.0
        )

    def run(self, request: str, first: int, count: int) -> Run:
        ids = tuple(range(first, first + count))
        for block_id in ids:
            self.engine.setdefault(block_id, bytes([block_id]) * BLOCK)
        hashes = tuple(f"{request}{i}".encode() for i in ids)
        parent = f"{request}{first - 1}".encode() if first else None
        return Run(request, first, ids, hashes, parent)


@pytest.fixture
def world() -> World:
    return World()


def test_a_finished_request_is_sent_only_when_its_copies_are_done(world: World) -> None:
    world.queue.store(world.run("a", 0, 2))
    world.queue.finish("a")
    assert world.queue.poll().sent == set()
    world.tier.wait(0)
    assert world.queue.poll().sent == {"a"}
    assert world.queue.poll().sent == set()


def test_a_request_without_copies_is_sent_at_once(world: World) -> None:
    world.queue.finish("a")
    assert world.queue.poll().sent == {"a"}


def test_holds_are_released_when_the_request_ends(world: World) -> None:
    world.queue.store(world.run("a", 0, 2))
    world.tier.wait(0)
    assert set(world.tier.holds.values()) == {1}
    world.queue.finish("a")
    world.tier.wait(0)
    assert set(world.tier.holds.values()) == {0}


def test_preemption_drops_copies_that_have_not_started_and_reports_the_gap(world: World) -> None:
    world.queue.store(world.run("a", 0, 1))
    world.tier.step()
    world.queue.store(world.run("a", 1, 2))
    world.queue.preempt(["a"])
    progress = world.queue.poll()
    assert progress.gaps == {"a": 1}
    assert len(world.tier.blocks) == 1
    assert world.queue.take_stats().dropped["cancelled"] == 2


def test_lag_beyond_the_limit_drops_finished_requests_first() -> None:
    world = World(max_lag_blocks=3)
    world.queue.store(world.run("old", 0, 2))
    world.queue.finish("old")
    world.queue.store(world.run("new", 10, 2))
    assert world.queue.poll().sent == {"old"}
    assert world.queue.backlog() == (2, 2 * BLOCK)


def test_a_run_larger_than_the_limit_is_refused_and_counted() -> None:
    world = World(max_lag_blocks=1)
    world.queue.store(world.run("a", 0, 2))
    assert world.queue.backlog() == (0, 0)
    assert world.queue.take_stats().dropped["lag"] == 2


def test_a_load_reports_its_bad_blocks_and_the_reason(world: World) -> None:
    world.queue.store(world.run("a", 0, 3))
    world.tier.wait(0)
    world.tier.damaged.add(b"a1")
    world.queue.load(Run("b", 0, (20, 21, 22), (b"a0", b"a1", b"a2"), None))
    world.tier.wait(0)
    progress = world.queue.poll()
    assert progress.loaded == {"b"}
    assert progress.bad_block_ids == {21, 22}
    assert world.engine[20] == world.engine[0]
    assert world.queue.take_stats().load_failures == {"digest": 2}


def test_an_overdue_load_is_cancelled_and_recomputed(world: World) -> None:
    world.queue.load(Run("b", 0, (20,), (b"x",), None), now=100.0)
    assert world.queue.poll(now=104.0).loaded == set()
    progress = world.queue.poll(now=106.0)
    assert progress.loaded == {"b"}
    assert progress.bad_block_ids == {20}


def test_a_finished_request_never_waits_longer_than_the_time_out(world: World) -> None:
    world.queue.store(world.run("a", 0, 2))
    world.queue.finish("a", now=100.0)
    assert world.queue.poll(now=106.0).sent == {"a"}


def test_abandoning_answers_everything_that_is_waited_for(world: World) -> None:
    world.queue.store(world.run("a", 0, 1))
    world.queue.finish("a")
    world.queue.load(Run("b", 0, (20, 21), (b"x", b"y"), None))
    left = world.queue.abandon()
    assert (left.sent, left.loaded, left.bad_block_ids) == ({"a"}, {"b"}, {20, 21})
    assert world.queue.backlog() == (0, 0)
