"""An engine on a simulated device, small enough to be built hundreds of times: memory, blocks, an arena's writer, a copy engine.

Shared by the tests of the device copy path. Everything here is simulated: the device is the core's CPU twin.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from door import core, name

PARTS = (1024, 2048, 512)  # fragments of one block; multiples of 16, so that kernels take them
BLOCK = sum(PARTS)
BLOCKS = 24
ALWAYS_PACK = [(1, 1 << 30)]
IMAGE = b"any image will do for a twin"


class DeviceMemory:
    """Three regions in the twin's memory, with gaps between the blocks."""

    def __init__(self, device: Any, rng: random.Random) -> None:
        self.device = device
        self.bases = []
        for part in PARTS:
            base = device.twin_allocate((part + 64) * BLOCKS)
            device.twin_write(base, rng.randbytes((part + 64) * BLOCKS))
            self.bases.append(base)
        self.layout = core.Layout(
            [(base, part + 64, part, BLOCKS) for base, part in zip(self.bases, PARTS, strict=True)]
        )

    def fragments(self, block: int) -> list[tuple[int, int]]:
        return [
            (base + block * (part + 64), part) for base, part in zip(self.bases, PARTS, strict=True)
        ]

    def read(self, block: int) -> bytes:
        return b"".join(self.device.twin_read(at, part) for at, part in self.fragments(block))

    def write(self, block: int, data: bytes) -> None:
        for at, part in self.fragments(block):
            self.device.twin_write(at, data[:part])
            data = data[part:]

    def wipe(self) -> None:
        for base, part in zip(self.bases, PARTS, strict=True):
            self.device.twin_write(base, bytes((part + 64) * BLOCKS))


def chain(ids: Sequence[int], prefix: str = "b") -> list[Any]:
    return [
        core.Block(block_id, name(i, prefix), name(i - 1, prefix) if i else None, i)
        for i, block_id in enumerate(ids)
    ]


def device_engine(writer: Any, device: Any, memory: DeviceMemory, **how: Any) -> Any:
    how = {"threads": 2, "staging_bytes": 65536, "chunk_bytes": 1 << 20, **how}
    return core.DeviceEngine(writer, device, memory.layout, **how)


def results(engine: Any, seconds: float = 30.0) -> dict[int, list[str]]:
    assert engine.wait(seconds)
    return {result.job_id: result.statuses for result in engine.poll()}
