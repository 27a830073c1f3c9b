"""The `inspect` command for a disk log's folder: what it holds by namespace, shard and epoch; `--verify` reads every record.

Opens the log read-only beside a live writer. A log that cannot be opened is refused with the reason the core gives: exit code 1.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli.progress import tracked
from dynamo_gpu_ft.cli.render import as_json, columns
from dynamo_gpu_ft.kv import namespace
from dynamo_gpu_ft.units import format_bytes

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core


def run(path: Path, *, verify: bool, json: bool) -> int:
    """Prints the answer; 0 when nothing is wrong, 1 when the log is refused or a record is bad."""
    core = native.load()
    try:
        log = core.DiskLog.open(str(path), read_only=True)
    except core.CoreError as error:
        message = f"{path} is refused ({error.code}): {error}"
        if json:
            print(as_json({"path": str(path), "error": error.code, "message": message}))
        print(f"dynamo-gpu-ft inspect: {message}", file=sys.stderr)
        return 2 if error.code == "not_found" else 1
    try:
        answer = describe(path, log)
        if verify:
            answer["verify"] = verified(log, core.CoreError)
    finally:
        log.close()
    print(as_json(answer) if json else as_text(answer))
    return 1 if answer.get("verify", {}).get("bad") else 0


def describe(path: Path, log: _core.DiskLog) -> dict[str, Any]:
    """What the log holds, as plain data; headers only."""
    stats = log.stats()
    names = {native.load().digest(record): record for record in log.namespaces()}
    order = list(names)
    groups: dict[tuple[int, int, int, str], list[_core.DiskEntry]] = {}
    for entry in log.entries():
        key = entry.key
        index = order.index(key.namespace) if key.namespace in names else -1
        groups.setdefault((index, key.shard, key.epoch, entry.codec), []).append(entry)
    return {
        "path": str(path),
        "kind": "disk log",
        "segments": stats["segments"],
        "disk_bytes": stats["disk_bytes"],
        "live_bytes": stats["live_bytes"],
        "records": stats["records"],
        "digest": stats["digest"],
        "term": stats["term"],
        "epoch": stats["max_epoch"],
        "namespaces": [namespace.decode(record) for record in names.values()],
        "blocks": [
            {
                "namespace": key[0],
                "shard": key[1],
                "epoch": key[2],
                "codec": key[3],
                "blocks": len(group),
                "bytes": sum(entry.key.payload_bytes for entry in group),
                "stored": sum(entry.stored_bytes for entry in group),
            }
            for key, group in sorted(groups.items())
        ],
    }


def verified(log: _core.DiskLog, error_type: type[_core.CoreError]) -> dict[str, Any]:
    """Reads every record. `bad` lists those whose bytes do not hold; one that a live writer collected meanwhile is no fault."""
    results: Counter[str] = Counter()
    bad: list[dict[str, Any]] = []
    entries = log.entries()
    for entry in tracked(entries, len(entries), "verifying records"):
        result = "ok"
        try:
            log.read(entry)
        except error_type as error:
            result = error.code
        results[result] += 1
        if result not in ("ok", "not_found"):
            bad.append(
                {
                    "segment": f"{entry.segment:016x}",
                    "offset": entry.offset,
                    "shard": entry.key.shard,
                    "position": entry.key.position,
                    "block_hash": entry.key.block_hash.hex(),
                    "result": result,
                }
            )
    return {"records": len(entries), "results": dict(results), "bad": bad}


def as_text(answer: dict[str, Any]) -> str:
    parts = [
        f"{answer['path']}: disk log of {answer['records']} records in {answer['segments']} segments, "
        f"{format_bytes(answer['disk_bytes'])} ({format_bytes(answer['live_bytes'])} live), "
        f"epoch {answer['epoch']}, digest {answer['digest']}",
        f"\nnamespaces: {len(answer['namespaces'])}",
    ]
    for index, record in enumerate(answer["namespaces"]):
        engine = record.get("engine", record)
        parts.append(f"  {index}: " + ", ".join(f"{key}={value}" for key, value in engine.items()))
    parts.append("\nblocks:" if answer["blocks"] else "\nblocks: none")
    tables = [answer["blocks"], answer.get("verify", {}).get("bad", [])]
    if "verify" in answer:
        found = answer["verify"]
        said = ", ".join(f"{count} {result}" for result, count in found["results"].items())
        tables[1:1] = [[{"verified": found["records"], "results": said or "none there"}]]
    parts += [
        columns(list(rows[0]), [list(row.values()) for row in rows]) for rows in tables if rows
    ]
    return "\n".join(parts)
