"""What full-rate KV snapshots cost a decode loop: a CUDA graph of Llama-3-8B's shapes, step times with snapshotting on and off.

Each step replays the graph and, with snapshots on, queues the blocks that decoding at this batch size would fill. Both kinds
of windows alternate in one run, so that clocks and temperature are the same.
"""

import statistics
import time
from typing import Any

from bench.gpu_world import arena_for, marked, opened, place, wait_for_device
from bench.rows import Options, Row, row
from dynamo_gpu_ft.kv.blocks import BlockRef
from dynamo_gpu_ft.kv.device import DeviceTier
from dynamo_gpu_ft.kv.layout import describe

LAYERS, HIDDEN, INNER, KV_HEADS, HEAD = 32, 4096, 14336, 8, 128
TOKENS = 16  # of one block
BATCH = 64  # sequences: each fills a block every 16 steps, four blocks per step together
MOST_P50, MOST_P99 = 1.01, 1.03


class Decoder:
    """One decode step of the model's shapes without its meaning: the matrix products and the reads of the KV cache."""

    def __init__(self, kind: str, layers: int, hidden: int, inner: int, blocks: int) -> None:
        import torch

        dtype = torch.bfloat16
        self.kind, self.torch = kind, torch
        # Two sets of weights in turn: more would not fit small GPUs and reads no other way.
        self.up = [torch.randn(hidden, inner, device=kind, dtype=dtype) for _ in range(2)]
        self.down = [torch.randn(inner, hidden, device=kind, dtype=dtype) for _ in range(2)]
        self.qkvo = [torch.randn(hidden, 2 * hidden, device=kind, dtype=dtype) for _ in range(2)]
        self.x = torch.randn(BATCH, hidden, device=kind, dtype=dtype)
        shape = (blocks, 2, TOKENS, KV_HEADS, HEAD)
        self.kv = {f"l{i}": torch.zeros(shape, device=kind, dtype=dtype) for i in range(layers)}
        self.graph: Any = None
        if kind == "cuda":
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                self.step()
            side.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step()

    def step(self) -> None:
        x = self.x
        for number, kv in enumerate(self.kv.values()):
            way = number % 2
            hidden = (x @ self.qkvo[way])[:, : x.shape[1]]
            hidden = hidden + kv.sum() * 0
            x = (hidden @ self.up[way]) @ self.down[way] * 1e-6
        self.x.copy_(x)

    def run(self) -> float:
        started = time.perf_counter()
        self.graph.replay() if self.graph is not None else self.step()
        wait_for_device(self.kind)
        return time.perf_counter() - started


def measure(options: Options) -> list[Row]:
    kind = place(options, "gpu_overhead")
    small = kind == "cpu"
    layers, hidden, inner = (4, 256, 512) if small else (LAYERS, HIDDEN, INNER)
    blocks = 64 if small else 1024
    windows, steps = (2, 20) if options.quick else (20, 200)
    decoder = Decoder(kind, layers, hidden, inner, blocks)
    layout = describe(decoder.kv, blocks)
    times: dict[bool, list[float]] = {False: [], True: []}
    with arena_for(layout.block_bytes, 512) as made:
        tier = DeviceTier(
            made.arena,
            made.writer,
            layout,
            decoder.kv,
            device=opened(kind, list(decoder.kv.values())),
        )
        snapshots = _Snapshots(tier, blocks)
        for _ in range(10):
            decoder.run()
        for window in range(2 * windows):
            on = window % 2 == 1
            options.say(f"window {window + 1} of {2 * windows}, snapshots {'on' if on else 'off'}")
            for _ in range(steps):
                if on:
                    snapshots.queue()
                took = decoder.run()
                tier.step(took)
                times[on].append(took)
            tier.wait(60.0)
        copied, dropped = snapshots.done()
        tier.close(60.0)
    return marked(_rows(times, copied, dropped, layout.block_bytes), kind)


def _rows(times: dict[bool, list[float]], copied: int, dropped: int, block_bytes: int) -> list[Row]:
    spent = sum(times[True])
    note = f"{len(times[True])} steps each; {copied} blocks copied, {dropped} not"
    rows = []
    for name, most, of in (
        ("p50", MOST_P50, statistics.median),
        ("p99", MOST_P99, lambda values: sorted(values)[int(len(values) * 0.99)]),
    ):
        off, on = of(times[False]), of(times[True])
        rows.append(
            row(
                f"gpu_overhead.step_{name}", on * 1e3, "ms", baseline=off * 1e3, ratio=off / on,
                target=1 / most, note=f"{(on / off - 1) * 100:+.2f} %; {note}",
            )
        )  # fmt: skip
    rows.append(row("gpu_overhead.snapshot_rate", copied * block_bytes / spent / 1e9, "GB/s"))
    return rows


class _Snapshots:
    """Queues four new blocks per step, as 64 sequences with blocks of 16 tokens fill them; releases old ones."""

    def __init__(self, tier: DeviceTier, blocks: int) -> None:
        self.tier, self.blocks, self.number = tier, blocks, 0

    def queue(self) -> None:
        for _ in range(BATCH // TOKENS):
            self.number += 1
            name = self.number.to_bytes(8, "big")
            self.tier.store(self.number, [BlockRef(self.number % self.blocks, name, None, 0)])
            self.tier.release([name])

    def done(self) -> tuple[int, int]:
        self.tier.wait(60.0)
        statuses = [status for result in self.tier.poll() for status in result.statuses]
        return statuses.count("ok"), len(statuses) - statuses.count("ok")
