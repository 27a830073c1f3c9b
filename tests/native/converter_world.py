"""Two arenas and a model's KV for the converter's tests: a sealed source prefix, and a target that knows what must come out.

What must come out is said by `relayout_world`, which shares no arithmetic with the converter.
"""

from __future__ import annotations

import ctypes
import dataclasses
import random
from typing import Any

from door import core, name, token
from relayout_world import kv_of_model, payload

from dynamo_gpu_ft.kv.convert import compiled
from dynamo_gpu_ft.kv.geometry import LayerRun, Part, ShardLayout
from dynamo_gpu_ft.kv.relayout import plan

SOURCE = ShardLayout(
    block_tokens=16,
    piece_tokens=16,
    heads=4,
    tp=2,
    dtype="torch.bfloat16",
    itemsize=2,
    parts=(Part("k", 8, "PNHSD"), Part("v", 8, "PNHSD")),
    layers=(LayerRun("l.{}", 0, 3),),
)
HND = (Part("k", 8, "PHNSD"), Part("v", 8, "PHNSD"))
TARGETS = [
    dataclasses.replace(SOURCE, tp=1, parts=HND),
    dataclasses.replace(SOURCE, tp=4),
    dataclasses.replace(SOURCE, tp=1, block_tokens=32),
    dataclasses.replace(SOURCE, tp=4, block_tokens=4, piece_tokens=4, parts=HND),
]
BLOCKS = 8  # of the source


class World:
    """A source arena with a sealed prefix of a random model, and what target payloads must be."""

    def __init__(
        self, make_arena: Any, make_writer: Any, rng: random.Random, source: ShardLayout
    ) -> None:
        self.make_arena, self.make_writer = make_arena, make_writer
        self.source_layout = source
        self.model = kv_of_model(rng, BLOCKS * source.block_tokens, source)
        self.arena = make_arena(slots=64, slot_bytes=source.payload_bytes)
        self.names = [name(i, "s") for i in range(BLOCKS)]
        chosen = token()
        self.writers = {}
        for shard in source.shards:
            self.writers[shard] = make_writer(self.arena, shard, b"source", token=chosen)
            self.seal(shard, self.names, 0)

    def seal(self, shard: int, names: list[bytes], first: int) -> None:
        for at, block_hash in enumerate(names, first):
            parent = names[at - 1] if at else None
            claim = self.writers[shard].claim(
                block_hash=block_hash, parent_hash=parent, position=at
            )
            ctypes.memmove(
                claim.address,
                payload(self.model, self.source_layout, shard, at),
                self.arena.slot_bytes,
            )
            claim.seal()

    def target(self, layout: ShardLayout, shard: int, slots: int = 64) -> Target:
        return Target(self, layout, shard, slots)

    def damage(self, shard: int, position: int) -> None:
        (slot,) = [s for s in self.arena.scan() if (s.shard, s.position) == (shard, position)]
        found = self.writers[shard].find(
            block_hash=slot.block_hash, parent_hash=self.names[position - 1] if position else None
        )
        byte = ctypes.c_char.from_address(found.address + self.arena.slot_bytes // 2)
        byte.value = bytes([byte.value[0] ^ 1])


class Target:
    """The arena and writer that a conversion fills, the converter, and the list of what to convert."""

    def __init__(
        self, world: World, layout: ShardLayout, shard: int, slots: int, **how: Any
    ) -> None:
        self.world, self.layout, self.shard = world, layout, shard
        self.plan = plan(world.source_layout, layout, shard)
        self.arena = world.make_arena(slots=slots, slot_bytes=layout.payload_bytes)
        self.writer = world.make_writer(self.arena, shard, b"target")
        self.converter = core.Converter(
            self.writer,
            world.arena,
            namespace=0,
            max_epoch=world.arena.epoch,
            shards=self.plan.source_shards,
            phases=compiled(self.plan),
        )
        count = BLOCKS * world.source_layout.block_tokens // layout.block_tokens
        self.names = [name(i, "t") for i in range(count)]

    def list(self, first: int = 0, end: int | None = None) -> list[Any]:
        return [
            core.Target(
                self.names[p],
                self.names[p - 1] if p else None,
                p,
                [self.world.names[b] for b in self.plan.sources(p)],
            )
            for p in range(first, len(self.names) if end is None else end)
        ]

    def run(self, first: int = 0, end: int | None = None, timeout: float = 30.0) -> list[str]:
        before = self.plan.sources(first)[0]
        parent = self.world.names[before - 1] if before else None
        return self.converter.convert(
            self.list(first, end), source_parent=parent, timeout=timeout
        ).statuses

    def check(self, blocks: int) -> None:
        """Exactly the first `blocks` are sealed, each as the reference says."""
        usable = self.arena.usable_prefix(
            namespace=0, shards=[self.shard], block_hashes=self.names, max_epoch=self.arena.epoch
        )
        assert usable.blocks == blocks
        for p in range(blocks):
            found = self.writer.find(
                block_hash=self.names[p], parent_hash=self.names[p - 1] if p else None
            )
            data = ctypes.string_at(found.address, found.payload_bytes)
            found.verify()
            assert data == payload(self.world.model, self.layout, self.shard, p)
        assert self.arena.counts()["writing"] == 0
