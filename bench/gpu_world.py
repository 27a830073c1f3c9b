"""What the GPU benches share: the device (or the reason why there is none), device memory of a KV cache's shape, an arena.

`--quick` without a GPU runs on the core's simulated device: it shows that a bench works, its figures mean nothing.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.arena_copy import memory_folder
from bench.rows import Options, Row
from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.kv.device import OpenDevice, open_device
from dynamo_gpu_ft.sim.twin import twin_of

SIMULATED = "simulated: no GPU, no meaning"


def has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def place(options: Options, bench: str) -> str:
    """ "cuda", or "cpu" for a simulated device under --quick. Raises `GpuFtError` (exit status 2) where neither can be."""
    if has_gpu():
        return "cuda"
    if options.quick:
        return "cpu"
    raise GpuFtError(
        f"{bench} needs an NVIDIA GPU and torch with CUDA",
        value="none here",
        rule="a figure of a simulated device says nothing",
        remedy="--quick, which tries the bench out on a simulated device",
    )


def opened(kind: str, tensors: Sequence[Any]) -> OpenDevice:
    return open_device(0, Config.load()) if kind == "cuda" else twin_of(tensors)


def marked(rows: list[Row], kind: str) -> list[Row]:
    """Rows of a simulated device say so, meet no target and miss none."""
    if kind == "cuda":
        return rows
    note = f"{SIMULATED}; "
    return [replace(r, simulated=True, target=None, met=None, note=note + r.note) for r in rows]


def wait_for_device(kind: str) -> None:
    if kind == "cuda":
        import torch

        torch.cuda.synchronize()


@dataclass
class Place:
    """An arena in memory with a writer of its own."""

    arena: Any
    writer: Any


@contextlib.contextmanager
def arena_for(block_bytes: int, slots: int) -> Iterator[Place]:
    core = native.load()
    with memory_folder(block_bytes * slots + (64 << 20)) as folder:
        arena = core.Arena.create(
            str(folder / "bench.arena"), slot_bytes=block_bytes, slots=slots, ledger_bytes=1 << 20
        )
        token = os.urandom(16)
        arena.begin_epoch(token)
        writer = arena.attach_writer(shard=0, token=token, namespace=arena.add_namespace(b"bench"))
        try:
            yield Place(arena, writer)
        finally:
            writer.close()
            arena.close()
