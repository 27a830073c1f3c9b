"""How fast lost experts come back into host memory beside a plain copy of as many bytes, and what swapping the maps of 58 layers takes.

The same code as on a GPU with rows in host memory: two digests, one copy (lent) or two (loaded), tags, commit. No device is involved.
"""

import statistics
import time

from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft import native
from dynamo_gpu_ft.experts.records import Geometry
from dynamo_gpu_ft.experts.refill import Want, refill
from dynamo_gpu_ft.experts.sources import Manifest
from dynamo_gpu_ft.experts.store import SlotStore

MIB = 1 << 20
LAYERS, SLOTS = 58, 9


class Memory:
    """Experts in host memory; `lends` them or copies."""

    name = "host"

    def __init__(self, images: list[bytearray], lends: bool) -> None:
        self.images, self.lends = images, lends

    def lend(self, layer: int, expert: int, deadline_s: float) -> memoryview | None:
        return memoryview(self.images[expert]) if self.lends else None

    def load(self, layer: int, expert: int, into: memoryview, deadline_s: float) -> int:
        into[:] = self.images[expert]
        return len(into)


def measure(options: Options) -> list[Row]:
    size, rounds = (4 * MIB, 3) if options.quick else (42 * MIB, 7)
    options.say(f"experts of {size // MIB} MiB")
    return [*_refill(size, 6, rounds), *_swap(options, rounds)]


def _refill(size: int, count: int, rounds: int) -> list[Row]:
    images = [bytearray(number.to_bytes(8, "little") * (size // 8)) for number in range(count)]
    digests = {(0, e): native.load().digest(memoryview(image)) for e, image in enumerate(images)}
    shape = Geometry(1, count, count + 1, size, rank=0)
    _, rows = SlotStore.in_memory(shape)
    speeds: dict[str, list[float]] = {"copy": [], "lent": [], "loaded": []}
    landing = memoryview(bytearray(size))
    for number in range(rounds + 1):
        started = time.perf_counter()
        for slot, image in enumerate(images):
            rows.view(0, slot)[:] = image
        taken = {"copy": time.perf_counter() - started}
        for name in ("lent", "loaded"):
            done = refill(
                SlotStore(shape, rows), [Want(0, e, e) for e in range(count)], [Memory(images, name == "lent")], Manifest(digests),
                epoch=1, deadline_s=120, room=lambda _: landing,
            )  # fmt: skip
            if not done.complete:
                raise RuntimeError(f"the refill left {done.left}")
            taken[name] = done.seconds
        if number:  # the first round touches the memory
            for name, seconds in taken.items():
                speeds[name].append(count * size / seconds / 1e9)
    base = statistics.median(speeds["copy"])
    return [
        row(
            f"experts_refill.{name}", statistics.median(speeds[name]), "GB/s", baseline=base,
            ratio=statistics.median(a / b for a, b in zip(speeds[name], speeds["copy"], strict=True)),
            note=f"{count} experts of {size // MIB} MiB, {what}; baseline: one plain copy; {spread(speeds[name])}",
        )
        for name, what in (("lent", "two digests and one copy"), ("loaded", "two digests and two copies"))
    ]  # fmt: skip


def _swap(options: Options, rounds: int) -> list[Row]:
    """Commits of all layers with small experts: what is left is the maps and tags themselves."""
    options.say(f"maps of {LAYERS} layers")
    data = bytearray(64)
    digest, took, asked = native.load().digest(memoryview(data)), [], []
    store, _ = SlotStore.in_memory(Geometry(LAYERS, SLOTS, SLOTS + 1, len(data), rank=0))
    for number in range(rounds):
        for layer in range(LAYERS):
            store.land(layer, number % SLOTS, number, memoryview(data), digest, epoch=number)
        started = time.perf_counter()
        for layer in range(LAYERS):
            store.commit(layer, epoch=number)
        took.append((time.perf_counter() - started) * 1e3)
        started = time.perf_counter()
        for layer in range(LAYERS):
            store.routable(layer)
        asked.append((time.perf_counter() - started) * 1e3)
    median = statistics.median(took)
    return [
        row("experts_refill.swap", median, "ms", baseline=10, ratio=10 / median, target=1.0,
            note=f"one expert per layer, {LAYERS} commits; baseline: the bound; {spread(took)}"),
        row("experts_refill.routable", statistics.median(asked), "ms",
            note=f"{LAYERS} layers of {SLOTS} slots, every tag read; {spread(asked)}"),
    ]  # fmt: skip
