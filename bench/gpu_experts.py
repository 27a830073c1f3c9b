"""Experts on a GPU: what the router mask costs beside plain top-k, how soon a map is swapped under a graph, how fast lost experts come back.

At the sizes of DeepSeek-V3 over 32 ranks: 58 layers, 256 experts in 288 slots and more, 42 MiB each. The map of a loss is one write.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.gpu_world import marked, place, wait_for_device
from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft import native
from dynamo_gpu_ft.experts import ahead
from dynamo_gpu_ft.experts.base import Domains, Placement, Plan
from dynamo_gpu_ft.experts.device_rows import DeviceRows, pinned
from dynamo_gpu_ft.experts.records import Geometry
from dynamo_gpu_ft.experts.refill import Want, refill
from dynamo_gpu_ft.experts.sources import Manifest
from dynamo_gpu_ft.experts.store import SlotStore
from dynamo_gpu_ft.experts.tables import FailoverTables
from dynamo_gpu_ft.kernels.router import RouterMask

MIB = 1 << 20
LAYERS, EXPERTS, RANKS, SLOTS, TOPK, TOKENS = 58, 256, 32, 17, 8, 4096


def measure(options: Options) -> list[Row]:
    kind = place(options, "gpu_experts")
    rounds = 5 if options.quick else 200
    options.say("failover tables")
    tables, seconds = _tables(kind)
    rows = [
        row(
            "gpu_experts.tables.build", seconds, "s",
            note=f"{tables.entries} maps of {LAYERS} layers, {tables.device_bytes / MIB:.0f} MiB on the device",
        )
    ]  # fmt: skip
    rows += _swap(options, kind, tables, rounds)
    rows += _router(options, kind, tables, rounds)
    rows += _refill(options, kind)
    return marked(rows, kind)


def _placement() -> Placement:
    """Pairs: rank r and r + 16 hold the same 16 experts, and each rank one more."""
    row_of = [e for half in range(2) for r in range(16) for e in [*range(16 * r, 16 * r + 16), (16 * r + 80 + half) % EXPERTS]]  # fmt: skip
    return Placement.of_rows([row_of] * LAYERS, experts=EXPERTS, ranks=RANKS)


def _tables(kind: str) -> tuple[FailoverTables, float]:
    def masked(placement: Placement, alive: tuple[int, ...]) -> Plan:
        gone = set(range(RANKS)) - set(alive)
        return Plan(placement=placement.without(gone), moves=(), certificate=None)  # type: ignore[arg-type]

    whole = _placement()
    started = time.perf_counter()
    foreseen = ahead.all_of(whole, Domains.regular(RANKS), masked)
    tables = FailoverTables(whole, foreseen, rank=0, width=4, device=kind)
    wait_for_device(kind)
    return tables, time.perf_counter() - started


def _timed(kind: str, work: Callable[[], Any], rounds: int) -> list[float]:
    """Milliseconds of each round, from the call to the device's end."""
    found = []
    for number in range(rounds + 3):
        wait_for_device(kind)
        started = time.perf_counter()
        work()
        wait_for_device(kind)
        if number >= 3:
            found.append((time.perf_counter() - started) * 1e3)
    return found


