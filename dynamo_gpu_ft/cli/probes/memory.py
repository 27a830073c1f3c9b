"""What the doctor says of the arena's memory: is there enough, is it memory, may it be written and pinned, which arenas lie there.

Nothing is made or locked beyond a page of a nameless file.
"""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

from dynamo_gpu_ft.cli.probes.base import Item, gib, setting

MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs", "hugetlbfs")


def probe_memory() -> Item:
    folder, wanted = _arena_dir(), int(setting("arena_bytes", 4 << 30))
    status = os.statvfs(folder)
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    own = sum(path.stat().st_size for path in _arenas())
    detail = f"{folder}: {gib(size)} GiB, {gib(free)} GiB free, arenas {gib(own)} GiB; wanted {gib(wanted)} GiB"
    kind = _file_system(folder)
    if free + own < wanted:
        remedy = f"DYN_GPU_FT_ARENA_BYTES={max(free // 2, 1 << 20)}, or a larger {folder}"
        return Item("memory", "missing", detail, remedy + " (docker: --shm-size=8g)", True)
    if kind not in MEMORY_FILE_SYSTEMS:
        detail += f"; a {kind}, not memory"
        return Item("memory", "simulated", detail, "DYN_GPU_FT_ARENA_DIR=/dev/shm")
    return Item("memory", "real", detail, "", True)


def probe_arena_dir() -> Item:
    folder = _arena_dir()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, 4096)
    except OSError as error:
        return Item("arena folder", "missing", f"{folder}: {error}", f"chmod u+rwx {folder}", True)
    return Item("arena folder", "real", f"{folder} can be written", "", True)


def probe_arenas() -> Item:
    names = [f"{path.name} ({gib(path.stat().st_size)} GiB)" for path in _arenas()]
    hint = "look: dynamo-gpu-ft inspect; free: remove the file" if names else ""
    return Item("arenas", "real", ", ".join(names) or "none yet", hint)


def probe_locked_memory() -> Item:
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Item("locked memory", "real", "unlimited")
    detail = f"limit {soft >> 10} KiB; a driver may refuse to pin the arena, copies are slower then"
    return Item(
        "locked memory", "real", detail, "ulimit -l unlimited (docker: --ulimit memlock=-1)"
    )


def _arena_dir() -> str:
    return str(setting("arena_dir", "/dev/shm"))


def _arenas() -> list[Path]:
    return sorted(Path(_arena_dir()).glob("dynamo_gpu_ft-*.arena"))


def _file_system(folder: str) -> str:
    """The kind of the file system `folder` is on: that of the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    real = os.path.realpath(folder)
    above = [
        (len(m), kind) for m, kind in mounts if m == "/" or real == m or real.startswith(m + "/")
    ]
    return max(above, default=(0, "unknown"))[1]
