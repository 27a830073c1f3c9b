"""Compiles a simulated library with the machine's own g++, once, into the cache folder; never at import.

A library is named after a digest of its sources, so a changed source is a new library and processes may build at once.
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

FLAGS = ("-std=c++20", "-O2", "-g1", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
DEADLINE_S = 180.0


def compiled(
    title: str, name: str, soname: str, source: Path, cache: Path | None, seconds: str
) -> Path:
    """The library `soname` of the C++ files in the folder `source`, in a folder of its own below `name` of the cache; compiled first where
    it is missing (`seconds`, about). Blocks for that, 180 s at most.

    Raises `GpuFtError` with the compiler's own words; needs g++ (or what CXX names).
    """
    sources = sorted(source.glob("*.cpp")) + sorted(source.glob("*.h"))
    compiler = os.environ.get("CXX", "g++").split()
    flags = (*FLAGS, f"-Wl,-soname,{soname}")
    digest = hashlib.sha256(" ".join((*compiler, *flags)).encode())
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    folder = (cache or _cache()) / name / digest.hexdigest()[:16]
    target = folder / soname
    if target.exists():
        return target
    what = f"the simulated {title} cannot be built"
    if shutil.which(compiler[0]) is None:
        raise GpuFtError(
            what,
            value=compiler[0],
            rule=f"it is compiled where it is used, in {seconds}",
            remedy="sudo apt-get install g++",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        out = Path(made) / soname
        names = [str(path) for path in sources if path.suffix == ".cpp"]
        command = [*compiler, *flags, *names, "-o", str(out)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=DEADLINE_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise GpuFtError(what, where=str(folder), value=str(error)) from error
        if done.returncode:
            raise GpuFtError(
                what,
                where=" ".join(command),
                value=done.stderr[-1000:],
                remedy="a g++ for C++20 (GCC 10 or newer); CXX names another one",
            )
        os.replace(out, target)
    return target


def _cache() -> Path:
    chosen = Config.load().cache
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dynamo_gpu_ft"
