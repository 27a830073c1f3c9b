"""Names of open blocks, when they are due and looked for, and how the snapshot queue replaces them: no engine, no arena."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_gpu_ft.kv import tail
from dynamo_gpu_ft.kv.blocks import Run
from dynamo_gpu_ft.kv.snapshot import SnapshotQueue
from dynamo_gpu_ft.kv.tail import Tail, name_of
from dynamo_gpu_ft.sim.tier import MemoryTier

BLOCK, SIZE = 100, 8
parents = st.none() | st.binary(min_size=1, max_size=64)
tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40)


@given(parents, tokens, parents, tokens)
def test_a_name_stands_for_one_parent_and_one_list_of_tokens(
    parent: bytes | None, ids: list[int], other: bytes | None, others: list[int]
) -> None:
    assert len(name_of(parent, ids)) == 32
    same = (parent, ids) == (other, others)
    assert (name_of(parent, ids) == name_of(other, others)) == same


def test_a_parent_cannot_pass_for_tokens_nor_its_absence_for_a_parent() -> None:
    parent = b"p" * 32
    assert len({name_of(parent, [1]), name_of(parent, [1, 0]), name_of(None, [1])}) == 3
    assert name_of(b"begin", [1]) != name_of(None, [1])
    assert name_of(parent + b"\1\0\0\0", [7]) != name_of(parent, [1, 7])


@given(parents, tokens)
def test_a_name_is_none_that_plain_hashing_of_the_same_would_give(
    parent: bytes | None, ids: list[int]
) -> None:
    plain = (parent or b"") + b"".join(i.to_bytes(8, "little") for i in ids)
    found = name_of(parent, ids)
    assert found not in (hashlib.sha256(plain).digest(), hashlib.blake2b(plain).digest()[:32])
    assert found != hashlib.blake2b(plain, digest_size=32).digest()


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 40), st.integers(1, 50))
def test_what_is_due_is_known_computed_and_a_multiple(
    known: int, computed: int, block_size: int, every: int
) -> None:
    position, count = tail.due(known=known, computed=computed, block_size=block_size, every=every)
    reached = min(known, computed)
    assert position == reached // block_size
    assert count % every == 0
    assert 0 <= reached - (position * block_size + count) < every


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50))
def test_whatever_was_due_is_looked_for_as_long_as_one_token_stays(
    block_size: int, length: int, every: int
) -> None:
    ids = list(range(min(length, block_size)))
    found = list(tail.candidates(b"p", ids, whole=None, block_size=block_size, every=every))
    wanted = [n for n in range(len(ids) - 1, 0, -1) if n % every == 0]
    assert [t.tokens for t in found] == wanted
    assert [t.name for t in found] == [name_of(b"p", ids[:n]) for n in wanted]


def test_a_block_that_is_whole_by_now_serves_for_all_tokens_but_one() -> None:
    found = list(tail.candidates(None, range(8), whole=b"w", block_size=8, every=3))
    assert found[0] == Tail(b"w", 7)
    assert [t.tokens for t in found[1:]] == [6, 3]


class World:
    """A queue over a simulated tier whose jobs run only when the test says so."""

    def __init__(self, *, max_lag_blocks: int = 100) -> None:
        self.tier = MemoryTier(BLOCK, lambda b: bytes([b]) * BLOCK, lambda *_: None)
        self.queue = SnapshotQueue(
            self.tier, max_lag_bytes=max_lag_blocks * BLOCK, load_timeout_s=5.0
        )

    def whole(self, request: str, position: int) -> None:
        parent = f"{request}{position - 1}".encode() if position else None
        name = f"{request}{position}".encode()
        self.queue.store(Run(request, position, (position,), (name,), parent))

    def tail(self, request: str, position: int, count: int, name: bytes = b"") -> None:
        parent = f"{request}{position - 1}".encode() if position else None
        name = name or f"{request}{position}+{count}".encode()
        self.queue.store(Run(request, position, (position,), (name,), parent, tail=count))

    def run(self) -> set[bytes]:
        """Everything queued, then what the queue makes of the results; what the tier holds in the end."""
        self.tier.wait(0)
        self.queue.poll()
        self.tier.wait(0)
        return set(self.tier.blocks)


@pytest.fixture
def world() -> World:
    return World()


def test_a_sealed_tail_replaces_the_one_before(world: World) -> None:
    world.tail("a", 0, 1)
    assert world.run() == {b"a0+1"}
    world.tail("a", 0, 2)
    assert set(world.tier.blocks) == {b"a0+1"}, "until the new one is sealed the old one stays"
    assert world.run() == {b"a0+2"}


def test_a_tail_that_was_not_sealed_replaces_nothing_and_is_no_gap(world: World) -> None:
    world.tail("a", 0, 1)
    world.run()
    world.tier.capacity = 1
    world.tail("a", 0, 2)
    world.tier.wait(0)
    assert world.queue.poll().gaps == {}
    assert world.run() == {b"a0+1"}
    world.tier.capacity = 9
    world.tail("a", 0, 3)
    assert world.run() == {b"a0+3"}


def test_a_whole_block_ends_its_tail_and_an_unsealed_one_does_not(world: World) -> None:
    world.tail("a", 0, 3)
    world.run()
    world.tier.capacity = 1
    world.whole("a", 0)
    assert world.run() == {b"a0+3"}
    world.tier.capacity = 9
    world.whole("a", 0)
    world.tail("a", 1, 1)
    assert world.run() == {b"a0", b"a1+1"}


def test_the_end_of_a_request_takes_its_tails_with_it_those_under_way_too(world: World) -> None:
    world.whole("a", 0)
    world.tail("a", 1, 1)
    world.run()
    world.tail("a", 1, 2)
    world.queue.finish("a")
    world.tier.wait(0)
    assert world.queue.poll().sent == {"a"}
    assert world.run() == {b"a0"}
    assert len(world.queue._tails) == 0


def test_preemption_cancels_a_tail_under_way_and_drops_nothing_twice(world: World) -> None:
    world.tail("a", 0, 1)
    world.run()
    world.tail("a", 0, 2)
    world.queue.preempt(["a"])
    assert world.run() == {b"a0+1"}
    dropped: list[bytes] = []
    world.tier.drop, drop = lambda names: (dropped.extend(names), drop(names)), world.tier.drop  # type: ignore[method-assign,assignment]
    world.tail("a", 0, 3)
    assert world.run() == {b"a0+3"}
    world.queue.finish("a")
    assert world.run() == set()
    assert dropped == [b"a0+1", b"a0+3"]


def test_a_tail_that_two_requests_share_stays_until_both_let_go(world: World) -> None:
    world.tail("a", 0, 1, b"same")
    world.tail("b", 0, 1, b"same")
    world.run()
    world.queue.finish("a")
    assert world.run() == {b"same"}
    world.queue.finish("b")
    assert world.run() == set()


def test_a_loaded_tail_is_held_and_goes_when_a_newer_one_is_sealed(world: World) -> None:
    world.tier.blocks = {b"a0": (None, bytes(BLOCK)), b"old": (b"a0", bytes(BLOCK))}
    world.queue.load(Run("a", 0, (4, 5), (b"a0", b"old"), None, tail=3))
    world.tier.wait(0)
    assert world.queue.poll().bad_block_ids == set()
    assert world.tier.holds[b"old"] == 1
    stats = world.queue.take_stats()
    assert (stats.loaded_blocks, stats.loaded_tail_tokens) == (1, 3)
    world.tail("a", 1, 4)
    assert world.run() == {b"a0", b"a1+4"}


def test_under_pressure_tails_go_first_and_a_new_one_pushes_nothing_out() -> None:
    world = World(max_lag_blocks=2)
    world.whole("a", 0)
    world.tail("a", 1, 1)
    world.tail("a", 1, 2)
    assert world.queue.take_stats().dropped == {"lag": 1}
    world.whole("b", 0)
    assert world.run() == {b"a0", b"b0"}
    assert world.queue.take_stats().dropped == {"cancelled": 1}