def _swap(options: Options, kind: str, tables: FailoverTables, rounds: int) -> list[Row]:
    options.say("swapping maps")
    losses = [loss.dead for loss in tables.losses]
    state = {"epoch": 0}

    def lose() -> None:
        state["epoch"] += 1
        if tables.entry:  # every other round, or there were two losses; a write all the same
            tables.restore(state["epoch"])
        else:
            tables.lose(losses[state["epoch"] % len(losses)], state["epoch"])

    def publish() -> None:
        state["epoch"] += 1
        tables.publish(second, state["epoch"])

    second = tables.placement.without((3, 9))
    loses, publishes = _timed(kind, lose, rounds), _timed(kind, publish, max(5, rounds // 10))
    median = statistics.median
    return [
        row("gpu_experts.swap.foreseen", median(loses), "ms", baseline=10, ratio=10 / median(loses), target=1.0,
            note=f"{LAYERS} layers, one write; baseline: the bound; {spread(loses)}"),
        row("gpu_experts.swap.unforeseen", median(publishes), "ms", baseline=10, ratio=10 / median(publishes), target=1.0,
            note=f"{LAYERS} layers written beside the map in use; baseline: the bound; {spread(publishes)}"),
    ]  # fmt: skip


def _router(options: Options, kind: str, tables: FailoverTables, rounds: int) -> list[Row]:
    import torch

    options.say("router mask")
    mask = RouterMask(kind)
    if kind == "cuda" and mask.way not in ("built", "nvrtc"):
        options.lacking.append(f"the CUDA router mask: {mask.why}")
    tokens = TOKENS if kind == "cuda" else 64
    logits = torch.randn(tokens, EXPERTS, generator=torch.Generator().manual_seed(7)).to(kind)
    table, counts = tables.logical[:, 0], tables.counts[:, 0]
    results = torch.zeros(3, dtype=torch.int64, device=kind)

    def masked() -> None:
        mask.route(
            logits, table, counts, tables.index, TOPK, tables.placement.width, results=results
        )

    def plain() -> None:
        top = torch.topk(torch.softmax(logits, 1), TOPK, dim=1)
        top.values.div_(top.values.sum(1, keepdim=True))

    def topk_alone() -> None:
        torch.topk(logits, TOPK, dim=1)

    found = {}
    for name, work in (("plain", plain), ("topk", topk_alone), ("masked", masked)):
        found[name] = _per_call(kind, work, rounds)
    cost = statistics.median(found["masked"]) - statistics.median(found["topk"])
    note = f"{tokens} tokens, {EXPERTS} experts, top {TOPK}, by {mask.way}, in a graph where there is one"
    median = statistics.median
    rows = [
        row("gpu_experts.router.masked", median(found["masked"]), "us", baseline=median(found["plain"]),
            ratio=median(found["plain"]) / median(found["masked"]),
            note=f"with weights and slots; baseline: torch softmax, top-k and renormalising, no slots; {note}; {spread(found['masked'])}"),
        row("gpu_experts.router.cost", cost, "us", baseline=5, ratio=5 / max(cost, 0.1), target=1.0,
            note=f"beside torch.topk alone ({median(found['topk']):.3g} us); baseline: the bound; {note}"),
    ]  # fmt: skip
    if int(results[0]):
        options.lacking.append(f"router mask: error word {int(results[0])}")
    return rows


def _per_call(kind: str, work: Callable[[], Any], rounds: int) -> list[float]:
    """Microseconds per call: 100 calls in one captured graph on a GPU, so that launching costs nothing; plain calls elsewhere."""
    if kind != "cuda":
        return [ms * 1e3 for ms in _timed(kind, work, rounds)]
    import torch

    calls, side = 100, torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    found = []
    for _ in range(max(5, rounds // 10)):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) * 1e3 / calls)
    return found


class _Pinned:
    """A source in pinned host memory: what a host-resident copy is."""

    name = "host"

    def __init__(self, experts: int, size: int) -> None:
        self.images = [pinned(size) for _ in range(experts)]
        for number, image in enumerate(self.images):
            image[:8] = number.to_bytes(8, "little")

    def lend(self, layer: int, expert: int, deadline_s: float) -> memoryview:
        return self.images[expert]

    def load(self, layer: int, expert: int, into: memoryview, deadline_s: float) -> int:
        into[:] = self.images[expert]
        return len(into)


def _refill(options: Options, kind: str) -> list[Row]:
    import torch

    size, count = (42 * MIB, 8) if kind == "cuda" else (MIB, 4)
    options.say(f"refill of {count} experts of {size / MIB:.0f} MiB")
    source = _Pinned(count, size)
    digests = {(0, e): native.load().digest(image) for e, image in enumerate(source.images)}
    image = torch.zeros((1, count + 1, size), dtype=torch.uint8, device=kind)
    shape = Geometry(1, count, count + 1, size, rank=0)
    rows = DeviceRows(shape, image)
    copies, refills = [], []
    for _ in range(3 if options.quick else 9):
        wait_for_device(kind)
        started = time.perf_counter()
        for number, each in enumerate(source.images):
            rows.write(0, number, each)
        copies.append(count * size / (time.perf_counter() - started) / 1e9)
        store = SlotStore(shape, rows)
        done = refill(store, [Want(0, e, e) for e in range(count)], [source], Manifest(digests), epoch=1,
                      deadline_s=120, room=pinned)  # fmt: skip
        if not done.complete:
            options.lacking.append(f"refill: {done.left[0][1]}")
            break
        refills.append(done.bytes / done.seconds / 1e9)
    if not refills:
        return []
    ratio = statistics.median(r / c for r, c in zip(refills, copies, strict=False))
    return [
        row("gpu_experts.refill.copy", statistics.median(copies), "GB/s",
            note=f"{size / MIB:.0f} MiB pinned to device, one after the other; {spread(copies)}"),
        row("gpu_experts.refill", statistics.median(refills), "GB/s", baseline=statistics.median(copies), ratio=ratio,
            note=f"digest before, copy, digest read back from the device, commit; baseline: the copies alone; {spread(refills)}"),
    ]  # fmt: skip
