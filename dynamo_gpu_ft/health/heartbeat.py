"""The Python face of the step heartbeat: the class of a step, the files of an engine start, and what the native watch says as readings.

The writing and the judging are native (csrc/watch/beats.h, judge.h); this file decides names and words only.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.health.readings import Reading, Source, State

#: Classes of steps: by tokens to the next power of two, then those that are alike whatever their tokens.
SAMPLE, ENCODER = 22, 23
#: Files younger than this may belong to an engine that is just starting.
STALE_AFTER_S = 60.0
_PREFIX = "dynamo_gpu_ft-"

_STATES = {
    "hang": State.FAILED,
    "gone": State.FAILED,
    "slow": State.DEGRADED,
    "fine": State.HEALTHY,
}
_WORDS = {
    "step": "a step takes longer than it ever does",
    "busy": "announced work takes longer than its limit",
    "silent": "the process shows no sign of life",
    "stopped": "the process is stopped",
    "device": "the device finishes no step",
    "no_step": "requests wait and no step begins",
    "exit": "the process is gone",
}


def step_class(tokens: int, *, encoder: bool = False) -> int:
    """Which steps a step is compared with: those with as many scheduled `tokens` to the next power of two."""
    return ENCODER if encoder else min(max(tokens, 0).bit_length(), SAMPLE - 1)


def files(folder: str, tag: str) -> tuple[str, str]:
    """(heartbeat file, socket of readings) of the engine start named `tag`; both ends derive them from here."""
    stem = os.path.join(folder, _PREFIX + tag)
    return stem + ".beats", stem + ".health"


def reading_of(record: Any, clock: Callable[[], float] = time.time) -> Reading:
    """A native `WatchRecord` of source "heartbeat" as a reading with probe "step"."""
    facts = dict(record.facts)
    cause, shard = facts.get("cause", ""), facts.get("shard", "")
    text = _WORDS.get(cause, record.what)
    if limit := facts.get("limit_ms"):
        text += f": {facts.get('elapsed_ms', '?')} ms, the limit is {limit} ms"
    if late := facts.get("laggards"):
        text += f"; behind: shard {late}"
    return Reading(
        at=record.at_ns / 1e9,
        time=clock(),
        source=Source.HEARTBEAT,
        probe="step",
        state=_STATES.get(record.what, State.UNKNOWN),
        text=text,
        facts={**facts, "kind": record.what},
        pid=record.pid if record.pid >= 0 else None,
        pid_space="own" if record.pid >= 0 else "",
        shard=int(shard) if shard.isdigit() else None,
    )


def hold(path: str) -> int:
    """A descriptor whose lock says that the engine start of this heartbeat file is somebody's; close it when it is over."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor


def let_go(path: str, descriptor: int) -> None:
    """Closes what `hold` gave; the last one to let go removes the file. Never raises."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except OSError:
        pass  # others hold it, or it is gone
    finally:
        os.close(descriptor)


def remove_stale(folder: str) -> list[str]:
    """Removes files that a killed server left in `folder`: nobody holds them, and they are not new. Never raises."""
    removed = []
    for path in Path(folder).glob(_PREFIX + "*.beats"):
        try:
            with path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - path.stat().st_mtime < STALE_AFTER_S:
                    continue
                path.unlink()
            path.with_suffix(".health").unlink(missing_ok=True)
            removed.append(str(path))
        except OSError:
            continue  # held, gone, or not ours
    return removed
