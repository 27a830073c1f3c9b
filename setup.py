"""Builds the native core with g++ alone; everything else about the package is in pyproject.toml.

CUDA is never needed here: where nvcc is found, the copy kernels are built ahead of time into fat binaries
(DYN_GPU_FT_BUILD_KERNELS=0 leaves them out), else the package goes without. xxHash is used when the compiler finds
<xxhash.h>; DYN_GPU_FT_BUILD_DIGEST=crc32c or =xxh3_128 forces the choice (the latter fails with the remedy when the
header is missing). DYN_GPU_FT_BUILD_FLAGS is added when compiling and when linking: sanitizers, debugging symbols.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pybind11
from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# -g0 last: Python's own flags ask for debugging symbols, which would make the library twenty times larger.
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread", "-g0"]
# NOTE: not by CFLAGS: setuptools 77 leaves them to C, and what should be instrumented would be built without a word.
MORE_FLAGS = os.environ.get("DYN_GPU_FT_BUILD_FLAGS", "").split()


def compiler_finds(header: str) -> bool:
    """Whether the C++ compiler can include `header`: the only question that decides if it can be used."""
    compiler = os.environ.get("CXX", "g++").split()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(f"#include <{header}>\n")
        command = [*compiler, "-std=c++20", "-fsyntax-only", str(source)]
        try:
            return (
                subprocess.run(command, capture_output=True, check=False, timeout=60).returncode
                == 0
            )
        except (OSError, subprocess.TimeoutExpired):
            return False


def digest_macros() -> list[tuple[str, str | None]]:
    wish = os.environ.get("DYN_GPU_FT_BUILD_DIGEST", "")
    if wish not in ("", "crc32c", "xxh3_128"):
        raise SystemExit(
            f"DYN_GPU_FT_BUILD_DIGEST={wish!r}: it must be crc32c or xxh3_128; unset it to let the build choose"
        )
    if wish == "crc32c":
        return []
    if compiler_finds("xxhash.h"):
        return [("GFT_HAVE_XXHASH", None)]
    if wish == "xxh3_128":
        raise SystemExit(
            "DYN_GPU_FT_BUILD_DIGEST=xxh3_128, but the compiler does not find <xxhash.h>; install libxxhash-dev"
        )
    return []


def optional_libraries() -> tuple[list[tuple[str, str | None]], list[str]]:
    """Macros and link arguments of the disk log's libraries that are there; csrc/libraries.sh says how it is found out."""
    try:
        done = subprocess.run(
            ["sh", str(ROOT / "csrc" / "libraries.sh")],
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
    except (OSError, subprocess.TimeoutExpired):
        return [], []
    words = done.stdout.split()
    macros: list[tuple[str, str | None]] = [(w[2:], None) for w in words if w.startswith("-D")]
    return macros, [w for w in words if w.startswith("-l")]


def version() -> str:
    text = (ROOT / "dynamo_gpu_ft" / "__init__.py").read_text()
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if match is None:
        raise SystemExit("dynamo_gpu_ft/__init__.py has no __version__")
    return match[1]


def core_extension() -> Extension:
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp"))
    headers = sorted(
        str(path.relative_to(ROOT))
        for pattern in ("*.h", "*.inc", "*.sh")
        for path in (ROOT / "csrc").rglob(pattern)
    )
    macros, archives = optional_libraries()
    return Extension(
        "dynamo_gpu_ft.native._core",
        sources=sources,
        depends=headers,
        include_dirs=[pybind11.get_include()],
        define_macros=[("GFT_PACKAGE_VERSION", f'"{version()}"'), *digest_macros(), *macros],
        extra_compile_args=[*FLAGS, *MORE_FLAGS],
        extra_link_args=["-pthread", *archives, "-Wl,--exclude-libs,ALL", *MORE_FLAGS],
        language="c++",
    )


# What the fat binaries hold: code for these, and PTX of the oldest for every later device.
ARCHITECTURES = ("80", "90", "100")


def find_nvcc() -> str | None:
    if os.environ.get("DYN_GPU_FT_BUILD_KERNELS", "1") == "0":
        return None
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")


def build_kernels(folder: Path) -> None:
    """Fat binaries of kernels/*.cu into `folder`, those that are older than a source. Never fails the build."""
    nvcc = find_nvcc()
    sources = sorted((ROOT / "kernels").glob("*.cu"))
    newest = max(path.stat().st_mtime for path in (ROOT / "kernels").glob("*.cu*"))
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    codes.append(f"-gencode=arch=compute_{ARCHITECTURES[0]},code=compute_{ARCHITECTURES[0]}")
    for source in sources if nvcc else []:
        target = folder / f"{source.stem}.fatbin"
        if target.exists() and target.stat().st_mtime >= newest:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            str(nvcc),
            "-std=c++17",
            "-O3",
            "-fatbin",
            *codes,
            str(source),
            "-o",
            str(target),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode:
            print(
                f"nvcc could not build {source.name}; copies go without kernels: {done.stderr[-500:]}"
            )
            target.unlink(missing_ok=True)


class BuildWithKernels(build_ext):
    def run(self) -> None:
        super().run()
        build_kernels(
            ROOT / "kernels" if self.inplace else Path(self.build_lib, "dynamo_gpu_ft", "kernels")
        )


# One compiler per processor: setuptools alone would compile the sources one after the other.
ParallelCompile(default=0).install()
setup(ext_modules=[core_extension()], cmdclass={"build_ext": BuildWithKernels})
