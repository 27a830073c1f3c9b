"""A brute-force reference for conversions: every element of a model's KV has one value, and payloads are filled one by one.

Written from the meaning of a layout's fields alone, with plain loops over numpy's multi-dimensional indexing; it shares no arithmetic
with `kv.geometry` or `kv.relayout`, so that an error there cannot hide here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynamo_gpu_ft.kv.convert import compiled
from dynamo_gpu_ft.kv.geometry import LayerRun, Part, ShardLayout
from dynamo_gpu_ft.kv.relayout import Relayout

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

#: Where K and V lie inside a block in the engines there are, and some that nobody has built yet.
ORDERS = {
    2: [
        ("PNHSD", "PNHSD"),
        ("PHNSD", "PHNSD"),
        ("SPNHD", "SPNHD"),
        ("PSHND", "PSHND"),
        ("PHSDN", "PHSND"),
        ("HPNSD", "HPNSD"),
        ("PSDHN", "PSNHD"),
        ("NPHSD", "NPHSD"),
    ],
    1: [("PNHD",), ("PHND",), ("PHDN",), ("DNHP",)],
}


def kv_of_model(
    rng: random.Random, tokens: int, like: ShardLayout
) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """{layer: {part: array[token, head, element]}} of random bits (NaN patterns included)."""
    bits = np.random.default_rng(rng.randrange(2**32))
    dtype = UNSIGNED[like.itemsize]
    return {
        layer: {
            part.name: bits.integers(
                0, np.iinfo(dtype).max, (tokens, like.heads, part.width), dtype, endpoint=True
            )
            for part in like.parts
        }
        for layer in like.layer_names()
    }


def heads_of(layout: ShardLayout, shard: int) -> list[int]:
    """Which heads a shard holds, head by head: dealt out evenly, or each to as many neighbours."""
    copies = max(1, layout.tp // layout.heads)
    dealt = [head for head in range(layout.heads) for _ in range(copies)]
    share = len(dealt) // layout.tp
    return dealt[shard * share : (shard + 1) * share]


def payload(
    model: dict[str, dict[str, np.ndarray[Any, Any]]], layout: ShardLayout, shard: int, block: int
) -> bytes:
    """The bytes of one block of one shard, element by element."""
    heads = heads_of(layout, shard)
    pieces = layout.block_tokens // layout.piece_tokens
    out = b""
    for layer in layout.layer_names():
        blocks: dict[str, np.ndarray[Any, Any]] = {}
        for part in layout.parts:
            size = {"P": pieces, "N": layout.piece_tokens, "H": len(heads), "D": part.width}
            axes = part.order.replace("S", "")
            values = np.zeros([size[a] for a in axes], UNSIGNED[layout.itemsize])
            for piece in range(pieces):
                for token in range(layout.piece_tokens):
                    at = block * layout.block_tokens + piece * layout.piece_tokens + token
                    for number, head in enumerate(heads):
                        index = {"P": piece, "N": token, "H": number, "D": slice(None)}
                        values[tuple(index[a] for a in axes)] = model[layer][part.name][at, head]
            blocks[part.name] = values
        if len(layout.parts) == 1:
            out += blocks[layout.parts[0].name].tobytes()
            continue
        outer = len(layout.parts[0].order.partition("S")[0])
        shape = blocks[layout.parts[0].name].shape[:outer]
        for index in np.ndindex(*shape):
            for part in layout.parts:
                out += blocks[part.name][index].tobytes()
    return out


def some_layout(rng: random.Random, like: ShardLayout | None = None) -> ShardLayout:
    """A random layout; with `like`, of the same model, so that one can be converted into the other."""
    if like is None:
        heads = rng.choice([1, 1, 2, 3, 4, 6, 8])
        two = rng.random() < 0.8
        width = rng.choice([1, 3, 8, 16, 64])
        widths = (
            (width, width if rng.random() < 0.7 else rng.choice([2, 5, 8])) if two else (width,)
        )
        itemsize = rng.choice([1, 2, 2, 4, 8])
        layers = [LayerRun("l.{}", rng.randrange(3), rng.randrange(1, 4))]
        if rng.random() < 0.3:
            layers.append(LayerRun("tail.{}.x", 0, rng.randrange(1, 3)))
        block = rng.choice([4, 8, 12, 16])
    else:
        heads, itemsize = like.heads, like.itemsize
        widths = tuple(part.width for part in like.parts)
        layers = list(like.layers)
        if rng.random() < 0.1:
            layers.reverse()
        factor = rng.choice([1, 1, 2, 3, 4])
        fits = like.block_tokens % factor == 0 and rng.random() < 0.5
        block = like.block_tokens // factor if fits else like.block_tokens * factor
    ways = [tp for tp in range(1, 17) if heads % tp == 0 or tp % heads == 0]
    names = ("k", "v") if len(widths) == 2 else ("latent",)
    usable = [o for o in ORDERS[len(names)] if len(set(widths)) == 1 or o[0] == o[1]]
    order = rng.choice(usable)
    return ShardLayout(
        block_tokens=block,
        piece_tokens=rng.choice([p for p in range(1, block + 1) if block % p == 0]),
        heads=heads,
        tp=rng.choice(ways),
        dtype=f"u{itemsize}",
        itemsize=itemsize,
        parts=tuple(Part(*each) for each in zip(names, widths, order, strict=True)),
        layers=tuple(layers),
        once=heads == 1 and rng.random() < 0.3,
    )


def convert(plan: Relayout, payloads: dict[tuple[int, int], bytes], block: int) -> bytes:
    """Target block `block`, made natively of {(shard, block): payload}."""
    chosen: Sequence[bytes] = [
        payloads[shard, at] for at in plan.sources(block) for shard in plan.source_shards
    ]
    target = bytearray(b"\xa5" * plan.target_bytes)
    compiled(plan)[block % plan.targets_per_source].run(chosen, target)
    return bytes(target)
