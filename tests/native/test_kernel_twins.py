"""The kernels' host twins and the Triton version against the torch reference, on random pieces.

The CUDA sources themselves run in tests/gpu; all versions have the same inputs and must give the same bytes, digests and errors.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from door import core
from triton_path import TRITON

torch = pytest.importorskip("torch")
from dynamo_gpu_ft.kernels import reference  # noqa: E402

MEMORY, STAGING, CASES = 65536, 32768, 40


def data(rng: random.Random, size: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(rng.randbytes(size)), dtype=torch.uint8)


def pieces_of(rng: random.Random, *, broken: bool) -> list[reference.Piece]:
    """Pieces whose targets do not overlap, in either direction; some of them break a rule."""
    out, address, offset = [], 0, 0
    while True:
        size = 16 * rng.choice([1, 2, 3, 16, 31, 64, 256])
        address += 16 * rng.randrange(40)
        if address + size > MEMORY or offset + size > STAGING:
            return out
        piece = [address, offset, size, rng.randrange(10**6), rng.randrange(64)]
        if broken and rng.random() < 0.2:
            field = rng.randrange(5)
            piece[field] = {0: address + 8, 1: STAGING + 16, 2: size + 4, 3: piece[3], 4: 64}[field]
        out.append(tuple(piece))
        address, offset = address + size, offset + size


@pytest.mark.parametrize("gather", [True, False], ids=["gather", "scatter"])
def test_the_host_twins_do_what_the_reference_does(rng: random.Random, gather: bool) -> None:
    device = core.Device.twin()
    base, staging = device.twin_allocate(MEMORY), device.twin_allocate(STAGING)
    for _ in range(CASES):
        memory, packed = data(rng, MEMORY), data(rng, STAGING)
        device.twin_write(base, bytes(memory.numpy()))
        device.twin_write(staging, bytes(packed.numpy()))
        pieces = pieces_of(rng, broken=rng.random() < 0.5)
        moved = [(base + at, *rest[:2], *rest[2:]) for at, *rest in pieces]
        name = "gft_gather" if gather else "gft_scatter"
        said = device.twin_launch(name, moved, staging, STAGING, True)
        assert said == (reference.gather if gather else reference.scatter)(memory, packed, pieces)
        assert device.twin_read(base, MEMORY) == bytes(memory.numpy())
        assert device.twin_read(staging, STAGING) == bytes(packed.numpy())


def test_the_digest_of_the_core_is_that_of_the_reference(rng: random.Random) -> None:
    for _ in range(CASES):
        block = rng.randbytes(8 * rng.randrange(200))
        first = rng.randrange(2**40)
        expected = (
            reference.mix(torch.tensor(list(block), dtype=torch.uint8), first) if block else 0
        )
        assert core.device_mix(block, first) == expected


def test_the_digest_knows_positions_and_does_not_care_for_order(rng: random.Random) -> None:
    block = rng.randbytes(4096)
    whole = core.device_mix(block, 7)
    parts = [(core.device_mix(block[i : i + 512], 7 + i // 8)) for i in range(0, 4096, 512)]
    rng.shuffle(parts)
    assert sum(parts) % 2**64 == whole
    swapped = block[8:16] + block[:8] + block[16:]
    assert core.device_mix(swapped, 7) != whole
    for bit in rng.sample(range(4096 * 8), 200):
        flipped = bytearray(block)
        flipped[bit // 8] ^= 1 << bit % 8
        assert core.device_mix(bytes(flipped), 7) != whole


PROGRAM = """
import random, sys, torch
sys.path[:0] = sys.argv[2:]
import conftest  # the kernels of this checkout
from test_kernel_twins import MEMORY, STAGING, data, pieces_of
from dynamo_gpu_ft.kernels import reference, triton_gather
rng = random.Random(int(sys.argv[1]))
for case in range(6):
    gather = case % 2 == 0
    memory, packed = data(rng, MEMORY), data(rng, STAGING)
    seen_memory, seen_packed = memory.clone(), packed.clone()
    pieces = pieces_of(rng, broken=case > 2)
    rows = torch.tensor([(seen_memory.data_ptr() + a, o, s, w, k) for a, o, s, w, k in pieces])
    error, digests = triton_gather.run(rows, seen_packed, gather=gather)
    said = (reference.gather if gather else reference.scatter)(memory, packed, pieces)
    assert (int(error), [d % 2**64 for d in digests.tolist()]) == said, case
    assert torch.equal(memory, seen_memory) and torch.equal(packed, seen_packed), case
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(TRITON is None, reason="Triton is not there: make beside")
def test_the_triton_version_does_what_the_reference_does(rng: random.Random) -> None:
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(rng.randrange(2**32)), str(Path(folder).parent), folder, *sys.path, *(TRITON or [])],
        capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr[-3000:]


def test_kernels_come_from_the_first_way_that_the_device_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dynamo_gpu_ft.kernels import compile as kernels

    taken: list[list[bytes]] = []

    def refuse_built(images: list[bytes]) -> None:
        if images == [b"old"]:
            raise RuntimeError("no binary for this device")
        taken.append(images)

    monkeypatch.setattr(
        kernels,
        "candidates",
        lambda compute, _: iter(
            [("built", lambda: [b"old"]), ("nvrtc", lambda: [compute.encode()])]
        ),
    )
    assert kernels.load(refuse_built, "9.0") == ("nvrtc", "")
    assert taken == [[b"9.0"]]
    monkeypatch.setattr(kernels, "candidates", lambda compute, _: iter([("built", list)]))
    way, why = kernels.load(taken.append, "9.0")
    assert way == "none"
    assert "built without nvcc" in why
