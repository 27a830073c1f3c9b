"""What the tests of expert slots share: small stores, experts whose bytes follow from their names, and sources that misbehave on request."""

from __future__ import annotations

import hashlib
import threading

from dynamo_gpu_ft import native
from dynamo_gpu_ft.errors import WeightsError
from dynamo_gpu_ft.experts.records import Geometry
from dynamo_gpu_ft.experts.sources import Manifest

BYTES = 256


def expert(layer: int, number: int, size: int = BYTES) -> bytearray:
    return bytearray(hashlib.shake_128(f"{layer}/{number}".encode()).digest(size))


def digest(data: bytes | bytearray | memoryview) -> bytes:
    return native.load().digest(data)


def manifest(layers: int, experts: int, size: int = BYTES) -> Manifest:
    return Manifest(
        {(a, b): digest(expert(a, b, size)) for a in range(layers) for b in range(experts)}
    )


def geometry(*, layers: int = 2, slots: int = 3, spare: int = 1, size: int = BYTES) -> Geometry:
    return Geometry(layers, slots, slots + spare, size, rank=0)


class Source:
    """An `ExpertSource` whose `fault` is "", "absent", "lying", "short", "late", "broken" or "slow-writer"."""

    def __init__(self, name: str, fault: str = "", only: set[int] | None = None) -> None:
        self.name, self.fault, self.only = name, fault, only
        self.asked: list[tuple[int, int]] = []
        self.let_go, self.wrote = threading.Event(), threading.Event()

    def load(self, layer: int, number: int, into: memoryview, deadline_s: float) -> int:
        self.asked.append((layer, number))
        data = expert(layer, number, len(into))
        if self.fault == "absent" or (self.only is not None and number not in self.only):
            raise WeightsError("no such expert", where=self.name, value=number)
        if self.fault == "broken":
            raise ZeroDivisionError("a fault of the source's own")
        if self.fault == "late":
            self.let_go.wait(60)
            into[:] = bytes(len(into))
            self.wrote.set()
            return len(into)
        if self.fault == "short":
            into[: len(into) // 2] = data[: len(into) // 2]
            return len(into) // 2
        if self.fault == "lying":
            data[17] ^= 1
        into[:] = data
        return len(into)
