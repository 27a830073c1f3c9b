"""Blocks that leave an arena and come back: the identity they had goes with them, and lies about it are refused.

Also the epoch floor, without which a new arena would number its epochs below those of blocks kept elsewhere.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
from door import SLOT_BYTES, code_of, core, name, payload_of, read_back, seal, seal_chain, token

FIELDS = (
    "namespace_id shard position epoch payload_bytes block_hash parent_link link digest".split()
)


def identities(writer: Any, hashes: list[bytes]) -> list[Any]:
    return [
        writer.find(block_hash=h, parent_hash=hashes[i - 1] if i else None).identity
        for i, h in enumerate(hashes)
    ]


def changed(identity: Any, **other: Any) -> Any:
    return core.Identity(**{field: getattr(identity, field) for field in FIELDS} | other)


def claim_for(writer: Any, block_hash: bytes, parent: bytes | None, position: int) -> Any:
    claim = writer.claim(block_hash=block_hash, parent_hash=parent, position=position)
    ctypes.memmove(claim.address, payload_of(block_hash), SLOT_BYTES)
    return claim


@pytest.fixture
def kept(make_arena: Callable[..., Any], make_writer: Callable[..., Any]) -> list[Any]:
    """The identities of a chain of three blocks of an arena that is gone, sealed in its epoch 2."""
    arena = make_arena()
    make_writer(arena)
    writer = make_writer(arena)
    hashes = [name(i) for i in range(3)]
    seal_chain(writer, hashes)
    return identities(writer, hashes)


@pytest.fixture
def later(arena: Any) -> Any:
    """A writer of a new arena whose epochs begin above those of the kept blocks."""
    chosen = token()
    arena.begin_epoch(chosen, floor=2)
    index = arena.add_namespace(b"namespace")
    return arena.attach_writer(shard=0, token=chosen, namespace=index)


def test_a_read_tells_the_whole_identity(arena: Any, writer: Any) -> None:
    seal_chain(writer, [b"a", b"b"])
    first, second = identities(writer, [b"a", b"b"])
    assert (first.shard, first.position, first.epoch, first.payload_bytes) == (0, 0, 1, SLOT_BYTES)
    assert first.namespace_id == first.parent_link == core.digest(b"namespace")
    assert first.digest == core.digest(payload_of(b"a"))
    assert second.parent_link == first.link != second.link
    assert second.block_hash == b"b"


def test_a_chain_restored_under_its_own_identity_is_the_same_chain(
    arena: Any, later: Any, kept: list[Any]
) -> None:
    assert later.epoch == 3
    for i, identity in enumerate(kept):
        parent = name(i - 1) if i else None
        assert claim_for(later, name(i), parent, i).seal_as(identity, parent_hash=parent)
    assert seal(later, name(3), name(2), 3)
    again = identities(later, [name(i) for i in range(4)])
    for before, after in zip(kept, again, strict=False):
        assert all(getattr(before, field) == getattr(after, field) for field in FIELDS)
    assert [each.epoch for each in again] == [2, 2, 2, 3]
    assert read_back(later, name(1), name(0)) == payload_of(name(1))
    answer = arena.usable_prefix(
        namespace=0, shards=[0], block_hashes=[name(i) for i in range(4)], max_epoch=3
    )
    assert (answer.blocks, answer.reason) == (4, "complete")


def test_a_block_restored_twice_is_there_once(arena: Any, later: Any, kept: list[Any]) -> None:
    first = claim_for(later, name(0), None, 0)
    second = claim_for(later, name(0), None, 0)
    assert first.seal_as(kept[0], parent_hash=None)
    assert not second.seal_as(kept[0], parent_hash=None)
    assert arena.counts()["sealed"] == 1
    assert arena.counts()["writing"] == 0


def test_a_restored_block_is_held_when_asked(arena: Any, later: Any, kept: list[Any]) -> None:
    assert claim_for(later, name(0), None, 0).seal_as(kept[0], parent_hash=None, hold=False)
    assert arena.counts()["held"] == 0
    assert claim_for(later, name(1), name(0), 1).seal_as(kept[1], parent_hash=name(0))
    assert arena.counts()["held"] == 1


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        ({"epoch": 9}, "epoch"),
        ({"epoch": 1}, "damaged"),
        ({"epoch": 0}, "damaged"),
        ({"link": bytes(16)}, "damaged"),
        ({"parent_link": bytes(16)}, "damaged"),
        ({"digest": bytes(16)}, "damaged"),
        ({"shard": 1}, "invalid"),
        ({"namespace_id": bytes(16)}, "invalid"),
        ({"position": 2}, "invalid"),
        ({"block_hash": b"other"}, "invalid"),
        ({"block_hash": b""}, "invalid"),
        ({"block_hash": b"x" * 100}, "invalid"),
        ({"payload_bytes": SLOT_BYTES + 1}, "mismatch"),
    ],
)
def test_an_identity_that_lies_is_refused_and_the_slot_given_back(
    arena: Any, later: Any, kept: list[Any], lie: dict[str, Any], code: str
) -> None:
    assert claim_for(later, name(0), None, 0).seal_as(kept[0], parent_hash=None)
    claim = claim_for(later, name(1), name(0), 1)
    assert code_of(claim.seal_as, changed(kept[1], **lie), parent_hash=name(0)) == code
    assert code_of(claim.seal_as, kept[1], parent_hash=name(0)) == "invalid"  # the claim is over
    assert arena.counts()["writing"] == 0
    assert arena.counts()["sealed"] == 1


def test_another_payload_than_was_sealed_is_refused(
    arena: Any, later: Any, kept: list[Any]
) -> None:
    claim = later.claim(block_hash=name(0), parent_hash=None, position=0)
    ctypes.memmove(claim.address, payload_of(name(1)), SLOT_BYTES)
    assert code_of(claim.seal_as, kept[0], parent_hash=None) == "digest"
    assert arena.counts()["sealed"] == 0


def test_a_restored_block_needs_the_parent_that_it_continues(
    arena: Any, later: Any, kept: list[Any]
) -> None:
    seal(later, name(0), None, 0)  # equal bytes, but sealed in a later epoch: another link
    claim = claim_for(later, name(1), name(0), 1)
    assert code_of(claim.seal_as, kept[1], parent_hash=name(0)) == "chain"
    found = later.find(block_hash=name(0), parent_hash=None)
    claim = claim_for(later, name(1), name(0), 1)
    ctypes.memset(found.address, 1, 8)
    assert code_of(found.verify) == "digest"  # drops the parent
    assert code_of(claim.seal_as, kept[1], parent_hash=name(0)) == "no_parent"
    claim = claim_for(later, name(0), None, 0)
    assert code_of(claim.seal_as, kept[0], parent_hash=b"x") == "invalid"


def test_a_fenced_writer_restores_nothing(arena: Any, later: Any, kept: list[Any]) -> None:
    claim = claim_for(later, name(0), None, 0)
    arena.begin_epoch(token(), takeover=True)
    assert code_of(claim.seal_as, kept[0], parent_hash=None) == "fenced"
    assert arena.counts()["writing"] == 0


def test_epochs_open_above_their_floor(arena: Any) -> None:
    first = token()
    assert arena.begin_epoch(first, floor=41) == 42
    assert arena.begin_epoch(first, floor=99) == 42  # joins what is open
    assert arena.begin_epoch(token(), floor=7) == 43
    assert arena.begin_epoch(token(), floor=43) > 43
    assert code_of(arena.begin_epoch, token(), floor=1 << 63) == "invalid"


def test_a_jump_of_the_epoch_forgets_no_superseded_token(arena: Any) -> None:
    tokens = [token() for _ in range(100)]
    epoch = 0
    for i, each in enumerate(tokens):
        opened = arena.begin_epoch(each, floor=epoch + (i * 61 if i % 3 == 0 else 0))
        assert opened > epoch + (i * 61 if i % 3 == 0 else 0)
        epoch = opened
    for old in tokens[:-1]:
        assert code_of(arena.begin_epoch, old, takeover=True) == "fenced"
    assert arena.begin_epoch(tokens[-1]) == epoch
