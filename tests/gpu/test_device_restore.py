"""Tensors of a device go through the arena and come back bit-equal after the SIGKILL of the process that stored them.

The same test runs on a simulated device everywhere and on CUDA tensors where there is a GPU.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent))
import device_writer  # noqa: E402

PROGRAM = Path(device_writer.__file__)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_kv_of_a_killed_writer_is_restored_bit_equal(device: str, memory_folder: Path) -> None:
    path, seed = str(memory_folder / "d.arena"), 7
    done = subprocess.run(
        [sys.executable, str(PROGRAM), path, device, str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.stdout == "stored\n"
    assert done.returncode == -signal.SIGKILL
    kv = {name: torch.zeros_like(t) for name, t in device_writer.tensors(device, seed).items()}
    tier = device_writer.open_tier(path, kv)
    tier.load(1, device_writer.chain())
    assert tier.wait(60.0)
    (result,) = tier.poll()
    assert set(result.statuses) == {"ok"}
    for name, expected in device_writer.tensors(device, seed).items():
        assert torch.equal(kv[name].view(torch.int16), expected.view(torch.int16)), name
    tier.close()
