"""What a standby does before it has a shard: host memory for the largest one, and one tile of rows through it.

A load behind a loss finds memory whose pages are there, and the first step finds libraries that were used before. Between the sources
of a standby's rank and the model; nothing of it goes into a token.
"""

from __future__ import annotations

import math
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from dynamo_gpu_ft.engines.reference import needs, shape, split
from dynamo_gpu_ft.engines.reference.joint import Group, StageJoint
from dynamo_gpu_ft.engines.reference.kv import cache_size, make_cache
from dynamo_gpu_ft.engines.reference.model import Stage, Tile
from dynamo_gpu_ft.engines.reference.options import Options
from dynamo_gpu_ft.engines.reference.sampling import Sampling
from dynamo_gpu_ft.engines.reference.split import Cut
from dynamo_gpu_ft.engines.reference.tiles import Piece, pack
from dynamo_gpu_ft.engines.reference.weights import ShardWeights, room_for

#: One known token, at a place in the cache that belongs to nobody else: the first of block 0 (see tiles.py).
CANARY = Piece(request="canary", start=0, tokens=(1,), blocks=(0,), sampling=Sampling())


@dataclass(frozen=True)
class Rooms:
    """Memory for a shard that is to come, uint8 in host memory: of any content for the weights, of zeros for the cache."""

    weights: torch.Tensor | None = None
    cache: torch.Tensor | None = None


NO_ROOMS = Rooms()


def touched(size: int) -> torch.Tensor:
    """`size` bytes of zeros in pages that are there, large ones where the kernel gives them: with few pages a process ends sooner, and its
    death is seen sooner."""
    memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # this kernel has none
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).zero_()


def rooms_of(cut: Cut, made: shape.Shape, options: Options, dtype: torch.dtype) -> Rooms:
    """For the shard of this cut. Blocks for getting the memory, which may take half a second where the kernel has no large pages left."""
    size = math.prod(cache_size(made, cut, options)) * dtype.itemsize
    return Rooms(touched(room_for(needs.of(made, cut), dtype)), touched(size))


def rehearse(options: Options, dtype: torch.dtype) -> Rooms:
    """Rooms for the largest shard, which one tile of rows went through, all zeros. Blocks for a step and for getting the memory."""
    host, made = torch.device("cpu"), shape.read(Path(options.model))
    cuts = split.even(made, options.tp, options.pp)
    cut = max(
        map(cuts.cut, range(cuts.shards)), key=lambda each: room_for(needs.of(made, each), dtype)
    )
    # The memory on a thread that gives way to all others: ranks that serve are on the same cores.
    with ThreadPoolExecutor(1, "rooms", os.nice, (19,)) as aside:
        rooms = aside.submit(rooms_of, cut, made, options, dtype).result()
    cache = make_cache(made, cut, options, dtype, host, rooms.cache)
    weights = ShardWeights(needs.of(made, cut), dtype, host, rooms.weights)
    (rows,) = pack([CANARY], options.tile, options.block)
    columns = (rows.tokens, rows.positions, rows.blocks, rows.places, rows.tables)
    hidden = None if cut.first else torch.zeros(options.tile, made.hidden, dtype=dtype)
    stage = Stage(made, cut, weights.tensors, cache)
    stage.run(Tile(*map(torch.tensor, columns)), StageJoint(Group()), hidden, logits=True)
    return rooms
