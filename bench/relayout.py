"""How fast payloads of one layout become payloads of another, beside memcpy of as many bytes in the same run.

Sources and targets are rings of payloads larger than the processor's caches, every page touched. memcpy writes the same target
payloads, one by one, from a ring of as many bytes that is as cold; neither side takes a digest. Each repetition measures both, one
after the other, by the processor time of the one thread that copies, so that others on the machine count less. A second kind of row is
the whole conversion: verify the source, convert, digest and seal in an arena; a third compares it with memcpy and the same digests.
"""

import ctypes
import mmap
import os
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

from bench.arena_copy import address_of, fill, memory_folder, shared_memory
from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv.convert import compiled
from dynamo_gpu_ft.kv.geometry import LayerRun, Part, ShardLayout
from dynamo_gpu_ft.kv.relayout import plan

TARGET = 0.8

NHD, HND, APART = ("PNHSD",) * 2, ("PHNSD",) * 2, ("SPNHD",) * 2
COLUMNS = ("PHSDN", "PHSND")


def model(
    order: tuple[str, ...], *, layers: int, heads: int, tp: int, width: int = 128, block: int = 16
) -> ShardLayout:
    names = ("k", "v") if len(order) == 2 else ("latent",)
    return ShardLayout(
        block_tokens=block,
        piece_tokens=block,
        heads=heads,
        tp=tp,
        dtype="bfloat16",
        itemsize=2,
        parts=tuple(Part(name, width, each) for name, each in zip(names, order, strict=True)),
        layers=(LayerRun("model.layers.{}.self_attn.attn", 0, layers),),
    )


@dataclass(frozen=True)
class Case:
    name: str
    source: ShardLayout
    target: ShardLayout


LLAMA_70B = model(NHD, layers=80, heads=8, tp=8)
LLAMA_8B = model(NHD, layers=32, heads=8, tp=1)
MLA = model(("PNHD",), layers=61, heads=1, tp=8, width=576, block=64)

CASES = (
    Case("llama70b.tp8_to_tp4", LLAMA_70B, replace(LLAMA_70B, tp=4)),
    Case("llama70b.tp4_to_tp8", replace(LLAMA_70B, tp=4), LLAMA_70B),
    Case("llama70b.tp8_to_tp1", LLAMA_70B, replace(LLAMA_70B, tp=1)),
    Case("llama8b.tp1_to_tp2", LLAMA_8B, replace(LLAMA_8B, tp=2)),
    Case(
        "llama8b.nhd_to_hnd",
        LLAMA_8B,
        replace(LLAMA_8B, parts=model(HND, layers=1, heads=1, tp=1).parts),
    ),
    Case(
        "llama8b.hnd_to_nhd",
        replace(LLAMA_8B, parts=model(HND, layers=1, heads=1, tp=1).parts),
        LLAMA_8B,
    ),
    Case(
        "llama8b.packed_to_apart",
        LLAMA_8B,
        replace(LLAMA_8B, parts=model(APART, layers=1, heads=1, tp=1).parts),
    ),
    Case("llama8b.block16_to_64", LLAMA_8B, replace(LLAMA_8B, block_tokens=64, piece_tokens=64)),
    Case("llama8b.block64_to_16", replace(LLAMA_8B, block_tokens=64, piece_tokens=64), LLAMA_8B),
    Case("mla.tp8_to_tp4", MLA, replace(MLA, tp=4)),
    Case(
        "llama8b.columns32_to_128",
        model(COLUMNS, layers=32, heads=8, tp=1, block=32),
        model(COLUMNS, layers=32, heads=8, tp=1, block=128),
    ),
    Case("llama8b.nhd_to_columns", LLAMA_8B, model(COLUMNS, layers=32, heads=8, tp=1)),
    Case("llama8b.columns_to_nhd", model(COLUMNS, layers=32, heads=8, tp=1), LLAMA_8B),
)


