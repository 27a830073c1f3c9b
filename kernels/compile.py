"""Finds kernels that a device takes: the fat binaries built with the package, else NVRTC's output for it through CuPy.

Called once when a copy engine or a router mask starts; every failure is an answer ("no kernels, because ..."), since copies go without them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

#: What the copy engine takes, both or none; the router mask is loaded by itself.
NAMES = ("gather", "scatter")
ROUTER = ("router_mask",)
FOLDER = Path(__file__).resolve().parent


def built(names: Sequence[str] = NAMES) -> list[bytes]:
    """The fat binaries of these kernels; empty when the package was built without nvcc."""
    paths = [FOLDER / f"{name}.fatbin" for name in names]
    try:
        return [path.read_bytes() for path in paths]
    except OSError:
        return []


def nvrtc_available() -> bool:
    return importlib.util.find_spec("cupy") is not None


def compiled(compute: str, names: Sequence[str] = NAMES) -> list[bytes]:
    """PTX of these kernels for compute capability "9.0", made now by NVRTC. Takes about a second. Raises what CuPy raises."""
    from cupy.cuda import compiler

    options = (
        "-std=c++17",
        f"-I{FOLDER}",
        "--gpu-architecture=compute_" + compute.replace(".", ""),
    )
    images = []
    for name in names:
        source = (FOLDER / f"{name}.cu").read_text(encoding="utf-8")
        ptx, _mapping = compiler.compile_using_nvrtc(source, options, filename=f"{name}.cu")
        images.append((ptx.encode() if isinstance(ptx, str) else bytes(ptx)) + b"\0")
    return images


def candidates(
    compute: str, names: Sequence[str] = NAMES
) -> Iterator[tuple[str, Callable[[], list[bytes]]]]:
    """Where kernels may come from, best first: (name of the way, what gives the images)."""
    yield "built", lambda: built(names)
    if nvrtc_available():
        yield "nvrtc", lambda: compiled(compute, names)


def load(
    use: Callable[[list[bytes]], None], compute: str, names: Sequence[str] = NAMES
) -> tuple[str, str]:
    """Gives the first images to `use` that it takes. Returns (way, "") or ("none", why not)."""
    reasons = []
    for way, images in candidates(compute, names):
        try:
            found = images()
            if not found:
                reasons.append(f"{way}: the package was built without nvcc")
                continue
            use(found)
        except Exception as error:
            reasons.append(f"{way}: {error}")
            continue
        return way, ""
    if not nvrtc_available():
        reasons.append("nvrtc: CuPy is not installed")
    return "none", "; ".join(reasons)
