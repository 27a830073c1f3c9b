"""Compiles the simulated NVML, once, and says how a process finds it."""

from __future__ import annotations

import os
from pathlib import Path

from dynamo_gpu_ft.sim.compiling import compiled

SONAME = "libnvidia-ml.so.1"
CONTROL = "FAKE_NVML_CONTROL"  # the environment variable that names the control folder


def library(cache: Path | None = None) -> Path:
    """The built library, compiled first where it is missing (about ten seconds). Its folder holds nothing else.

    Raises `GpuFtError` with the compiler's own words; needs g++ (or what CXX names).
    """
    return compiled("NVML", "fake-nvml", SONAME, Path(__file__).parent, cache, "ten seconds")


def environment(built: Path, control: Path) -> dict[str, str]:
    """What a process needs in its environment to find the library by its usual name and to listen to `control`."""
    before = os.environ.get("LD_LIBRARY_PATH", "")
    path = f"{built.parent}:{before}" if before else str(built.parent)
    return {"LD_LIBRARY_PATH": path, CONTROL: str(control)}
