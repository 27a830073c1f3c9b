"""Compiles the simulated NCCL, once. Its path is for `Options.nccl_library` of the reference engine, and for nothing else: nobody finds it by its usual name."""

from __future__ import annotations

from pathlib import Path

from dynamo_gpu_ft.sim.compiling import compiled

SONAME = "libnccl.so.2"


def library(cache: Path | None = None) -> Path:
    """The built library, compiled first where it is missing (about ten seconds). Its folder holds nothing else.

    Raises `GpuFtError` with the compiler's own words; needs g++ (or what CXX names).
    """
    return compiled("NCCL", "simulated-nccl", SONAME, Path(__file__).parent, cache, "ten seconds")


if __name__ == "__main__":
    print(library())
