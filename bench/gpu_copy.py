"""How fast KV blocks go from a GPU into the arena and back, by fragment size and way, beside one plain copy of as many bytes.

Ways: one call per fragment, one batched DMA call, packing kernel + DMA, what the thresholds choose, the same with seals and
verification (the whole engine), and a loop of torch copies per block and layer as the engines without any of this do it.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.arena_copy import size_name
from bench.gpu_world import arena_for, marked, opened, place, wait_for_device
from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.kv.blocks import BlockRef
from dynamo_gpu_ft.kv.device import DeviceTier, OpenDevice
from dynamo_gpu_ft.kv.layout import describe

KIB = 1 << 10
FRAGMENTS = (4 * KIB, 8 * KIB, 16 * KIB, 28 * KIB, 64 * KIB, 512 * KIB, 2048 * KIB)
LAYERS = 32
DEADLINE_S = 120.0


def target_for(fragment: int) -> float | None:
    """Of the plain copy's speed: 0.9 from 28 KiB on, 0.8 at 4 and 8 KiB."""
    if fragment >= 28 * KIB:
        return 0.9
    return 0.8 if fragment <= 8 * KIB else None


def measure(options: Options) -> list[Row]:
    kind = place(options, "gpu_copy")
    total = (16 if options.quick else 256) << 20
    rounds = 2 if options.quick else 9
    rows: list[Row] = []
    for fragment in FRAGMENTS[:3] if kind == "cpu" else FRAGMENTS:
        options.say(f"fragments of {size_name(fragment)}")
        rows += _fragment(kind, fragment, total, rounds)
    return marked(rows, kind)


def _fragment(kind: str, fragment: int, total: int, rounds: int) -> list[Row]:
    import torch

    layers = min(LAYERS, max(1, total // fragment // 2))
    blocks = max(2, total // (fragment * layers))
    tensors = {
        f"layer{i}": torch.randint(0, 255, (2 * blocks, fragment), dtype=torch.uint8, device=kind)
        for i in range(layers)
    }
    host = torch.empty(blocks * layers * fragment, dtype=torch.uint8, pin_memory=kind == "cuda")
    flat = torch.empty_like(host, device=kind)
    moved = blocks * layers * fragment
    device = opened(kind, [*tensors.values(), host])
    figures: dict[str, list[float]] = {}

    def timed(name: str, copy: Callable[[], float | None]) -> None:
        wait_for_device(kind)
        started = time.perf_counter()
        took = copy()
        wait_for_device(kind)
        speed = moved / (took or time.perf_counter() - started) / 1e9
        figures.setdefault(name, []).append(speed)

    def loop(out: bool) -> None:
        pieces = iter(host.view(-1, fragment))
        for block in range(blocks):
            for tensor in tensors.values():
                ours, theirs = tensor[block], next(pieces)
                theirs.copy_(ours, non_blocking=True) if out else ours.copy_(
                    theirs, non_blocking=True
                )

    def one_copy(load: bool) -> None:
        flat.copy_(host, non_blocking=True) if load else host.copy_(flat, non_blocking=True)

    ways = ["plain", "batch", "kernel"]
    facts = device.native.facts()
    absent = {"batch": facts["batch"] != "yes", "kernel": facts["kernels"] != "yes"}
    with _Engine(device, tensors, blocks) as engine:
        for number in range(rounds + 1):
            if number == 1:
                figures.clear()  # the first round only warms up
            for load, side in ((False, "out"), (True, "in")):
                timed(f"{side}.one_copy", lambda load=load: one_copy(load))  # type: ignore[misc]
                for way in ways:
                    if absent.get(way) or fragment * layers * blocks > 256 << 20:
                        continue
                    timed(
                        f"{side}.{way}",
                        lambda way=way, load=load: device.native.measure(  # type: ignore[misc]
                            way, load=load, bytes=fragment, count=layers * blocks
                        ),
                    )
                timed(f"{side}.torch_loop", lambda load=load: loop(not load))  # type: ignore[misc]
                timed(f"{side}.engine", engine.load if load else engine.store)
    return _rows(fragment, figures)


def _rows(fragment: int, figures: dict[str, list[float]]) -> list[Row]:
    rows = []
    for side in ("out", "in"):
        base = figures[f"{side}.one_copy"]
        ways = {n.split(".")[1]: v for n, v in figures.items() if n.startswith(f"{side}.")}
        best = max(
            (w for w in ("plain", "batch", "kernel") if w in ways),
            key=lambda w: statistics.median(ways[w]),
        )
        for way, speeds in ways.items():
            if way == "one_copy":
                continue
            ratio = statistics.median(s / b for s, b in zip(speeds, base, strict=True))
            chosen = way == best
            rows.append(
                row(
                    f"gpu_copy.{side}.{way}.{size_name(fragment)}",
                    statistics.median(speeds),
                    "GB/s",
                    baseline=statistics.median(base),
                    ratio=ratio,
                    target=target_for(fragment) if chosen else None,
                    note=spread(speeds) + ("; the best way" if chosen else ""),
                )
            )
    return rows


class _Engine:
    """The whole path: planned copies, digests and seals out; chain, copies and verification back."""

    def __init__(self, device: OpenDevice, tensors: dict[str, Any], blocks: int) -> None:
        self.device, self.tensors, self.blocks = device, tensors, blocks
        self.generation = self.jobs = 0

    def __enter__(self) -> "_Engine":
        layout = describe(self.tensors, 2 * self.blocks)
        self._place = arena_for(layout.block_bytes, 2 * self.blocks + 2)
        place = self._place.__enter__()
        self.tier = DeviceTier(place.arena, place.writer, layout, self.tensors, device=self.device)
        deadline = time.monotonic() + DEADLINE_S
        while not self.tier.facts()["registration_done"] and time.monotonic() < deadline:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.tier.close(30.0)
        self._place.__exit__(None, None, None)

    def _chain(self, first: int) -> list[BlockRef]:
        names = [f"{self.generation:08d}-{i:08d}".encode() for i in range(self.blocks)]
        return [
            BlockRef(first + i, names[i], names[i - 1] if i else None, i)
            for i in range(self.blocks)
        ]

    def _run(self, queue: Callable[[int, list[BlockRef]], None], chain: list[BlockRef]) -> float:
        self.jobs += 1
        started = time.perf_counter()
        queue(self.jobs, chain)
        done = self.tier.wait(DEADLINE_S)
        took = time.perf_counter() - started
        statuses = {s for r in self.tier.poll() for s in r.statuses}
        if not done or statuses != {"ok"}:
            raise GpuFtError(
                "the device copy engine did not copy every block",
                value=sorted(statuses),
                rule="all ok",
                remedy="run `dynamo-gpu-ft doctor`",
            )
        return took

    def store(self) -> float:
        old = [ref.block_hash for ref in self._chain(0)]
        self.generation += 1
        took = self._run(self.tier.store, self._chain(0))
        if self.generation > 1:
            self.tier.release(old)
            self.tier.wait(DEADLINE_S)
        return took

    def load(self) -> float:
        return self._run(self.tier.load, self._chain(self.blocks))
