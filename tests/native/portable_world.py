"""What the tests of export and import share: two shards' prefix in an arena, and every block of an arena, verified."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from converter_world import SOURCE, World
from door import core, token

from dynamo_gpu_ft.kv import namespace

RECORD = namespace.encode(
    {"engine": "e", "hash": "sha256"}, ["x"], placement={"block_size": 16}, geometry=SOURCE
)


def two_shards(make_arena: Any, make_writer: Any, rng: random.Random) -> World:
    """Two shards' prefix of BLOCKS blocks under RECORD, which is namespace 1 of the arena."""
    made = World(make_arena, make_writer, rng, SOURCE)
    chosen = token()
    for shard in SOURCE.shards:
        made.writers[shard] = make_writer(made.arena, shard, RECORD, token=chosen)
        made.seal(shard, made.names, 0)
    return made


def sealed(path: Path | str) -> dict[bytes, bytes]:
    """{link: payload} of every block of an arena, each verified."""
    arena = core.Arena.open(str(path), read_only=True)
    found = {}
    for slot in arena.scan():
        data = bytearray(arena.slot_bytes)
        identity = core.read_block(arena, slot.slot, data)
        found[identity.link] = bytes(data)
    return found
