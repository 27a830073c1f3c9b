"""The writer of test_device_restore: stores tensors of a device in an arena, says so, and is killed with SIGKILL by itself.

Arguments: arena path, device, seed.
"""

import os
import signal
import sys
import uuid

import torch

from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv.blocks import BlockRef
from dynamo_gpu_ft.kv.device import DeviceTier
from dynamo_gpu_ft.kv.layout import describe
from dynamo_gpu_ft.sim.twin import twin_of

LAYERS, BLOCKS, HEADS, TOKENS, DIM = 4, 24, 4, 16, 64


def tensors(device: str, seed: int) -> dict[str, torch.Tensor]:
    """Random bf16 KV in vLLM's CUDA shape: K and V in two planes before the block dimension."""
    random = torch.Generator().manual_seed(seed)
    shape = (2, BLOCKS, TOKENS, HEADS, DIM)
    made = {
        f"l{i}": torch.randn(shape, generator=random, dtype=torch.float32) for i in range(LAYERS)
    }
    return {name: t.to(torch.bfloat16).to(device) for name, t in made.items()}


def chain() -> list[BlockRef]:
    names = [f"block-{i}".encode().ljust(32, b".") for i in range(BLOCKS)]
    return [BlockRef(i, names[i], names[i - 1] if i else None, i) for i in range(BLOCKS)]


def open_tier(path: str, kv: dict[str, torch.Tensor]) -> DeviceTier:
    core = native.load()
    layout = describe(kv, BLOCKS)
    arena = core.Arena.open_or_create(
        path, slot_bytes=layout.block_bytes, slots=64, ledger_bytes=65536
    )
    token = uuid.uuid4().bytes
    arena.begin_epoch(token)
    namespace = arena.add_namespace("\n".join(layout.fingerprint).encode())
    writer = arena.attach_writer(shard=0, token=token, namespace=namespace)
    on_cpu = next(iter(kv.values())).device.type == "cpu"
    return DeviceTier(arena, writer, layout, kv, device=twin_of(kv.values()) if on_cpu else None)


def main() -> None:
    path, device, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    tier = open_tier(path, tensors(device, seed))
    tier.store(1, chain())
    assert tier.wait(60.0)
    (result,) = tier.poll()
    assert set(result.statuses) == {"ok"}, result
    print("stored", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
