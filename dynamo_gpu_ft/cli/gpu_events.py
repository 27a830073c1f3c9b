"""One line about what NVML's watcher hears on this machine, for `doctor`; run as a module, in a process of its own.

A driver may hang whoever calls it: the watcher's deadlines end that here, the doctor's own end the rest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.health.nvml_events import event_names


def look() -> str:
    """Raises the core's error when there is no NVML, or no GPU."""
    core: Any = native.load()
    watcher = core.NvmlWatcher(core.WatchQueue(64), poll_s=0.0)
    watcher.start()
    said = told(watcher.gpus())
    watcher.stop(2.0)
    return said


def told(gpus: Iterable[Any]) -> str:
    """GPUs that are alike share their words."""
    groups: dict[str, list[str]] = {}
    for gpu in gpus:
        groups.setdefault(_words(gpu), []).append(str(gpu.index))
    return "; ".join(f"GPU {','.join(indexes)}: {words}" for words, indexes in groups.items())


def _words(gpu: Any) -> str:
    if not gpu.responsive:
        return "does not answer"
    refused = gpu.supported & ~gpu.registered
    words = f"events {gpu.registered:#x} registered"
    if not gpu.registered:
        words = "no events"
    if refused:
        words += f" (supported and left out: {', '.join(event_names(refused))})"
    missing = [
        name
        for bit, name in ((0x4000, "GPU unavailable"), (0x8000, "recovery action"))
        if not gpu.supported & bit
    ]
    if missing:
        words += f", not supported: {', '.join(missing)}"
    field = "yes" if gpu.recovery_action >= 0 else "no, needs driver 565"
    return f"{words}; recovery action (field 230): {field}"


if __name__ == "__main__":
    try:
        print(look())
        status = 0
    except Exception as error:
        print(str(error).split(";")[0])
        status = 1
    sys.stdout.flush()
    os._exit(status)  # a thread that is stuck in the driver must not hold the answer back
