"""The state of health as plain data: what the HTTP endpoint answers, and the event that an incident is for log and journal.

Pure; the last stop before JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dynamo_gpu_ft.events import IncidentEvent
from dynamo_gpu_ft.health.fusion import Snapshot
from dynamo_gpu_ft.health.incidents import Incident, Unusable


def event_of(incident: Incident) -> IncidentEvent:
    """An incident for the stream of events."""
    sources = sorted({e.first.source.value for e in incident.evidence})
    return IncidentEvent(
        time=incident.time,
        incident=incident.id,
        version=incident.version,
        name=incident.name,
        devices=tuple(str(device) for device in incident.devices if device.known),
        shards=incident.shards,
        unusable=incident.verdict.unusable.value,
        action=incident.verdict.action.value,
        reason=incident.verdict.reason,
        sources=tuple(sources),
        certain=incident.verdict.certain,
        cleared=incident.cleared,
        ended=incident.ended,
    )


def concerns_us(incident: Incident, ranks_known: bool) -> bool:
    """Whether an open incident makes something unusable that this engine uses, as far as that is known."""
    if incident.cleared or incident.verdict.unusable is Unusable.NOTHING:
        return False
    everything = incident.verdict.unusable is Unusable.NODE
    return bool(incident.shards) or everything or not ranks_known


def state(
    open_incidents: Sequence[Incident],
    snapshot: Snapshot,
    sources: Mapping[str, str],
    *,
    ranks_known: bool,
    running: bool,
    heartbeat: Any = None,
) -> tuple[bool, dict[str, Any]]:
    """Whether everything of ours is usable, and the whole state as plain data.

    sources    name -> "" or why it is not available
    heartbeat  whatever the process knows of its steps, as plain data
    """
    usable = not any(concerns_us(incident, ranks_known) for incident in open_incidents)
    worst = max(
        (incident.verdict.unusable for incident in open_incidents),
        key=lambda unusable: unusable.severity,
        default=Unusable.NOTHING,
    )
    counts = {
        kind: getattr(snapshot, kind)
        for kind in ("readings", "nothing", "unknown", "twice", "lost", "forgotten", "mended")
    }
    return usable, {
        "usable": usable,
        "watching": running,
        "worst": worst.value,
        "devices": [_plain(device) for device in snapshot.devices],
        "states": [
            {
                "device": _plain(reading.device),
                "probe": reading.probe,
                "state": reading.state.value,
                "code": reading.code,
                "text": reading.text,
                "baseline": reading.baseline,
            }
            for reading in snapshot.states
        ],
        "incidents": [_plain(incident) for incident in open_incidents],
        "sources": {
            name: {"active": not why, "reason": why} for name, why in sorted(sources.items())
        },
        "heartbeat": heartbeat,
        "counts": counts,
    }


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)
