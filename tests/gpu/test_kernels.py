"""The copy kernels and the driver table on a real GPU: against the torch reference, under compute-sanitizer, through the whole engine."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from dynamo_gpu_ft import native  # noqa: E402
from dynamo_gpu_ft.config import Config  # noqa: E402
from dynamo_gpu_ft.kernels import compile as kernels  # noqa: E402
from dynamo_gpu_ft.kernels import reference  # noqa: E402

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
MEMORY, STAGING = 1 << 20, 1 << 19


def pieces_of(rng: random.Random, broken: bool) -> list[reference.Piece]:
    out, address, offset = [], 0, 0
    while True:
        size = 16 * rng.choice([1, 3, 32, 256, 257, 1792, 4096])
        address += 16 * rng.randrange(64)
        if address + size > MEMORY or offset + size > STAGING:
            return out
        wrong = broken and rng.random() < 0.2
        out.append((address + 8 * wrong, offset, size, rng.randrange(10**6), rng.randrange(64)))
        address, offset = address + size, offset + size


@pytest.mark.parametrize("gather", [True, False], ids=["gather", "scatter"])
@pytest.mark.parametrize("way", ["built", "nvrtc"])
def test_the_cuda_kernels_do_what_the_reference_does(
    rng: random.Random, gather: bool, way: str
) -> None:
    cupy = pytest.importorskip("cupy")
    major, minor = torch.cuda.get_device_capability()
    images = kernels.built() if way == "built" else kernels.compiled(f"{major}.{minor}")
    if not images:
        pytest.skip("built without nvcc")
    name = "gft_gather" if gather else "gft_scatter"
    module = cupy.cuda.function.Module()
    module.load(images[0 if gather else 1])
    function = module.get_function(name)
    for case in range(20):
        memory = torch.frombuffer(bytearray(rng.randbytes(MEMORY)), dtype=torch.uint8)
        staging = torch.frombuffer(bytearray(rng.randbytes(STAGING)), dtype=torch.uint8)
        there, here = memory.cuda(), staging.cuda()
        pieces = pieces_of(rng, broken=case % 3 == 2)
        rows = torch.tensor(
            [(there.data_ptr() + a, o, s, w, k) for a, o, s, w, k in pieces], dtype=torch.int64
        ).cuda()
        results = torch.zeros(65, dtype=torch.int64, device="cuda")
        torch.cuda.synchronize()
        arguments = (
            rows.data_ptr(), cupy.uint32(len(pieces)), here.data_ptr(), cupy.uint64(STAGING),
            results.data_ptr(), cupy.uint32(1),
        )  # fmt: skip
        function((4,), (512,), arguments)
        cupy.cuda.Device().synchronize()
        error, *digests = [value % 2**64 for value in results.tolist()]
        said = (reference.gather if gather else reference.scatter)(memory, staging, pieces)
        assert (error, digests) == said
        assert torch.equal(there.cpu(), memory)
        assert torch.equal(here.cpu(), staging)


def test_the_driver_takes_the_kernels_and_every_way_of_copying_can_be_measured() -> None:
    from dynamo_gpu_ft.kv.device import open_device

    torch.cuda.init()
    opened = open_device(torch.cuda.current_device(), Config())
    facts = opened.native.facts()
    assert facts["simulated"] == "no"
    assert facts["kernels"] == "yes", opened.kernels
    for way in ("plain", "batch", "kernel"):
        if way == "batch" and facts["batch"] != "yes":
            continue
        for load in (False, True):
            assert opened.native.measure(way, load=load, bytes=4096, count=64) > 0
    assert native.load().Device.probe()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_a_store_and_a_load_are_clean_under_compute_sanitizer(
    tool: str, memory_folder: Path
) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "/usr/local/cuda/bin/compute-sanitizer"
    )
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed (CUDA toolkit)")
    program = Path(__file__).with_name("device_round.py")
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "99", sys.executable, str(program),
         str(memory_folder / "s.arena"), "cuda"],
        capture_output=True, text=True, timeout=800, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "round trip is bit-equal" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, done.stdout[-3000:]
