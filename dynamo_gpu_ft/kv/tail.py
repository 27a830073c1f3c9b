"""Tails: names for the open block of a request, so that what it holds so far can lie in the arena like any sealed block.

The scheduler half names tails when it orders them and when it looks for them; everything below sees blocks. Pure functions.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tail:
    """A block of which only the first `tokens` tokens count.

    NOTE: the payload is the engine's whole block as it was. Rows behind `tokens` are whatever lay there, the next step may even
    have been writing them; they are never used, because the engine is told of `tokens` tokens only."""

    name: bytes
    tokens: int


def name_of(parent: bytes | None, token_ids: Sequence[int]) -> bytes:
    """32 bytes that stand for exactly these tokens behind the block `parent` (None at the begin), apart from all names that an
    engine gives to blocks."""
    digest = hashlib.blake2b(digest_size=32, person=b"gft-tail")
    digest.update(b"begin" if parent is None else struct.pack("<I", len(parent)) + parent)
    digest.update(struct.pack(f"<I{len(token_ids)}q", len(token_ids), *token_ids))
    return digest.digest()


def due(*, known: int, computed: int, block_size: int, every: int) -> tuple[int, int]:
    """(position of the open block, how many of its tokens a tail covers now): a multiple of `every`, 0 when there is nothing.

    `known` tokens have ids that will not change, `computed` counts this step's tokens, drafts that may be rejected among them."""
    position, rows = divmod(min(known, computed), block_size)
    return position, rows - rows % every


def candidates(
    parent: bytes | None,
    token_ids: Sequence[int],
    *,
    whole: bytes | None,
    block_size: int,
    every: int,
) -> Iterator[Tail]:
    """Tails that a prefix ending in `token_ids` (at most a block, behind `parent`) can go on from, the longest first.

    One token stays to be computed. `whole` is the name of the block that `token_ids` fill, if they do: it may be sealed already."""
    most = min(len(token_ids), block_size) - 1
    if whole is not None:
        yield Tail(whole, most)
    for tokens in range(most - most % every, 0, -every):
        yield Tail(name_of(parent, token_ids[:tokens]), tokens)
