"""Conversions between layouts, bit for bit against a brute-force reference, and what is refused instead of guessed."""

from __future__ import annotations

import dataclasses
import mmap
import os
import random
from typing import Any

import pytest
from door import code_of, core
from relayout_world import convert, kv_of_model, payload, some_layout

from dynamo_gpu_ft.errors import NotProtected
from dynamo_gpu_ft.kv.convert import compiled
from dynamo_gpu_ft.kv.geometry import LayerRun, Opaque, Part, ShardLayout
from dynamo_gpu_ft.kv.relayout import plan

RUNS = int(os.environ.get("GFT_RELAYOUT_RUNS", "500"))


def layout(**how: Any) -> ShardLayout:
    return ShardLayout(
        **{
            "block_tokens": 16,
            "piece_tokens": 16,
            "heads": 4,
            "tp": 2,
            "dtype": "bf16",
            "itemsize": 2,
            "parts": (Part("k", 8, "PNHSD"), Part("v", 8, "PNHSD")),
            "layers": (LayerRun("l.{}", 0, 2),),
            **how,
        }
    )


def every_payload(model: Any, of: ShardLayout, tokens: int) -> dict[tuple[int, int], bytes]:
    blocks = range(tokens // of.block_tokens)
    return {(s, b): payload(model, of, s, b) for s in of.shards for b in blocks}


def test_random_layouts_are_converted_there_and_back_bit_for_bit(rng: random.Random) -> None:
    for number in range(RUNS):
        source = some_layout(rng)
        target = some_layout(rng, like=source)
        tokens = 2 * max(source.block_tokens, target.block_tokens)
        model = kv_of_model(rng, tokens, source)
        there = every_payload(model, source, tokens)
        wanted = every_payload(model, target, tokens)
        made = {
            (shard, block): convert(plan(source, target, shard), there, block)
            for shard, block in wanted
        }
        assert made == wanted, f"run {number}: {source} -> {target}"
        some = rng.choice(source.shards)
        back = plan(target, source, some)
        for block in range(tokens // source.block_tokens):
            assert convert(back, made, block) == there[some, block], f"run {number}, back"


#: (orders of the source, of the target, their tensor-parallel sizes): what `bench relayout` measures.
LARGE = [
    ("PNHSD PNHSD", "PNHSD PNHSD", 2, 1),
    ("PNHSD PNHSD", "PNHSD PNHSD", 1, 2),
    ("PNHSD PNHSD", "PHNSD PHNSD", 1, 1),
    ("PHNSD PHNSD", "SPNHD SPNHD", 1, 1),
    ("PNHSD PNHSD", "PHSDN PHSND", 1, 1),
    ("PHSDN PHSND", "PNHSD PNHSD", 1, 1),
]


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
@pytest.mark.parametrize(("before", "after", "tp_before", "tp_after"), LARGE)
def test_payloads_too_large_for_the_caches_are_converted_at_any_address(
    rng: random.Random, before: str, after: str, tp_before: int, tp_after: int, itemsize: int
) -> None:
    def of(order: str, tp: int) -> ShardLayout:
        k, v = order.split()
        return layout(
            heads=8,
            tp=tp,
            itemsize=itemsize,
            dtype=f"u{itemsize}",
            block_tokens=36,
            piece_tokens=36,
            parts=(Part("k", 128, k), Part("v", 128, v)),
            layers=(LayerRun("l.{}", 0, 8 // itemsize + 1),),
        )

    source, target = of(before, tp_before), of(after, tp_after)
    assert target.payload_bytes >= 256 << 10
    model = kv_of_model(rng, 36, source)
    there, wanted = every_payload(model, source, 36), payload(model, target, 0, 0)
    found = plan(source, target, 0)
    chosen = [there[shard, 0] for shard in found.source_shards]
    page = mmap.mmap(-1, target.payload_bytes + 128)
    for shift in (0, 16, 33, 64):
        page[:] = b"\x77" * len(page)
        fence = memoryview(page)[shift : shift + target.payload_bytes]
        compiled(found)[0].run(chosen, fence)
        assert bytes(fence) == wanted, f"at {shift} bytes behind a page"
        assert set(page[:shift] + page[shift + target.payload_bytes :]) == {0x77}


def test_only_the_ranges_a_plan_names_are_read(rng: random.Random) -> None:
    for _ in range(60):
        source = some_layout(rng)
        target = some_layout(rng, like=source)
        tokens = max(source.block_tokens, target.block_tokens)
        model = kv_of_model(rng, tokens, source)
        there, shard = every_payload(model, source, tokens), rng.choice(target.shards)
        found = plan(source, target, shard)
        for phase, native_phase in enumerate(compiled(found)):
            ranges = found.ranges(phase)
            assert ranges == [native_phase.ranges(i) for i in range(len(ranges))]
            blanked = dict(there)
            for at, block in enumerate(found.sources(phase)):
                for number, holder in enumerate(found.source_shards):
                    kept = bytearray(b"\xee" * source.payload_bytes)
                    for begin, size in ranges[at * len(found.source_shards) + number]:
                        kept[begin : begin + size] = there[holder, block][begin : begin + size]
                    blanked[holder, block] = bytes(kept)
            assert convert(found, blanked, phase) == payload(model, target, shard, phase)


def test_a_shard_reads_only_its_own_heads_where_they_lie_apart() -> None:
    parts = (Part("k", 128, "PHNSD"), Part("v", 128, "PHNSD"))
    one = layout(heads=8, tp=1, parts=parts, block_tokens=32, piece_tokens=32)
    found = plan(one, dataclasses.replace(one, tp=4), 1)
    assert sum(size for _, size in found.ranges()[0]) == found.target_bytes
    assert plan(
        dataclasses.replace(one, tp=8), dataclasses.replace(one, tp=4), 3
    ).source_shards == (6, 7)
    assert plan(
        dataclasses.replace(one, tp=16), dataclasses.replace(one, tp=2), 1
    ).source_shards == (8, 10, 12, 14)


def test_mla_comes_from_one_shard_only() -> None:
    latent = layout(heads=1, tp=8, parts=(Part("latent", 576, "PNHD"),))
    for shard in range(4):
        found = plan(latent, dataclasses.replace(latent, tp=4), shard)
        assert found.source_shards == (0,)
        assert len(found.phases[0]) == 1
        assert found.phases[0][0].dims == ()  # one run: the payload is the same


def test_cells_move_whole_between_shards_and_are_never_cut(rng: random.Random) -> None:
    cell = {"parts": (Part("cell", 16, "PHX"),), "cell": "kernel.amx", "heads": 4}
    one = layout(tp=1, block_tokens=32, **cell)
    two = layout(tp=2, block_tokens=16, **cell)
    found = plan(one, two, 1)
    size = 16 * 16 * 2
    source = bytes(rng.randrange(256) for _ in range(one.payload_bytes))
    pieces = [source[i * size : (i + 1) * size] for i in range(2 * 2 * 4)]  # layer, piece, head
    for phase in range(2):
        wanted = b"".join(pieces[(layer * 2 + phase) * 4 + h] for layer in range(2) for h in (2, 3))
        assert convert(found, {(0, 0): source}, phase) == wanted
    with pytest.raises(NotProtected, match="only the kernel can cut"):
        plan(one, layout(tp=2, piece_tokens=8, **cell), 0)
    with pytest.raises(NotProtected, match="same kernel"):
        plan(one, dataclasses.replace(two, cell="kernel.vec"), 0)


@pytest.mark.parametrize(
    ("change", "shard", "rule"),
    [
        ({"dtype": "fp16"}, 0, "same element type"),
        ({"itemsize": 4}, 0, "same size"),
        ({"heads": 8}, 0, "same KV heads"),
        ({"layers": (LayerRun("l.{}", 0, 3),)}, 0, "same layers"),
        ({"layers": (LayerRun("m.{}", 0, 2),)}, 0, "same layers"),
        ({"parts": (Part("k", 8, "PNHSD"), Part("v", 4, "PNHSD"))}, 0, "as wide"),
        ({"parts": (Part("latent", 16, "PNHD"),)}, 0, "same parts"),
        ({"parts": (Part("cell", 16, "PHX"),), "cell": "x"}, 0, "same parts"),
        ({"block_tokens": 24, "piece_tokens": 8}, 0, "block sizes divide"),
        ({}, 2, "target shard"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(
    change: dict[str, Any], shard: int, rule: str
) -> None:
    with pytest.raises(NotProtected, match=rule):
        plan(layout(), layout(**change), shard)


def test_an_opaque_layout_is_never_converted() -> None:
    for pair in ((Opaque("swizzled"), layout()), (layout(), Opaque("swizzled"))):
        with pytest.raises(NotProtected, match="swizzled"):
            plan(*pair, 0)


COPY = {"source": 0, "start": 0, "to": 0, "dims": [(4, 16, 8)], "bytes": 8}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": 1}, "no such source"),
        ({"bytes": 0}, "at least one byte"),
        ({"dims": [(0, 16, 8)]}, "at least one step"),
        ({"start": 9}, "behind its source"),
        ({"start": 2**64 - 8}, "behind its source"),
        ({"dims": [(4, 2**63, 8)]}, "behind its source"),
        ({"to": 1}, "behind its target"),
        ({"dims": [(4, 16, 2**62)]}, "behind its target"),
        ({"dims": [(4, 16, 4)]}, "twice"),
        ({"dims": [(4, 16, 0)]}, "twice"),
        ({"dims": [(3, 16, 8)]}, "24 of the 32 bytes"),
        ({"dims": [(2**40, 0, 0)]}, "more than the 32"),
        ({"dims": [(1, 0, 0)] * 6}, "at most 5"),
    ],
)
def test_a_plan_that_lies_is_refused_before_it_touches_memory(change: Any, said: str) -> None:
    core.Relayout([core.StridedCopy(**COPY)], [56], 32)
    with pytest.raises(core.CoreError, match=said):
        core.Relayout([core.StridedCopy(**{**COPY, **change})], [56], 32)


def test_hostile_plans_never_write_outside_their_target(rng: random.Random) -> None:
    numbers = [0, 1, 2, 3, 4, 8, 12, 16, 63, 64, 65, 2**32, 2**63, 2**64 - 1]
    accepted = refused = 0
    for _ in range(3000):
        copies = [[0, 8, 0, [2, 16, 8], 4], [1, 0, 4, [2, 32, 8], 4]]  # sound; then one or two lies
        for _ in range(rng.choice([1, 1, 2])):
            copy = rng.choice(copies)
            where = rng.randrange(7)
            if where < 3:
                copy[3][where] = rng.choice(numbers)  # type: ignore[index]
            else:
                copy[(0, 1, 2, 4)[where - 3]] = rng.choice(numbers)
        try:
            made = core.Relayout(
                [
                    core.StridedCopy(n, start, to, [tuple(d)], size)
                    for n, start, to, d, size in copies
                ],  # type: ignore[arg-type]
                [64, 64],
                16,
            )
        except core.CoreError as error:
            assert error.code == "invalid"
            refused += 1
            continue
        accepted += 1
        fence = bytearray(b"\x77" * 48)
        made.run([b"\x11" * 64, b"\x22" * 64], memoryview(fence)[16:32])
        assert fence[:16] + fence[32:] == b"\x77" * 32
        assert set(fence[16:32]) <= {0x11, 0x22}
    assert accepted > 100
    assert refused > 1000


def test_buffers_of_other_sizes_are_refused() -> None:
    made = core.Relayout([core.StridedCopy(**COPY)], [56], 32)
    assert code_of(made.run, [bytes(55)], bytearray(32)) == "invalid"
    assert code_of(made.run, [bytes(56)], bytearray(33)) == "invalid"
    assert code_of(made.run, [], bytearray(32)) == "invalid"
    assert code_of(made.ranges, 1) == "invalid"
    with pytest.raises((BufferError, ValueError)):
        made.run([bytes(56)], bytes(32))
