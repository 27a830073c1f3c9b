"""The `inspect` command: opens an arena read-only and shows namespaces, blocks, open requests; `--verify` reads every payload.

Sits beside a running engine without disturbing it, or looks at what a dead one left. An arena that does not check is refused
with the place and the reason the core gives: exit code 1; no arena, or no core to read it: 2.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli import inspect_disk, unused_logs
from dynamo_gpu_ft.cli.progress import tracked
from dynamo_gpu_ft.cli.render import as_json, columns
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import ArenaError
from dynamo_gpu_ft.kv import eviction, namespace
from dynamo_gpu_ft.recovery import ledger
from dynamo_gpu_ft.units import UnitError, format_bytes, parse

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

# What verify says about a slot that a live writer changed meanwhile: not a fault.
_MOVED = ("changed", "empty")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "arena",
        nargs="?",
        help="name or path of an arena, the folder of a disk log, or a folder of disk logs; default: the configured arena",
    )
    parser.add_argument("--verify", action="store_true", help="check the digest of every payload")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    logs = parser.add_argument_group("a folder of disk logs")
    logs.add_argument(
        "--remove-unused",
        action="store_true",
        help="remove logs that nobody writes or reads and that were not written for --older-than",
    )
    logs.add_argument(
        "--older-than",
        metavar="TIME",
        type=_age,
        default=7 * 86400.0,
        help="7d, 12h, 0s, ...; default 7d",
    )
    logs.add_argument(
        "--even-if-read",
        action="store_true",
        help="also those that an engine only reads, to convert from: it computes instead",
    )


def _age(text: str) -> float:
    try:
        return float(parse("seconds", text))
    except UnitError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(args: argparse.Namespace) -> int:
    path = path_of(args.arena)
    if not path.exists():
        _say(args.json, path, "not_found", f"no arena at {path}. {_others(path)}")
        return 2
    core = native.load()
    if path.is_dir() and not unused_logs.is_log(path) and unused_logs.logs_below(path):
        return unused_logs.run(
            path,
            remove=args.remove_unused,
            older_than=args.older_than,
            even_if_read=args.even_if_read,
            json=args.json,
        )
    if args.remove_unused:
        raise ArenaError(
            "there is nothing to remove here",
            where=str(path),
            rule="--remove-unused takes a folder of disk logs: disk_dir, or an arena's folder in it",
            remedy="dynamo-gpu-ft inspect DISK_DIR --remove-unused",
        )
    if path.is_dir():
        return inspect_disk.run(path, verify=args.verify, json=args.json)
    try:
        arena = core.Arena.open(str(path), read_only=True)
    except core.CoreError as error:
        _say(args.json, path, error.code, f"{path} is refused ({error.code}): {error}")
        return 2 if error.code == "not_found" else 1
    try:
        answer = describe(arena)
        if args.verify:
            answer["verify"] = verify(arena)
    except core.CoreError as error:
        _say(args.json, path, error.code, f"{path} is refused ({error.code}): {error}")
        return 1
    finally:
        arena.close()
    print(as_json(answer) if args.json else as_text(answer))
    return 1 if answer.get("verify", {}).get("bad") else 0


def describe(arena: _core.Arena) -> dict[str, Any]:
    """What the arena holds, as plain data. Reads index and ledger, no payload; a live writer may move on meanwhile."""
    records = arena.read_ledger()
    return {
        "path": arena.path,
        "file_bytes": arena.file_bytes,
        "slot_bytes": arena.slot_bytes,
        "slots": arena.slots,
        "digest": arena.digest_name,
        "epoch": arena.epoch,
        "counts": dict(arena.counts()),
        "classes": _classes(arena),
        "usage": [
            {"namespace": n, "used": used, "quota": quota or None, "evicted_for_quota": evicted}
            for n, (used, quota, evicted) in enumerate(arena.usage())
        ],
        "namespaces": [namespace.decode(record) for record in arena.namespaces()],
        "blocks": _blocks(arena.scan()),
        "ledger": {"records": len(records.records), "end": records.end},
        "open_requests": [
            {
                "request_id": request.request_id,
                "prompt_tokens": len(request.prompt_token_ids),
                "generated_tokens": len(request.token_ids),
            }
            for request in ledger.replay(arena)
        ],
    }


def verify(arena: _core.Arena) -> dict[str, Any]:
    """Reads the payload of every sealed slot. `bad` lists those whose bytes are not what was sealed."""
    sealed = [slot for slot in arena.scan() if slot.state == "sealed"]
    results: Counter[str] = Counter()
    bad: list[dict[str, Any]] = []
    for slot in tracked(sealed, len(sealed), "verifying payloads"):
        result = arena.verify(slot.slot)
        results[result] += 1
        if result != "ok" and result not in _MOVED:
            bad.append(
                {
                    "slot": slot.slot,
                    "shard": slot.shard,
                    "position": slot.position,
                    "block_hash": slot.block_hash.hex(),
                    "result": result,
                }
            )
    return {"sealed": len(sealed), "results": dict(results), "bad": bad}


def as_text(answer: dict[str, Any]) -> str:
    counts = answer["counts"]
    parts = [
        f"{answer['path']}: {format_bytes(answer['file_bytes'])}, epoch {answer['epoch']}, "
        f"{answer['slots']} slots of {format_bytes(answer['slot_bytes'])}, digest {answer['digest']}",
        "slots: " + ", ".join(f"{count} {state}" for state, count in counts.items()),
        "sealed blocks, last to be evicted first: "
        + ", ".join(f"{count} {name}" for name, count in answer["classes"].items()),
        f"\nnamespaces: {len(answer['namespaces'])}",
    ]
    for index, record in enumerate(answer["namespaces"]):
        engine = record.get("engine", record)
        use = answer["usage"][index]
        quota = f" of {use['quota']}, {use['evicted_for_quota']} evicted for it" * bool(
            use["quota"]
        )
        parts.append(f"  {index}: " + ", ".join(f"{key}={value}" for key, value in engine.items()))
        parts.append(f"     {use['used']} slots{quota}")
    parts.append("\nblocks:" if answer["blocks"] else "\nblocks: none")
    if answer["blocks"]:
        parts.append(_table(answer["blocks"]))
    requests = answer["open_requests"]
    records = answer["ledger"]
    parts.append(
        f"\nopen requests: {len(requests)} ({records['records']} records, {records['end']})"
    )
    if requests:
        parts.append(_table(requests))
    if "verify" in answer:
        found = answer["verify"]
        said = ", ".join(f"{count} {result}" for result, count in found["results"].items())
        parts.append(f"\nverified {found['sealed']} payloads: {said or 'none there'}")
        if found["bad"]:
            parts.append(_table(found["bad"]))
    return "\n".join(parts)


def _classes(arena: _core.Arena) -> dict[str, int]:
    """Sealed blocks by how long the eviction policy keeps them, its caps applied."""
    residents = [
        eviction.Resident(s.slot, s.last_used, s.namespace, s.held, s.protected, s.pinned_until > 0)
        for s in arena.scan()
        if s.state == "sealed"
    ]
    caps = eviction.Caps(*arena.caps())
    found = Counter(eviction.classes(residents, arena.slots, caps).values())
    return {name: found[name] for name in ("pinned", "open", "protected", "probation")}


def _blocks(slots: Sequence[_core.SlotInfo]) -> list[dict[str, Any]]:
    """Slots summed up by namespace, shard, epoch and state."""
    groups: dict[tuple[int, int, int, str], list[_core.SlotInfo]] = {}
    for slot in slots:
        groups.setdefault((slot.namespace, slot.shard, slot.epoch, slot.state), []).append(slot)
    return [
        {
            "namespace": key[0],
            "shard": key[1],
            "epoch": key[2],
            "state": key[3],
            "blocks": len(group),
            "held": sum(slot.held for slot in group),
            "bytes": sum(slot.payload_bytes for slot in group),
        }
        for key, group in sorted(groups.items())
    ]


def _table(rows: Sequence[dict[str, Any]]) -> str:
    return columns(list(rows[0]), [list(row.values()) for row in rows])


def path_of(given: str | None) -> Path:
    """A path if it looks like one or is one, else the arena of that name in the configured folder."""
    config = Config.load()
    if given is None:
        return Path(config.arena_path)
    if "/" in given or Path(given).exists():
        return Path(given)
    return Path(Config.load({"arena_name": given}).arena_path)


def _others(path: Path) -> str:
    """Which arenas there are beside a path that is none."""
    names = sorted(other.name for other in path.parent.glob("dynamo_gpu_ft-*.arena"))
    return f"There are: {', '.join(names)}" if names else f"There is none in {path.parent}"


def _say(json: bool, path: Path, code: str, message: str) -> None:
    if json:
        print(as_json({"path": str(path), "error": code, "message": message}))
    print(f"dynamo-gpu-ft inspect: {message}", file=sys.stderr)
