"""An incident in the shape of NVSentinel's HealthEvent: one event per version of an incident, as a plain dict in protobuf's JSON form.

Last stop on the way out, for whoever forwards events to a cluster's NVSentinel (message HealthEvent of its data model, service
PlatformConnector). Pure and total; what the shape has no field for is in `metadata`, so nothing of the verdict is lost.
"""

from __future__ import annotations

import math
import os
from datetime import datetime, timezone
from typing import Any

from dynamo_gpu_ft.health.incidents import Action, Incident, Unusable
from dynamo_gpu_ft.topology import Device

AGENT = "dynamo-gpu-ft"
STORE_ONLY, EXECUTE = "STORE_ONLY", "EXECUTE_REMEDIATION"
# Names of the enum RecommendedAction. Reset covers GPU and switch alike: the entities say what.
_ACTIONS = {
    Action.NONE: "NONE",
    Action.REPORT: "NONE",
    Action.RESTART_CONTEXT: "RESTART_APP",
    Action.REBUILD_GROUP: "RESTART_APP",
    Action.DRAIN_AND_RESET_GPU: "COMPONENT_RESET",
    Action.RESET_GPU: "COMPONENT_RESET",
    Action.RESET_FABRIC: "COMPONENT_RESET",
    Action.REBOOT_NODE: "RESTART_BM",
}
_COMPONENTS = {"gpu": "GPU", "switch": "NVSwitch", "node": "Node"}
_TEXT = 1024
_LAST_SECOND = 253402300799.0  # the end of the year 9999, where timestamps of the shape end


def health_event(
    incident: Incident, node_name: str | None = None, strategy: str = STORE_ONLY
) -> dict[str, Any]:
    """The event of this version of an incident.

    node_name  the Kubernetes node's name; this machine's own when None
    strategy   STORE_ONLY: observe; EXECUTE: let the cluster drain and repair the node
    A fault that only concerns one context is not fatal: NVSentinel would take the whole node out of service for it.
    """
    judged = incident.verdict
    kind = incident.devices[0].kind if incident.devices else "node"
    return {
        "version": 1,
        "agent": AGENT,
        "componentClass": _COMPONENTS.get(kind, "GPU"),
        "checkName": "DynamoGpuFt" + "".join(part.capitalize() for part in incident.probe.split("_")),
        "isFatal": not incident.cleared and judged.unusable.severity >= Unusable.LINK.severity,
        "isHealthy": incident.cleared,
        "message": f"{incident.name}: {judged.reason}"[:_TEXT],
        "recommendedAction": "NONE" if incident.cleared else _ACTIONS[judged.action],
        "errorCode": [incident.name if incident.code is None else str(incident.code)],
        "entitiesImpacted": [entity for device in incident.devices for entity in _entities(device)],
        "metadata": _metadata(incident),
        "generatedTimestamp": _timestamp(incident.time + incident.updated - incident.opened),
        "nodeName": os.uname().nodename if node_name is None else node_name,
        "processingStrategy": strategy,
    }  # fmt: skip


def _entities(device: Device) -> list[dict[str, str]]:
    named = {
        "GPU" if device.kind == "gpu" else "NVSWITCH": "" if device.index is None else str(device.index),
        "PCI": device.bdf,
        "GPU_UUID": device.uuid,
        "GPU_INSTANCE": "" if device.gi is None else str(device.gi),
        "COMPUTE_INSTANCE": "" if device.ci is None else str(device.ci),
    }  # fmt: skip
    return [{"entityType": kind, "entityValue": value} for kind, value in named.items() if value]


def _metadata(incident: Incident) -> dict[str, str]:
    judged = incident.verdict
    sources = sorted({e.last.source.value for e in incident.evidence} | {e.first.source.value for e in incident.evidence})  # fmt: skip
    found = {
        "incident": incident.id,
        "incidentVersion": str(incident.version),
        "name": incident.name,
        "probe": incident.probe,
        "unusable": judged.unusable.value,
        "action": judged.action.value,
        "lasting": _word(judged.lasting),
        "certain": _word(judged.certain),
        "shards": ",".join(map(str, incident.shards)),
        "sources": ",".join(sources),
        "readings": str(sum(e.count for e in incident.evidence) + incident.dropped),
        "firstText": incident.evidence[0].first.text[:_TEXT] if incident.evidence else "",
    }
    return {name: value for name, value in found.items() if value}


def _word(value: bool) -> str:
    return "true" if value else "false"


def _timestamp(seconds: float) -> str:
    """RFC 3339 in UTC, as protobuf writes it; a time that cannot be is the nearest that can."""
    if math.isnan(seconds):
        seconds = 0.0
    whole = datetime.fromtimestamp(min(max(seconds, 0.0), _LAST_SECOND), timezone.utc)
    return whole.strftime("%Y-%m-%dT%H:%M:%S.") + f"{whole.microsecond:06d}Z"
