"""`explain log FILE`: a whole log as a list of faults, one for each real one, with the lines that each rests on.

Takes kernel logs of any kind (dmesg, /dev/kmsg records, journal exports) and the fabric manager's. Exit code 1 when a fault made
something unusable, 2 when the file cannot be read.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli.render import as_json
from dynamo_gpu_ft.errors import ConfigError
from dynamo_gpu_ft.health import log_lines
from dynamo_gpu_ft.health.incidents import Evidence, Incident, Unusable
from dynamo_gpu_ft.health.log_faults import Found, faults
from dynamo_gpu_ft.topology import Rank

_WIDTH = 100
_LINES = 4


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a log, - for standard input")
    parser.add_argument("--format", choices=("auto", "text", "kmsg", "journal"), default="auto", help="text: lines with any prefix or none; kmsg: records of /dev/kmsg; journal: journalctl -o export")  # fmt: skip
    parser.add_argument("--driver", default="", metavar="VERSION", help="the driver's; default: as the log tells")  # fmt: skip
    parser.add_argument("--ranks", metavar="FILE", help='ranks of the engine as JSON: [{"shard": 0, "host_pid": 4242, "device": {"bdf": "0000:9b:00"}}]')  # fmt: skip


def run(args: argparse.Namespace) -> int:
    ranks = _ranks(args.ranks) if args.ranks else ()
    core = native.load()
    source: Any = sys.stdin.buffer.read() if args.file == "-" else args.file
    try:
        records = core.parse_log(source, format=args.format)
    except core.CoreError as error:
        print(f"dynamo-gpu-ft explain log: {args.file}: {error}", file=sys.stderr)
        return 2
    found = faults(records, log_lines.reading_of, driver=args.driver, ranks=ranks)
    print(as_json(as_data(found)) if args.json else as_text(found, bool(ranks)))
    return 1 if any(i.verdict.unusable is not Unusable.NOTHING for i in found.incidents) else 0


def _ranks(path: str) -> tuple[Rank, ...]:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=tuple[Rank, ...])
    except OSError as error:
        raise ConfigError("the ranks cannot be read", where=path, value=error.strerror, remedy="a file with JSON") from None  # fmt: skip
    except msgspec.DecodeError as error:
        raise ConfigError(
            "the ranks are malformed",
            where=path,
            value=str(error),
            rule="a list of ranks as JSON",
            remedy='[{"shard": 0, "host_pid": 4242, "device": {"bdf": "0000:9b:00"}}]',
        ) from None


def as_data(found: Found) -> dict[str, Any]:
    """Plain data: an entry for each fault, and what the log was."""
    return {
        "driver": found.driver,
        "boots": found.boots,
        "timed": found.timed,
        "readings": found.readings,
        "faults": [_fault(incident) for incident in found.incidents],
    }


def _fault(incident: Incident) -> dict[str, Any]:
    verdict = incident.verdict
    return {
        "id": incident.id,
        "name": incident.name,
        "probe": incident.probe,
        "code": incident.code,
        "devices": [
            {**msgspec.to_builtins(device), "text": str(device)} for device in incident.devices
        ],
        "ranks": list(incident.shards),
        "verdict": verdict.unusable.value,
        "action": verdict.action.value,
        "lasting": verdict.lasting,
        "certain": verdict.certain,
        "reason": verdict.reason,
        "first": incident.opened,
        "last": incident.updated,
        "ended": incident.ended,
        "lines": _total(incident),
        "evidence": [
            {
                "name": f"{e.first.probe} {e.first.code}" if e.first.code is not None else e.first.probe,
                "count": e.count,
                "first": e.first.at,
                "last": e.last.at,
                "line": e.first.text,
                "number": e.first.serial,
            }
            for e in incident.evidence
        ],
    }  # fmt: skip


def as_text(found: Found, ranked: bool) -> str:
    """A paragraph for each fault, the gravest first."""
    if not found.incidents:
        return f"No fault: {found.readings} lines of {'this log' if found.readings else 'it'} concern a GPU."  # fmt: skip
    order = sorted(found.incidents, key=lambda i: (-i.verdict.unusable.severity, i.opened))
    parts = [_summary(found)]
    parts += [_paragraph(incident, ranked) for incident in order]
    if not found.timed:
        parts.append("No line has a time: that lines are neighbours stands in for it.")
    return "\n\n".join(parts)


def _summary(found: Found) -> str:
    counts = {
        unusable: sum(i.verdict.unusable is unusable for i in found.incidents)
        for unusable in reversed(Unusable)
    }
    told = ", ".join(f"{n} x {u.value}" for u, n in counts.items() if n)
    boots = f", {found.boots} boots" if found.boots > 1 else ""
    driver = f", driver {found.driver}" if found.driver else ", driver not known"
    many = "faults" if len(found.incidents) > 1 else "fault"
    return f"{len(found.incidents)} {many} in {found.readings} lines{boots}{driver}; unusable: {told}"  # fmt: skip


def _paragraph(incident: Incident, ranked: bool) -> str:
    verdict = incident.verdict
    where = ", ".join(str(device) for device in incident.devices if device.known) or "no device named"  # fmt: skip
    ranks = f", ranks {', '.join(map(str, incident.shards)) or 'none'}" if ranked else ""
    lines = [f"{incident.name} on {where}{ranks}"]
    lines += _entry("when", _when(incident))
    sure = "" if verdict.certain else " (not certain)"
    lines += _entry("unusable", f"{verdict.unusable.value}{sure}, {'until it is repaired' if verdict.lasting else 'may be over by itself'}")  # fmt: skip
    lines += _entry("action", verdict.action.value.replace("_", " "))
    lines += _entry("because", verdict.reason)
    if incident.ended:
        over = {"recovered": "the log tells its recovery", "quiet": "nothing more was printed"}
        lines += _entry("over", over.get(incident.ended, incident.ended))
    for evidence in incident.evidence[:_LINES]:
        lines.append("  | " + _line(evidence))
    rest = len(incident.evidence) - _LINES
    if rest > 0 or incident.dropped:
        lines.append(f"  | ... {max(rest, 0)} more kinds of lines, {_total(incident)} lines in all")
    return "\n".join(lines)


def _line(evidence: Evidence) -> str:
    times = f" ({evidence.count} times)" if evidence.count > 1 else ""
    text = " ".join(evidence.first.text.split()) or evidence.first.probe
    return textwrap.shorten(text, _WIDTH - len(times), placeholder=" ...") + times


def _when(incident: Incident) -> str:
    last = incident.updated - incident.opened
    for_ = f", for {last:.1f} s" if last >= 0.05 else ""
    if incident.time:
        at = datetime.datetime.fromtimestamp(incident.time, datetime.timezone.utc)
        return f"{at:%Y-%m-%d %H:%M:%S} UTC{for_}"
    return f"{incident.opened:.3f} s after boot{for_}"


def _total(incident: Incident) -> int:
    return sum(evidence.count for evidence in incident.evidence) + incident.dropped


def _entry(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"  {name:<9}", subsequent_indent=" " * 11)
