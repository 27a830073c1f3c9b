"""Compiles the simulated NVML with the machine's own g++, once, into the cache folder; never at import.

The library is named after a digest of its sources, so a changed source is a new library and processes may build at once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import GpuFtError

SONAME = "libnvidia-ml.so.1"
CONTROL = "FAKE_NVML_CONTROL"  # the environment variable that names the control folder
FLAGS = (
    "-std=c++20", "-O2", "-g1", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", f"-Wl,-soname,{SONAME}",
)  # fmt: skip
DEADLINE_S = 180.0


def library(cache: Path | None = None) -> Path:
    """The built library, compiled first where it is missing (about ten seconds). Its folder holds nothing else.

    Raises `GpuFtError` with the compiler's own words; needs g++ (or what CXX names).
    """
    sources = sorted(Path(__file__).parent.glob("*.cpp")) + sorted(
        Path(__file__).parent.glob("*.h")
    )
    compiler = os.environ.get("CXX", "g++").split()
    digest = hashlib.sha256(" ".join((*compiler, *FLAGS)).encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    folder = (cache or _cache()) / "fake-nvml" / digest.hexdigest()[:16]
    target = folder / SONAME
    if target.exists():
        return target
    if shutil.which(compiler[0]) is None:
        raise GpuFtError(
            "the simulated NVML cannot be built",
            value=compiler[0],
            rule="it is compiled where it is used",
            remedy="sudo apt-get install g++",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        out = Path(made) / SONAME
        names = [str(path) for path in sources if path.suffix == ".cpp"]
        command = [*compiler, *FLAGS, *names, "-o", str(out)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=DEADLINE_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise GpuFtError(
                "the simulated NVML cannot be built", where=str(folder), value=str(error)
            ) from error
        if done.returncode:
            raise GpuFtError(
                "the simulated NVML cannot be built",
                where=" ".join(command),
                value=done.stderr[-1000:],
                remedy="a g++ for C++20 (GCC 10 or newer); CXX names another one",
            )
        os.replace(out, target)
    return target


def environment(built: Path, control: Path) -> dict[str, str]:
    """What a process needs in its environment to find the library by its usual name and to listen to `control`."""
    before = os.environ.get("LD_LIBRARY_PATH", "")
    path = f"{built.parent}:{before}" if before else str(built.parent)
    return {"LD_LIBRARY_PATH": path, CONTROL: str(control)}


def _cache() -> Path:
    chosen = Config.load().cache
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dynamo_gpu_ft"
