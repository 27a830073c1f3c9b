"""Blocks of a shard: claimed, sealed, found, verified, held, evicted; and what a reader is told when something is wrong.

Everything goes through the Python door; payloads are checked byte by byte.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
from door import SLOT_BYTES, code_of, core, name, payload_of, read_back, seal, seal_chain


def prefix(
    arena: Any, hashes: list[bytes], epoch: int = 1, shards: tuple[int, ...] = (0,)
) -> tuple[int, str, int]:
    answer = arena.usable_prefix(
        namespace=0, shards=list(shards), block_hashes=hashes, max_epoch=epoch
    )
    return answer.blocks, answer.reason, answer.shard


def test_a_sealed_chain_comes_back_byte_for_byte(arena: Any, writer: Any) -> None:
    hashes = [name(i) for i in range(10)]
    seal_chain(writer, hashes)
    assert prefix(arena, hashes) == (10, "complete", -1)
    for i, block_hash in enumerate(hashes):
        assert read_back(writer, block_hash, hashes[i - 1] if i else None) == payload_of(block_hash)
    assert {info.state for info in arena.scan()} == {"sealed"}
    assert all(arena.verify(info.slot) == "ok" for info in arena.scan())


def test_another_process_view_sees_it_without_any_call_in_between(arena: Any, writer: Any) -> None:
    reader = core.Arena.open(arena.path, read_only=True)
    hashes = [name(i) for i in range(3)]
    for i in range(3):
        assert prefix(reader, hashes) == (i, "missing", 0)
        seal(writer, hashes[i], hashes[i - 1] if i else None, i)
    assert prefix(reader, hashes) == (3, "complete", -1)


def test_scan_tells_what_was_sealed(arena: Any, writer: Any) -> None:
    seal_chain(writer, [b"first", b"second"])
    info = sorted(arena.scan(), key=lambda each: each.position)[1]
    assert (info.namespace, info.shard, info.position, info.epoch) == (0, 0, 1, 1)
    assert (info.block_hash, info.payload_bytes, info.held) == (b"second", SLOT_BYTES, True)
    assert info.generation == 1
    assert info.last_used > 0


def test_an_equal_block_is_not_written_twice(arena: Any, writer: Any) -> None:
    seal_chain(writer, [b"a", b"b"])
    assert writer.claim(block_hash=b"a", parent_hash=None, position=0) is None
    assert writer.claim(block_hash=b"b", parent_hash=b"a", position=1) is None
    assert arena.counts()["sealed"] == 2


def test_a_block_needs_its_parent(writer: Any) -> None:
    assert code_of(writer.claim, block_hash=b"b", parent_hash=b"a", position=1) == "no_parent"
    claim = writer.claim(block_hash=b"a", parent_hash=None, position=0)
    assert code_of(writer.claim, block_hash=b"b", parent_hash=b"a", position=1) == "no_parent"
    claim.seal()
    assert code_of(writer.claim, block_hash=b"b", parent_hash=b"a", position=2) == "no_parent"


def test_arguments_that_break_a_rule_are_refused(arena: Any, writer: Any) -> None:
    assert code_of(writer.claim, block_hash=b"", parent_hash=None, position=0) == "invalid"
    assert code_of(writer.claim, block_hash=b"x" * 65, parent_hash=None, position=0) == "invalid"
    assert code_of(writer.claim, block_hash=b"x", parent_hash=None, position=1) == "invalid"
    assert code_of(writer.claim, block_hash=b"x", parent_hash=b"y", position=0) == "invalid"
    assert code_of(prefix, arena, [b""]) == "invalid"
    assert code_of(prefix, arena, [b"x"], 1, ()) == "invalid"
    assert (
        code_of(arena.usable_prefix, namespace=7, shards=[0], block_hashes=[], max_epoch=1)
        == "invalid"
    )
    assert code_of(arena.verify, 64) == "invalid"
    with pytest.raises(TypeError):
        writer.claim(block_hash="text", parent_hash=None, position=0)


def test_nothing_is_readable_before_the_seal_or_after_an_abandon(arena: Any, writer: Any) -> None:
    claim = writer.claim(block_hash=b"a", parent_hash=None, position=0)
    assert prefix(arena, [b"a"]) == (0, "writing", 0)
    assert arena.counts()["writing"] == 1
    claim.abandon()
    claim.abandon()
    assert prefix(arena, [b"a"]) == (0, "missing", 0)
    assert code_of(claim.seal) == "invalid"
    assert arena.counts()["empty"] == 64


def test_a_dropped_claim_gives_its_slot_back(arena: Any, writer: Any) -> None:
    claim = writer.claim(block_hash=b"a", parent_hash=None, position=0)
    assert arena.counts()["writing"] == 1
    del claim
    assert arena.counts()["writing"] == 0


def test_find_says_why_a_block_cannot_be_used(writer: Any) -> None:
    seal_chain(writer, [b"a", b"b"])
    seal(writer, b"other", None, 0)
    assert code_of(writer.find, block_hash=b"c", parent_hash=b"b") == "not_found"
    assert code_of(writer.find, block_hash=b"b", parent_hash=b"other") == "chain"
    assert code_of(writer.find, block_hash=b"b", parent_hash=None) == "chain"
    assert code_of(writer.find, block_hash=b"a", parent_hash=b"b") == "chain"


def test_a_changed_payload_is_refused_and_can_be_stored_again(arena: Any, writer: Any) -> None:
    seal_chain(writer, [b"a", b"b"])
    found = writer.find(block_hash=b"a", parent_hash=None)
    found.verify()
    ctypes.memset(found.address + 500, 0, 1)
    assert arena.verify(found.slot) == "digest"
    assert code_of(found.verify) == "digest"
    assert prefix(arena, [b"a", b"b"]) == (0, "missing", 0)
    assert seal(writer, b"a", None, 0)
    assert prefix(arena, [b"a", b"b"])[0] == 2


def test_a_reader_learns_that_its_block_was_given_away(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any]
) -> None:
    arena = make_arena(slots=2)
    writer = make_writer(arena)
    seal(writer, b"a", None, 0)
    found = writer.find(block_hash=b"a", parent_hash=None)
    found.recheck()
    seal(writer, b"b", None, 0)
    seal(writer, b"c", None, 0)
    assert code_of(found.recheck) == "changed"
    assert code_of(found.verify) == "changed"


def test_a_prefix_ends_at_the_first_shard_that_lacks_a_block(
    arena: Any, make_writer: Callable[..., Any]
) -> None:
    token = bytes(16)
    writers = [make_writer(arena, shard=shard, token=token) for shard in (0, 3)]
    hashes = [name(i) for i in range(5)]
    seal_chain(writers[0], hashes)
    seal_chain(writers[1], hashes[:2])
    assert prefix(arena, hashes, shards=(0, 3)) == (2, "missing", 3)
    assert prefix(arena, hashes, shards=(0,)) == (5, "complete", -1)
    assert prefix(arena, hashes, shards=(0, 1)) == (0, "missing", 1)


def test_a_block_of_a_newer_epoch_is_not_for_an_older_reader(
    arena: Any, make_writer: Callable[..., Any]
) -> None:
    make_writer(arena)
    writer = make_writer(arena)
    seal(writer, b"a", None, 0)
    assert writer.epoch == 2
    assert prefix(arena, [b"a"], epoch=1) == (0, "epoch", 0)
    assert prefix(arena, [b"a"], epoch=2) == (1, "complete", -1)


def test_a_new_epoch_goes_on_behind_blocks_of_the_old_one(
    arena: Any, make_writer: Callable[..., Any]
) -> None:
    seal_chain(make_writer(arena), [b"a", b"b"])
    writer = make_writer(arena)
    assert writer.claim(block_hash=b"b", parent_hash=b"a", position=1) is None
    assert seal(writer, b"c", b"b", 2)
    assert prefix(arena, [b"a", b"b", b"c"], epoch=2) == (3, "complete", -1)


def test_another_namespace_is_another_world(arena: Any, make_writer: Callable[..., Any]) -> None:
    seal_chain(make_writer(arena, record=b"model A"), [b"a"])
    other = make_writer(arena, record=b"model B")
    assert other.namespace == 1
    assert code_of(other.find, block_hash=b"a", parent_hash=None) == "not_found"
    answer = arena.usable_prefix(namespace=1, shards=[0], block_hashes=[b"a"], max_epoch=9)
    assert (answer.blocks, answer.reason) == (0, "missing")


def test_a_block_sealed_again_on_another_parent_replaces_the_old_one(
    arena: Any, writer: Any
) -> None:
    seal_chain(writer, [b"a", b"b"])
    found = writer.find(block_hash=b"a", parent_hash=None)
    ctypes.memset(found.address, 1, 8)
    assert code_of(found.verify) == "digest"
    claim = writer.claim(block_hash=b"a", parent_hash=None, position=0)
    ctypes.memset(claim.address, 5, SLOT_BYTES)  # other bytes than before: another link
    claim.seal()
    assert prefix(arena, [b"a", b"b"]) == (1, "chain", 0)
    assert seal(writer, b"b", b"a", 1)
    assert prefix(arena, [b"a", b"b"]) == (2, "complete", -1)
    assert arena.counts()["sealed"] == 2


def test_the_arena_evicts_what_was_used_longest_ago(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any]
) -> None:
    arena = make_arena(slots=4)
    writer = make_writer(arena)
    for i in range(4):
        seal(writer, name(i), None, 0)
    writer.release([name(i) for i in range(4)])
    writer.touch([name(0), name(2)])
    seal(writer, b"x", None, 0)
    seal(writer, b"y", None, 0)
    assert {info.block_hash for info in arena.scan()} == {name(0), name(2), b"x", b"y"}


def test_open_requests_blocks_are_evicted_last(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any]
) -> None:
    arena = make_arena(slots=4)
    writer = make_writer(arena)
    for i in range(4):
        seal(writer, name(i), None, 0)  # all start held
    assert arena.counts()["held"] == 4
    writer.release([name(2), name(3)])
    seal(writer, b"x", None, 0)
    seal(writer, b"y", None, 0)
    assert {info.block_hash for info in arena.scan()} == {name(0), name(1), b"x", b"y"}
    seal(writer, b"z", None, 0)
    assert name(0) not in {info.block_hash for info in arena.scan()}


def test_a_hold_counts_as_often_as_it_was_taken(arena: Any, writer: Any) -> None:
    seal(writer, b"a", None, 0)
    writer.hold([b"a", b"unknown"])
    writer.release([b"a"])
    assert arena.counts()["held"] == 1
    writer.release([b"a"])
    assert arena.counts()["held"] == 0
    writer.release([b"a"])
    writer.hold([b"a"])
    assert arena.counts()["held"] == 1


def test_holds_outlive_their_epoch_by_one(arena: Any, make_writer: Callable[..., Any]) -> None:
    seal(make_writer(arena), b"a", None, 0)
    for held in (1, 0):
        make_writer(arena)
        assert arena.counts()["held"] == held


def test_a_released_chain_is_evicted_from_its_end(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any]
) -> None:
    arena = make_arena(slots=5)
    writer = make_writer(arena)
    hashes = [name(i) for i in range(5)]
    seal_chain(writer, hashes)
    writer.release(hashes)
    for i in range(3):
        seal(writer, name(i, "x"), None, 0)
        assert prefix(arena, hashes)[0] == 4 - i


def test_a_full_arena_of_open_claims_says_full_and_never_the_parent(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any]
) -> None:
    arena = make_arena(slots=2)
    writer = make_writer(arena)
    seal(writer, b"a", None, 0)
    claim = writer.claim(block_hash=b"b", parent_hash=b"a", position=1)
    assert code_of(writer.claim, block_hash=b"c", parent_hash=b"a", position=1) == "full"
    claim.abandon()
    assert seal(writer, b"c", b"a", 1)


def test_many_times_more_blocks_than_slots_keep_the_index_working(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any]
) -> None:
    arena = make_arena(slots=100)
    writer = make_writer(arena)
    for i in range(5000):
        assert seal(writer, name(i), None, 0)
        writer.release([name(i)])
    for i in range(4900, 5000):
        assert read_back(writer, name(i), None) == payload_of(name(i))
