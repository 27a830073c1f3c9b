"""The `inspect` command for a folder of disk logs: who uses each, how large and how old it is; `--remove-unused` removes some.

Logs of another number of GPUs or of another arena's name are kept on purpose: KV is converted from them. So nothing removes them
by itself. What is removed has no live writer (a stopped one lives), no reader, and was not written for `--older-than`.
"""

from __future__ import annotations

import os
import re
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli.render import as_json, columns
from dynamo_gpu_ft.units import format_bytes

#: The files of a log (csrc/disk/README.md); a folder with any other is not removed.
_FILES = re.compile(
    r"lock|super-[0-9a-f]{8}-[ab]|seg-[0-9a-f]{8}-[0-9a-f]{8}|sum-[0-9a-f]{8}-[0-9a-f]{8}(\.new)?"
)
#: Behind the name of a folder that is being removed. Readers and writers take no such folder for a shard's.
_ASIDE = ".removed-"


@dataclass(frozen=True, slots=True)
class Found:
    """One log. `state`: "written" (by `pid`), "read", "unused", "left over" (of a removal that was cut short), or "refused",
    for `why`. `age_s` since it was last written."""

    path: str
    state: str
    bytes: int
    age_s: float
    pid: int = 0
    why: str = ""


def is_log(path: Path) -> bool:
    return any(_FILES.fullmatch(name.name) for name in path.iterdir())


def logs_below(path: Path) -> list[Path]:
    """The logs of a `disk_dir` or of one arena's folder in it."""
    return sorted(p for how in ("shard-*", "*/shard-*") for p in path.glob(how) if p.is_dir())


def run(path: Path, *, remove: bool, older_than: float, even_if_read: bool, json: bool) -> int:
    """Prints what is there, after removing what may go. 1 when something that should go could not be removed."""
    found = [look(log) for log in logs_below(path)]
    failed: list[str] = []
    removed: list[str] = []
    for log in found if remove else ():
        if not due(log, older_than, even_if_read):
            continue
        why = take_away(log, even_if_read)
        if why:
            failed.append(f"{log.path}: {why}")
        else:
            removed.append(log.path)
    answer = {"path": str(path), "logs": [asdict(log) for log in found]}
    if remove:
        answer |= {"removed": removed, "failed": failed}
    print(as_json(answer) if json else as_text(answer))
    for line in failed:
        print(f"dynamo-gpu-ft inspect: not removed: {line}", file=sys.stderr)
    return 1 if failed else 0


def due(log: Found, older_than: float, even_if_read: bool) -> bool:
    """Whether a log may be removed. Pure."""
    if log.state == "left over":
        return True
    free = log.state == "unused" or (even_if_read and log.state == "read")
    return free and log.age_s >= older_than


def look(path: Path) -> Found:
    """One log, by its files and locks; no block is read."""
    core = native.load()
    try:
        stats = [p.lstat() for p in path.iterdir()]
        size = sum(s.st_blocks * 512 for s in stats)
        age = max(0.0, time.time() - max((s.st_mtime for s in stats), default=path.stat().st_mtime))
    except OSError as error:
        return Found(str(path), "refused", 0, 0.0, why=str(error))
    if _ASIDE in path.name:
        return Found(str(path), "left over", size, age)
    try:
        pid, read = core.disk_users(str(path))
    except core.CoreError as error:
        if error.code == "not_found" and all(_FILES.fullmatch(p.name) for p in path.iterdir()):
            return Found(str(path), "unused", size, age)  # its lock file is lost
        return Found(str(path), "refused", size, age, why=str(error))
    state = "written" if pid else "read" if read else "unused"
    return Found(str(path), state, size, age, pid)


def take_away(log: Found, even_if_read: bool) -> str:
    """Removes a log that is due; "" or why it could not be. From the first step on nobody finds it, or finds half of it."""
    core, path = native.load(), Path(log.path)
    try:
        strangers = [p.name for p in path.iterdir() if not _FILES.fullmatch(p.name)]
        if strangers:
            return f"{strangers[0]} in it belongs to no disk log; look at it and remove it first"
        if log.state != "left over":
            aside = path.with_name(f"{path.name}{_ASIDE}{uuid.uuid4().hex[:8]}")
            core.disk_set_aside(str(path), str(aside), even_if_read=even_if_read)
            path = aside
        for file in path.iterdir():
            file.unlink(missing_ok=True)
        path.rmdir()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    except (OSError, core.CoreError) as error:
        return str(error)
    return ""


def as_text(answer: dict[str, Any]) -> str:
    logs = answer["logs"]
    total = format_bytes(sum(log["bytes"] for log in logs))
    parts = [f"{answer['path']}: {len(logs)} disk logs, {total}"]
    rows = [
        [
            os.path.relpath(log["path"], answer["path"]),
            f"written by {log['pid']}" if log["pid"] else log["state"],
            format_bytes(log["bytes"]),
            f"{log['age_s'] / 86400:.1f} days",
            log["why"],
        ]
        for log in logs
    ]
    if rows:
        parts.append(columns(["log", "state", "on disk", "last written", ""], rows))
    if "removed" in answer:
        parts.append(f"removed: {len(answer['removed'])}")
    elif any(log["state"] in ("unused", "left over") for log in logs):
        parts.append(
            "unused ones stay until `--remove-unused`; KV is converted from them until then"
        )
    return "\n".join(parts)
