"""Rows of a step packed into tiles of a fixed number of rows. Pure: lists in, lists out; the rank makes tensors of them.

A step is a list of `Piece`s, each a run of known tokens of one request; pieces follow one another in tiles, in order, so the KV of a
prefill's earlier rows is written before its later rows look at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from dynamo_gpu_ft.engines.reference.sampling import Sampling


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """`tokens` of one request from position `start` on, its blocks up to there; with `sampling`, the token behind the last of them is
    drawn."""

    request: str
    start: int
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    sampling: Sampling | None = None


@dataclass(slots=True)
class Rows:
    """One tile: a value per row, padded to the tile's size; the first `used` rows are in use. `draws`: (row, piece) where a token is to
    be drawn."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    tables: list[tuple[int, ...]] = field(default_factory=list)
    draws: list[tuple[int, Piece]] = field(default_factory=list)
    used: int = 0


def pack(pieces: Sequence[Piece], tile: int, block: int) -> list[Rows]:
    """The tiles of a step, each with exactly `tile` rows; unused rows are at position 0 of block 0, and write to its last place: the first
    one is the canary's, which has its bits whatever else is in the tile."""
    tiles: list[Rows] = []
    for piece in pieces:
        for offset, token in enumerate(piece.tokens):
            if not tiles or len(tiles[-1].tokens) == tile:
                tiles.append(Rows())
            rows = tiles[-1]
            position = piece.start + offset
            rows.tokens.append(token)
            rows.positions.append(position)
            rows.blocks.append(piece.blocks[position // block])
            rows.places.append(position % block)
            rows.tables.append(piece.blocks[: position // block + 1])
            if piece.sampling is not None and offset == len(piece.tokens) - 1:
                rows.draws.append((len(rows.tokens) - 1, piece))
    for rows in tiles:
        rows.used = len(rows.tokens)
        unused = tile - rows.used
        for column in (rows.tokens, rows.positions, rows.blocks):
            column += [0] * unused
        rows.places += [block - 1] * unused
        rows.tables += [(0,)] * unused
        width = max(map(len, rows.tables))
        rows.tables = [(*table, *(0,) * (width - len(table))) for table in rows.tables]
    return tiles
