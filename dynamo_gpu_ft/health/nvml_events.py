"""What the native NVML watcher tells, as readings: events, recovery actions, lost and silent GPUs. Pure: record in, reading out.

The watching is native (csrc/watch/nvml_watcher.h); what a reading means is decided later, by the catalogue and by fusion.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.topology import Device

#: NVML's event bits by the names of its reference.
EVENT_NAMES = {
    0x1: "single bit ECC error",
    0x2: "double bit ECC error",
    0x4: "performance state change",
    0x8: "XID",
    0x10: "clock change",
    0x80: "power source change",
    0x100: "MIG configuration change",
    0x200: "single bit ECC error storm",
    0x400: "DRAM retirement",
    0x800: "DRAM retirement failure",
    0x1000: "non-fatal poison error",
    0x2000: "fatal poison error",
    0x4000: "GPU unavailable",
    0x8000: "GPU recovery action",
}
_FATAL = 0x2 | 0x800 | 0x2000 | 0x4000
_HARMLESS = 0x4 | 0x10 | 0x80 | 0x100
RECOVERY_ACTIONS = (
    "none", "reset the GPU", "reboot the node", "drain peer to peer", "drain and reset", "recover the IMEX domain", "reset the bus",
    "reboot the system",
)  # fmt: skip
SOURCES = ("nvml_event", "nvml_poll", "queue")


def event_names(bits: int) -> list[str]:
    """The names of all bits of a mask, lowest first; a bit without one as its number."""
    each = (1 << place for place in range(bits.bit_length()))
    return [EVENT_NAMES.get(bit, f"event {bit:#x}") for bit in each if bits & bit]


def reading_of(record: Any, clock: Callable[[], float] = time.time) -> Reading:
    """A `WatchRecord` of one of `SOURCES` as a reading; _watch.pyi says what the watcher tells.

    XIDs have probe "xid" and state FAILED whatever their code: only the catalogue knows which are harmless. A GPU that does not answer
    has probe "driver", the driver as a whole the same with a device of kind "node". Other return codes of NVML say nothing about a
    device and are UNKNOWN, as are lost records (probe "log").
    """
    facts = dict(record.facts)
    probe, state, code, text = _meaning(record, facts)
    named = record.index >= 0 or record.bdf or record.uuid
    return Reading(
        at=record.at_ns / 1e9,
        time=clock(),
        source=Source.NVML_POLL if record.source == "nvml_poll" else Source.NVML_EVENT,
        probe=probe,
        state=state,
        device=Device(
            kind="gpu" if named else "node",
            bdf=record.bdf,
            uuid=record.uuid,
            index=_known(record.index),
            gi=_known(record.gi),
            ci=_known(record.ci),
        ),
        code=code,
        text=text,
        facts={name: value for name, value in facts.items() if name != "baseline"},
        baseline="baseline" in facts,
    )


def _meaning(record: Any, facts: dict[str, str]) -> tuple[str, State, int | None, str]:
    """Probe, state, code and text. Adds to `facts` what the probe's readers look for."""
    what, code, text = record.what, record.code, record.text
    if what == "xid":
        return "xid", State.FAILED, code, text
    if what == "event":
        return "event", _event_state(code), code, ", ".join(event_names(code))
    if what == "recovery_action":
        known = 0 <= code < len(RECOVERY_ACTIONS)
        text = RECOVERY_ACTIONS[code] if known else f"recovery action {code}"
        return "recovery_action", State.FAILED if code else State.HEALTHY, code, text
    if what == "gpu_lost":
        return "gpu_lost", State.FAILED if code else State.HEALTHY, code, text
    if what == "unresponsive":
        facts["detail"] = text
        return "driver", State.FAILED, None, "driver_unresponsive"
    if what in ("driver_bind", "driver_unbind"):
        facts["event"] = what.removeprefix("driver_")
        bound = what == "driver_bind"
        return "driver", State.HEALTHY if bound else State.UNKNOWN, None, what.replace("_", " ")
    if what == "overflow":
        facts["lost"] = str(record.count)
        return "log", State.UNKNOWN, None, f"{record.count} records were lost: nobody took them"
    if what == "error":
        facts["return"] = str(code)
    return "driver", State.UNKNOWN, None, text or what


def _event_state(bits: int) -> State:
    if bits & _FATAL:
        return State.FAILED
    return State.HEALTHY if bits & _HARMLESS else State.DEGRADED


def _known(number: int) -> int | None:
    return number if number >= 0 else None
