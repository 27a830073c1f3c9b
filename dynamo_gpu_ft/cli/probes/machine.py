"""What the doctor says of the machine and its configuration: Python, settings, ports, what a build needs.

Quick looks in the doctor's own process.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from pathlib import Path

from dynamo_gpu_ft.cli.probes.base import Item, setting, state_of


def probe_python() -> Item:
    version, system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    good = (3, 10) <= sys.version_info[:2] < (3, 14) and system == "Linux x86_64"
    remedy = "" if good else "use Python 3.10 to 3.13 on Linux x86-64"
    return Item("python", state_of(good), f"{version} on {system}", remedy, True)


def probe_settings() -> Item:
    import dynamo_gpu_ft.config as config

    try:
        config.Config.load()
    except Exception as error:
        return Item("settings", "missing", str(error), "unset the variable", True)
    given = sorted(name for name in os.environ if name.startswith(config.ENV_PREFIX))
    return Item("settings", "real", ", ".join(given) or "defaults", "", True)


def probe_ports() -> Item:
    wanted = {"vLLM's default": 8000}
    if port := int(setting("metrics_port", 0)):
        wanted["metrics"] = port
    taken = [f"{port} ({name})" for name, port in wanted.items() if not _free_port(port)]
    if taken:
        said = f"taken: {', '.join(taken)}"
        return Item("ports", "missing", said, "serve --port, DYN_GPU_FT_METRICS_PORT")
    metrics = "on" if "metrics" in wanted else "off"
    return Item("ports", "real", f"{', '.join(map(str, wanted.values()))} free; metrics {metrics}")


def probe_build_tools() -> Item:
    compiler, nvcc = shutil.which("g++"), shutil.which("nvcc")
    xxhash = Path("/usr/include/xxhash.h").exists() or Path("/usr/local/include/xxhash.h").exists()
    absent = [n for n, there in (("g++", compiler), ("libxxhash-dev", xxhash)) if not there]
    detail = (
        f"g++ {compiler or '-'}, xxHash {'yes' if xxhash else 'no'}, nvcc {nvcc or '- (optional)'}"
    )
    remedy = f"sudo apt-get install {' '.join(absent)}" if absent else ""
    return Item("build tools", state_of(not absent), detail, remedy)


def _free_port(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0
