"""Readings per second that fusion takes in, in a storm of few faults and when every reading is a fault of its own, and what it keeps.

The baseline is the least that any fusing needs: a dictionary of (code, GPU) that counts, in plain Python.
"""

import random
import statistics
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence

from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft.health.fusion import Fusion
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.topology import Device, Rank

#: Readings/s. The native log reader folds a storm before fusion sees it: 800,000 lines came to a few thousand records.
GOAL = 20_000
GPUS = tuple(Device(index=n, bdf=f"0000:{n + 16:02x}:00") for n in range(8))
RANKS = tuple(Rank(shard=n, pid=1000 + n, device=device) for n, device in enumerate(GPUS))


def measure(options: Options) -> list[Row]:
    most, rounds = (20_000, 3) if options.quick else (200_000, 5)
    rows: list[Row] = []
    for name, make, count, text in (
        ("storm", storm, most, "29 faults on 8 GPUs"),
        ("apart", apart, most // 10, "each reading on a device of its own"),
    ):
        options.say(f"{name}: {count} readings, {text}")
        readings = make(count)
        ours, plain = [], []
        for _ in range(rounds):
            ours.append(count / seconds(fused, readings))
            plain.append(count / seconds(counted, readings))
        kept = memory(readings)
        rows.append(
            row(
                f"fusion.{name}",
                statistics.median(ours),
                "readings/s",
                baseline=statistics.median(plain),
                ratio=statistics.median(ours) / GOAL,
                target=1.0,
                note=f"{spread(ours)}; {text}; {kept / (1 << 20):.1f} MiB kept after 20,000; ratio: to the goal of {GOAL} readings/s; "
                "baseline: a counter per (code, GPU), which judges nothing",
            )
        )
    return rows


def xid(n: int, code: int, device: Device) -> Reading:
    return Reading(at=n / 200, probe="xid", device=device, source=Source.KERNEL_LOG, state=State.FAILED, code=code, serial=str(n))  # fmt: skip


def storm(count: int) -> list[Reading]:
    choose = random.Random(29)
    faults = [(code, gpu) for code in (95, 31, 63, 74) for gpu in GPUS][:29]
    return [xid(n, *faults[choose.randrange(29)]) for n in range(count)]


def apart(count: int) -> list[Reading]:
    return [xid(n, (79, 48, 31, 63)[n % 4], Device(bdf=f"{n % 65536:04x}:{n // 65536 + 1:02x}:00")) for n in range(count)]  # fmt: skip


def fused(readings: Sequence[Reading]) -> Fusion:
    """In batches of 1000, as they come out of the watcher's queue in a storm."""
    fusion = Fusion(ranks=RANKS)
    for start in range(0, len(readings), 1000):
        fusion.add_all(readings[start : start + 1000])
    return fusion


def counted(readings: Sequence[Reading]) -> Counter[tuple[int | None, str]]:
    return Counter((reading.code, reading.device.bdf) for reading in readings)


def seconds(do: object, readings: Sequence[Reading]) -> float:
    assert callable(do)
    began = time.perf_counter()
    do(readings)
    return time.perf_counter() - began


def memory(readings: Sequence[Reading]) -> int:
    """Bytes that fusion still holds after the last reading."""
    tracemalloc.start()
    try:
        kept = fused(readings[:20_000])
        size = tracemalloc.get_traced_memory()[0]
        del kept
        return size
    finally:
        tracemalloc.stop()
