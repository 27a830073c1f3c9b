"""What the kernel log, the driver's tracepoints and the fabric manager's log tell, as readings. Pure: record in, reading out.

The lines are read and folded natively (csrc/watch/line.h lists them); what a reading means is decided later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dynamo_gpu_ft.health.attribution import MONITORS
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.topology import Device, bdf_of

#: Sources of records that `reading_of` takes.
SOURCES = {
    "kernel_log": Source.KERNEL_LOG,
    "tracepoint": Source.TRACEPOINT,
    "fabric_log": Source.FABRIC_LOG,
}
RESET_REQUIRED = 16  # NVML's code for what the driver's assertion says
UNKNOWN_XID = 999  # NVML's code for an XID that cannot be named

# Kinds of lines without a code of their own: probe, state, kind of device.
_KINDS = {
    "fallen_off_bus": ("gpu_lost", State.FAILED, "gpu"),
    "reset_required": ("gpu_lost", State.FAILED, "gpu"),
    "gsp_timeout": ("driver", State.FAILED, "gpu"),
    "gsp_rate_limited": ("driver", State.DEGRADED, "gpu"),
    "link_mask_failed": ("nvlink", State.DEGRADED, "gpu"),
    "driver_loaded": ("driver", State.HEALTHY, "node"),
    "peermem_invalid_context": ("peermem", State.DEGRADED, "gpu"),
    "segfault": ("crash", State.DEGRADED, "gpu"),
    "hung_task": ("hung_task", State.DEGRADED, "gpu"),
    "fabric_handle": ("fabric", State.DEGRADED, "node"),
    "fabric_topology": ("fabric", State.FAILED, "node"),
    "fabric_healthy": ("fabric", State.HEALTHY, "node"),
    # Names and nothing about health.
    "gpu_uuid": ("name", State.UNKNOWN, "gpu"),
    "board_serial": ("name", State.UNKNOWN, "gpu"),
}


def reading_of(record: Any, clock: Callable[[], float] = time.time) -> Reading | None:
    """A `WatchRecord` of one of `SOURCES` as a reading; None for a line that only adds details to another.

    Faults with a code have state FAILED whatever it is: only the catalogue knows which are harmless. `at` is when a folded record
    was seen last, and `count` how often; both on the log's own clock where a whole log was read (`parse_log`).
    The process that a line names keeps its host number; a monitor's is marked by the fact "monitor", because the driver names
    whoever asked when a fault was found.
    """
    facts = dict(record.facts)
    baseline = facts.pop("baseline", "") == "1"
    written_by = facts.pop("clock", "")
    at = (record.last_ns if record.count > 1 else record.at_ns) / 1e9
    known = _coded(record, facts) if record.code >= 0 else _other(record, facts)
    if known is None:
        return None
    probe, state, kind, code = known
    if "link" in facts:
        facts["link"] = _plain(facts["link"])
    if facts.get("process", "").lower().startswith(MONITORS):
        facts["monitor"] = "1"
    pid = record.pid if record.pid > 0 else None
    return Reading(
        at=at,
        time=at if written_by == "wall" else 0.0 if written_by == "boot" else clock(),
        source=SOURCES.get(record.source, Source.KERNEL_LOG),
        probe=probe,
        state=state,
        device=Device(
            kind=kind,
            bdf=bdf_of(record.bdf),
            uuid=record.uuid,
            gi=record.gi if record.gi >= 0 else None,
            ci=record.ci if record.ci >= 0 else None,
        ),
        code=code,
        text=record.text,
        facts=facts,
        pid=pid,
        pid_space="" if pid is None else "host",
        serial=str(record.serial) if record.serial else "",
        count=record.count,
        baseline=baseline,
    )


_Known = tuple[str, State, str, "int | None"]


def _coded(record: Any, facts: dict[str, str]) -> _Known | None:
    if record.what in ("sxid", "fabric_sxid"):
        return "sxid", State.FAILED, "switch", record.code
    if record.what != "xid":
        return None
    if "cut" in facts and record.text.endswith(str(record.code)):
        # The line ends in its number, of which more may have followed: 7 of 79.
        facts["cut_code"] = str(record.code)
        return "xid", State.FAILED, "gpu", UNKNOWN_XID
    over = record.code == 154 and _number(facts.get("new_action", "")) == 0
    return "xid", State.HEALTHY if over else State.FAILED, "gpu", record.code


def _other(record: Any, facts: dict[str, str]) -> _Known | None:
    if record.what == "gap":
        facts["lost"] = str(record.count)
        return "log", State.UNKNOWN, "node", None
    if record.what not in _KINDS:
        return None
    probe, state, kind = _KINDS[record.what]
    facts["kind"] = record.what
    if record.what == "driver_loaded":
        facts["event"] = "loaded"
    return probe, state, kind, RESET_REQUIRED if record.what == "reset_required" else None


def _plain(number: str) -> str:
    """ "08" as NVML counts links: "8"; "-1" stays, what is no number too."""
    return str(int(number)) if number.isascii() and number.lstrip("-").isdigit() else number


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None
