"""Incidents in NVSentinel's shape: every incident has exactly one event, which its message definition can hold."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dynamo_gpu_ft.health.incidents import Action, Evidence, Incident, Unusable, Verdict
from dynamo_gpu_ft.health.nvsentinel import EXECUTE, health_event
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.topology import Device

# Field types of message HealthEvent and the names of its enums.
FIELDS = {
    "version": int, "agent": str, "componentClass": str, "checkName": str, "isFatal": bool, "isHealthy": bool,
    "message": str, "recommendedAction": str, "errorCode": list, "entitiesImpacted": list, "metadata": dict,
    "generatedTimestamp": str, "nodeName": str, "processingStrategy": str,
}  # fmt: skip
ACTIONS = {"NONE", "COMPONENT_RESET", "CONTACT_SUPPORT", "RUN_FIELDDIAG", "RESTART_VM", "RESTART_BM", "REPLACE_VM", "RUN_DCGMEUD", "RESTART_APP", "UNKNOWN"}  # fmt: skip

devices = st.builds(
    Device,
    kind=st.sampled_from(["gpu", "switch", "node"]),
    bdf=st.sampled_from(["", "0000:9b:00"]),
    uuid=st.sampled_from(["", "GPU-1"]),
    index=st.none() | st.integers(0, 15),
    gi=st.none() | st.integers(0, 6),
)
readings = st.builds(
    Reading, at=st.floats(), source=st.sampled_from(Source), probe=st.text(max_size=8),
    state=st.sampled_from(State), text=st.text(max_size=20),
)  # fmt: skip
verdicts = st.builds(
    Verdict, unusable=st.sampled_from(Unusable), action=st.sampled_from(Action), lasting=st.booleans(),
    certain=st.booleans(), reason=st.text(max_size=2000),
)  # fmt: skip
incidents = st.builds(
    Incident, id=st.text(min_size=1, max_size=9), version=st.integers(0, 99), name=st.text(max_size=9),
    probe=st.sampled_from(["xid", "recovery_action", "nvlink5", ""]), code=st.none() | st.integers(0, 2**40),
    devices=st.lists(devices, max_size=3).map(tuple), shards=st.lists(st.integers(0, 9)).map(tuple),
    verdict=verdicts, opened=st.floats(), updated=st.floats(), time=st.floats(),
    evidence=st.lists(st.builds(Evidence, first=readings, last=readings), max_size=3).map(tuple),
    dropped=st.integers(0, 9), cleared=st.booleans(),
)  # fmt: skip


@given(incidents)
def test_every_incident_has_an_event_of_the_shape(incident: Incident) -> None:
    event = health_event(incident, "node-1")
    assert {name: type(value) for name, value in event.items()} == FIELDS
    assert event["recommendedAction"] in ACTIONS
    assert re.fullmatch(r"[A-Za-z0-9]+", event["checkName"])
    datetime.strptime(event["generatedTimestamp"], "%Y-%m-%dT%H:%M:%S.%fZ")
    assert all(isinstance(v, str) and v for v in event["metadata"].values())
    assert all(set(e) == {"entityType", "entityValue"} for e in event["entitiesImpacted"])
    assert json.loads(json.dumps(event)) == event
    assert event["isHealthy"] == incident.cleared
    assert not (event["isFatal"] and event["isHealthy"])


@given(incidents, incidents)
def test_two_incidents_or_versions_never_share_an_event(one: Incident, other: Incident) -> None:
    def named(incident: Incident) -> tuple[Any, Any]:
        found = health_event(incident)["metadata"]
        return found["incident"], found["incidentVersion"]

    assert (named(one) == named(other)) == ((one.id, one.version) == (other.id, other.version))


def incident(unusable: Unusable, action: Action, **how: Any) -> Incident:
    given_values: dict[str, Any] = {
        "id": "7-1", "version": 2, "name": "xid 79", "probe": "xid", "code": 79,
        "devices": (Device(index=3, bdf="0000:9b:00", uuid="GPU-a"),), "shards": (1,),
        "verdict": Verdict(unusable=unusable, action=action, lasting=True, reason="why"),
        "opened": 10.0, "updated": 12.5, "time": 1_700_000_000.0, "evidence": (),
    }  # fmt: skip
    return Incident(**{**given_values, **how})


def test_a_lost_gpu_is_fatal_names_its_gpu_and_asks_for_a_reboot() -> None:
    event = health_event(incident(Unusable.GPU, Action.REBOOT_NODE), "n", EXECUTE)
    assert event["isFatal"]
    assert (event["componentClass"], event["checkName"]) == ("GPU", "DynamoGpuFtXid")
    assert (event["recommendedAction"], event["errorCode"]) == ("RESTART_BM", ["79"])
    assert {"entityType": "GPU_UUID", "entityValue": "GPU-a"} in event["entitiesImpacted"]
    assert {"entityType": "GPU", "entityValue": "3"} in event["entitiesImpacted"]
    assert event["generatedTimestamp"] == "2023-11-14T22:13:22.500000Z"
    assert event["metadata"]["action"] == "reboot_node"
    assert event["processingStrategy"] == "EXECUTE_REMEDIATION"


def test_a_dead_context_does_not_take_the_node_out_of_service() -> None:
    event = health_event(incident(Unusable.CONTEXT, Action.RESTART_CONTEXT))
    assert (event["isFatal"], event["recommendedAction"]) == (False, "RESTART_APP")
    assert event["processingStrategy"] == "STORE_ONLY"


def test_what_was_cleared_is_healthy_and_asks_for_nothing() -> None:
    event = health_event(incident(Unusable.GPU, Action.RESET_GPU, cleared=True))
    assert (event["isHealthy"], event["isFatal"], event["recommendedAction"]) == (True, False, "NONE")  # fmt: skip