def measure(options: Options) -> list[Row]:
    total = (64 if options.quick else 256) << 20
    rounds = 3 if options.quick else 11
    rows = []
    for case in CASES:
        options.say(case.name)
        rows.append(_run(case, total, rounds))
    for case in CASES[:2] + CASES[4:5]:
        options.say(f"{case.name}, arena to arena")
        rows += _convert(case, total // 2, rounds)
    return rows


class _Ring:
    """Payloads side by side in touched anonymous memory, aligned to cache lines."""

    def __init__(self, size: int, total: int) -> None:
        self.size, self.count = size, max(2, total // size)
        self.stride = (size + 4095) // 4096 * 4096
        self.memory = mmap.mmap(
            -1, self.stride * self.count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        fill(self.memory)
        view = memoryview(self.memory)
        self.views = [view[i * self.stride : i * self.stride + size] for i in range(self.count)]


def _run(case: Case, total: int, rounds: int) -> Row:
    found = plan(case.source, case.target, 0)
    phases = compiled(found)
    needed = found.sources_per_target * len(found.source_shards)
    sources, targets = _Ring(found.source_bytes, total), _Ring(found.target_bytes, total)
    size = found.target_bytes * targets.count

    def ours() -> float:
        started = time.thread_time()
        for i in range(targets.count):
            first = i // found.targets_per_source * needed
            chosen = [sources.views[(first + k) % sources.count] for k in range(needed)]
            phases[i % len(phases)].run(chosen, targets.views[i])
        return size / (time.thread_time() - started) / 1e9

    plain_source = _Ring(found.target_bytes, total)

    def memcpy() -> float:
        to, start = address_of(targets.memory), address_of(plain_source.memory)
        started = time.thread_time()
        for i in range(targets.count):
            ctypes.memmove(to + i * targets.stride, start + i * targets.stride, targets.size)
        return size / (time.thread_time() - started) / 1e9

    runs = sorted({copy.bytes for copy in found.phases[0]})
    held = found.source_bytes * needed // found.targets_per_source
    note = (
        f"payloads of {found.target_bytes >> 10} KiB in runs of {' and '.join(map(str, runs))} B, read from "
        f"{max(held, found.target_bytes) >> 10} KiB; memcpy of as many bytes into the same payloads; no digest in either"
    )
    return _row(f"relayout.{case.name}", ours, memcpy, rounds, True, note)


def _convert(case: Case, total: int, rounds: int) -> list[Row]:
    """Source blocks to sealed target blocks, digests of both sides included, beside memcpy alone and with as many digests."""
    core, found = native.load(), plan(case.source, case.target, 0)
    blocks = total // found.target_bytes
    names = [f"block {i}".encode() for i in range(blocks)]
    parents: list[bytes | None] = [None, *names[:-1]]
    size = found.target_bytes
    room = 2 * (blocks + 2) * (2 * found.source_bytes * len(found.source_shards) + 2 * size)
    with memory_folder(room + (64 << 20)) as folder:
        arenas: dict[str, Any] = {}
        for kind, each, shards in (
            ("source", found.source_bytes, len(found.source_shards)),
            ("target", size, 2),
        ):
            arenas[kind] = core.Arena.create(
                str(folder / kind), slot_bytes=each, slots=blocks * shards + 2, ledger_bytes=1 << 20
            )
        token = os.urandom(16)
        arenas["source"].begin_epoch(token)
        number = arenas["source"].add_namespace(b"source")
        for shard in found.source_shards:
            writer = arenas["source"].attach_writer(shard=shard, token=token, namespace=number)
            for position, (name, parent) in enumerate(zip(names, parents, strict=True)):
                claim = writer.claim(block_hash=name, parent_hash=parent, position=position)
                ctypes.memset(claim.address, position % 251 + 1, found.source_bytes)
                claim.seal()

        def ours() -> float:
            again = os.urandom(16)
            arenas["target"].begin_epoch(again, takeover=True)
            number = arenas["target"].add_namespace(again)
            writer = arenas["target"].attach_writer(shard=0, token=again, namespace=number)
            converter = core.Converter(
                writer,
                arenas["source"],
                namespace=0,
                max_epoch=arenas["source"].epoch,
                shards=found.source_shards,
                phases=compiled(found),
            )
            targets = [
                core.Target(name, parent, position, [name])
                for position, (name, parent) in enumerate(zip(names, parents, strict=True))
            ]
            started = time.thread_time()
            result = converter.convert(targets, source_parent=None, timeout=120.0)
            took = time.thread_time() - started
            assert set(result.statuses) == {"ok"}, result.detail
            return float(result.bytes / took / 1e9)

        # As many source payloads as a conversion has to verify; memcpy alone takes every `held`-th.
        held = found.source_bytes * len(found.source_shards) // size
        plain = memoryview(shared_memory(folder / "plain", blocks * held * size))
        out = memoryview(shared_memory(folder / "out", blocks * size))
        payloads = [
            (plain[i * held * size : (i + 1) * held * size], out[i * size : (i + 1) * size])
            for i in range(blocks)
        ]

        def memcpy() -> float:
            started = time.thread_time()
            for source, target in payloads:
                target[:] = source[:size]
            return blocks * size / (time.thread_time() - started) / 1e9

        def with_digests() -> float:
            started = time.thread_time()
            for source, target in payloads:
                core.digest(source)
                target[:] = source[:size]
                core.digest(target)
            return blocks * size / (time.thread_time() - started) / 1e9

        ours()  # every slot of both generations touched
        ours()
        name = f"relayout.arena.{case.name}"
        note = f"verify {held} source bytes for each target byte, convert, digest, seal; arenas and memcpy in /dev/shm"
        return [
            _row(name, ours, memcpy, rounds, False, f"{note}; baseline without any digest"),
            _row(
                f"{name}.with_digests",
                ours,
                with_digests,
                rounds,
                True,
                f"{note}; baseline digests as many bytes of source and target too, but copies once; a conversion "
                "first copies what it verifies to memory that nobody else can change",
            ),
        ]


def _row(name: str, ours: Any, theirs: Any, rounds: int, bounded: bool, note: str) -> Row:
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    mine, plain = [a for a, _ in pairs], [b for _, b in pairs]
    return row(
        name,
        statistics.median(mine),
        "GB/s",
        baseline=statistics.median(plain),
        ratio=statistics.median(a / b for a, b in pairs),
        target=TARGET if bounded else None,
        note=f"{note}; lowest/median/highest {spread(mine)}; memcpy {spread(plain)}; ratio is the median of pairs",
    )
