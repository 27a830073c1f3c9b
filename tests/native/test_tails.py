"""Tails in a real arena, as the scheduler looks them up: every shard must have it, behind its own parent, for its own tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
from door import SLOT_BYTES, core, name, seal, seal_chain, token

from dynamo_gpu_ft.kv.prefix import PrefixIndex, Shelf
from dynamo_gpu_ft.kv.tail import Tail, candidates, name_of

RECORD, BLOCK, WHOLE = b'{"model":"m"}', 8, 3
PROMPT = list(range(100, 100 + WHOLE * BLOCK))
HASHES = [name(i) for i in range(WHOLE)]


class World:
    """An arena with two shards that both have the whole blocks of one prompt."""

    def __init__(self, make_arena: Callable[..., Any]) -> None:
        self.arena = make_arena(slots=32)
        mine = token()
        self.epoch = self.arena.begin_epoch(mine)
        number = self.arena.add_namespace(RECORD)
        self.writers = [
            self.arena.attach_writer(shard=shard, token=mine, namespace=number) for shard in (0, 1)
        ]
        for writer in self.writers:
            seal_chain(writer, HASHES)
        shelf = Shelf(RECORD, (0, 1), SLOT_BYTES, self.epoch, self.arena)
        self.index = PrefixIndex(shelf, BLOCK)

    def seal(
        self, ids: list[int], *, shards: tuple[int, ...] = (0, 1), parent: int = WHOLE
    ) -> None:
        """A tail of `ids` behind the first `parent` blocks."""
        before = HASHES[parent - 1] if parent else None
        for shard in shards:
            assert seal(self.writers[shard], name_of(before, ids), before, parent)

    def found(self, ids: list[int], *, every: int = 1, whole: bytes | None = None) -> int:
        """How many tokens of `ids` behind the whole blocks are restorable."""
        tails = candidates(HASHES[-1], ids, whole=whole, block_size=BLOCK, every=every)
        usable = self.index.usable(lambda _: HASHES, WHOLE, tails)
        assert usable.blocks == WHOLE + (usable.tail is not None)
        assert usable.reason == "complete"
        assert sum(count for _, count in usable.runs) == usable.blocks
        return usable.tail.tokens if usable.tail is not None else 0


@pytest.fixture
def world(make_arena: Callable[..., Any]) -> World:
    return World(make_arena)


def test_the_longest_tail_of_these_tokens_is_found_and_one_token_is_left(world: World) -> None:
    for count in (2, 4, 5):
        world.seal([1, 2, 3, 4, 5][:count])
    assert world.found([1, 2, 3, 4, 5, 6]) == 5
    assert world.found([1, 2, 3, 4, 5]) == 4
    assert world.found([1, 2, 3, 4, 5, 6], every=2) == 4
    assert world.found([1]) == 0


def test_a_tail_of_other_tokens_behind_the_same_block_is_never_used(world: World) -> None:
    world.seal([1, 2, 9])
    assert world.found([1, 2, 3, 4]) == 0
    assert world.found([1, 2, 9, 4]) == 3


def test_a_tail_that_one_shard_lacks_is_not_used(world: World) -> None:
    world.seal([1, 2, 3], shards=(0,))
    world.seal([1, 2])
    assert world.found([1, 2, 3, 4]) == 2
    world.seal([1, 2, 3], shards=(1,))
    assert world.found([1, 2, 3, 4]) == 3


def test_equal_tokens_behind_another_block_do_not_serve(world: World) -> None:
    world.seal([1, 2, 3], parent=2)
    assert world.found([1, 2, 3, 4]) == 0


def test_a_tail_sealed_under_the_wrong_parent_ends_the_chain(world: World) -> None:
    """A lying writer: the right name, but sealed at another place of the prompt."""
    stolen = name_of(HASHES[-1], [1, 2, 3])
    for writer in world.writers:
        assert seal(writer, stolen, HASHES[0], 1)
    assert world.found([1, 2, 3, 4]) == 0


def test_a_tail_of_a_newer_epoch_is_not_used(world: World) -> None:
    world.seal([1, 2])
    mine = token()
    world.arena.begin_epoch(mine, takeover=True)
    world.writers = [
        world.arena.attach_writer(shard=shard, token=mine, namespace=0) for shard in (0, 1)
    ]
    world.seal([1, 2, 3])
    assert world.found([1, 2, 3, 4]) == 2


def test_a_block_that_became_whole_serves_without_its_last_token(world: World) -> None:
    for writer in world.writers:
        seal(writer, name(WHOLE), HASHES[-1], WHOLE)
    assert world.found(list(range(BLOCK)), whole=name(WHOLE)) == BLOCK - 1
    assert world.found(list(range(BLOCK)), whole=name(77)) == 0


def test_tails_are_not_looked_for_behind_an_incomplete_prefix(world: World) -> None:
    world.seal([1, 2])
    asked: list[int] = []

    def tails() -> Any:
        asked.append(1)
        yield Tail(name_of(HASHES[-1], [1, 2]), 2)

    usable = world.index.usable(lambda _: [*HASHES, name(9)], WHOLE + 1, tails())
    assert (usable.blocks, usable.tail, asked) == (WHOLE, None, [])


def test_a_request_shorter_than_a_block_has_its_tail_at_the_begin(world: World) -> None:
    world.seal([5, 6], parent=0)
    tails = candidates(None, [5, 6, 7], whole=None, block_size=BLOCK, every=1)
    usable = world.index.usable(lambda _: [], 0, tails)
    assert (usable.blocks, usable.tail) == (1, Tail(name_of(None, [5, 6]), 2))


def test_a_changed_byte_of_a_tail_is_noticed_when_it_is_read(world: World) -> None:
    world.seal([1, 2])
    tail = name_of(HASHES[-1], [1, 2])
    read = world.writers[0].find(block_hash=tail, parent_hash=HASHES[-1])
    ctypes.c_uint8.from_address(read.address + 7).value ^= 1
    with pytest.raises(core.CoreError) as caught:
        read.verify()
    assert caught.value.code == "digest"
    assert world.found([1, 2, 3]) == 0, (
        "damaged blocks are taken out, so that they can be stored again"
    )


def test_a_tail_is_everywhere_once_every_shard_has_sealed_it(world: World) -> None:
    shelf = world.index._own
    ids = [1, 2]
    tail = name_of(HASHES[-1], ids)
    assert not shelf.everywhere(tail)
    world.seal(ids, shards=(1,))
    assert not shelf.everywhere(tail)
    claim = world.writers[0].claim(block_hash=tail, parent_hash=HASHES[-1], position=WHOLE)
    assert not shelf.everywhere(tail), "being written is not sealed"
    claim.seal()
    assert shelf.everywhere(tail)
    assert shelf.everywhere(HASHES[0])
    assert shelf.everywhere(HASHES[-1])
