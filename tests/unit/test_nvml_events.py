"""What the NVML watcher's records become as readings, and what fusion makes of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dynamo_gpu_ft.health.fusion import Fusion
from dynamo_gpu_ft.health.incidents import Unusable
from dynamo_gpu_ft.health.nvml_events import EVENT_NAMES, event_names, reading_of
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.topology import Device

BDF, UUID = "0000:9b:00", "GPU-1"


def record(what: str, **more: Any) -> Any:
    plain: dict[str, Any] = {
        "source": "nvml_event", "what": what, "at_ns": 12_500_000_000, "last_ns": 12_500_000_000, "count": 1, "serial": 0, "index": 3,
        "code": -1, "gi": -1, "ci": -1, "pid": -1, "bdf": BDF, "uuid": UUID, "text": "", "facts": {},
    }  # fmt: skip
    return SimpleNamespace(**(plain | more))


def read(what: str, **more: Any) -> Reading:
    return reading_of(record(what, **more), clock=lambda: 1700.0)


def test_an_xid_is_a_failure_until_the_catalogue_says_otherwise() -> None:
    reading = read("xid", code=79, gi=5, ci=0)
    assert (reading.probe, reading.state, reading.code) == ("xid", State.FAILED, 79)
    assert reading.source is Source.NVML_EVENT
    assert reading.device == Device(bdf=BDF, uuid=UUID, index=3, gi=5, ci=0)
    assert (reading.at, reading.time, reading.baseline) == (12.5, 1700.0, False)


@pytest.mark.parametrize(
    ("bit", "state"),
    [(0x1, State.DEGRADED), (0x2, State.FAILED), (0x200, State.DEGRADED), (0x800, State.FAILED), (0x2000, State.FAILED),
     (0x4000, State.FAILED), (0x8000, State.DEGRADED), (0x100, State.HEALTHY)],
)  # fmt: skip
def test_an_event_is_told_by_its_name(bit: int, state: State) -> None:
    reading = read("event", code=bit, facts={"data": "79"})
    assert (reading.probe, reading.code, reading.text) == ("event", bit, EVENT_NAMES[bit])
    assert reading.state is state
    assert reading.facts == {"data": "79"}


def test_names_of_a_mask_come_lowest_first_and_unknown_bits_as_numbers() -> None:
    assert event_names(0x8 | 0x2 | 0x100000) == ["double bit ECC error", "XID", "event 0x100000"]
    assert event_names(0) == []


@pytest.mark.parametrize(("action", "state", "text"), [(0, State.HEALTHY, "none"), (1, State.FAILED, "reset the GPU"), (9, State.FAILED, "recovery action 9")])  # fmt: skip
def test_a_recovery_action_is_a_failure_and_its_end_is_health(
    action: int, state: State, text: str
) -> None:
    reading = read("recovery_action", source="nvml_poll", code=action, facts={"baseline": "1"})
    assert (reading.probe, reading.code, reading.state, reading.text) == (
        "recovery_action",
        action,
        state,
        text,
    )
    assert reading.source is Source.NVML_POLL
    assert reading.baseline
    assert "baseline" not in reading.facts


@pytest.mark.parametrize(
    ("code", "state"), [(15, State.FAILED), (16, State.FAILED), (0, State.HEALTHY)]
)
def test_a_lost_gpu_and_its_return(code: int, state: State) -> None:
    reading = read("gpu_lost", source="nvml_poll", code=code)
    assert (reading.probe, reading.code, reading.state) == ("gpu_lost", code, state)


def test_a_gpu_that_does_not_answer_and_a_driver_that_does_not() -> None:
    facts = {"call": "nvmlDeviceGetFieldValues"}
    reading = read("unresponsive", text="has not returned", facts=facts)
    assert (reading.probe, reading.state, reading.code) == ("driver", State.FAILED, None)
    assert reading.text == "driver_unresponsive"
    assert reading.facts == {"call": "nvmlDeviceGetFieldValues", "detail": "has not returned"}
    assert reading.device.kind == "gpu"
    whole = read("unresponsive", index=-1, bdf="", uuid="", facts=facts)
    assert whole.device == Device(kind="node")


def test_what_says_nothing_about_a_device_is_unknown() -> None:
    for reading in (
        read("error", code=999, text="Unknown Error (999)"),
        read("error", code=0),
        read("driver_unbind", code=1),
        read("something new"),
    ):
        assert (reading.probe, reading.state) == ("driver", State.UNKNOWN)
    assert read("error", code=17).facts == {"return": "17"}
    bound = read("driver_bind", code=2)
    assert (bound.state, bound.facts) == (State.HEALTHY, {"event": "bind"})


def test_lost_records_are_told_as_lost() -> None:
    reading = read("overflow", source="queue", count=17, index=-1, bdf="", uuid="")
    assert (reading.probe, reading.state, reading.facts) == ("log", State.UNKNOWN, {"lost": "17"})
    assert "17 records" in reading.text


@pytest.mark.parametrize(
    ("told", "unusable"),
    [
        (read("xid", code=79), Unusable.GPU),
        (read("xid", code=999), Unusable.CONTEXT),
        (read("xid", code=13), Unusable.CONTEXT),
        (read("event", code=0x4000), Unusable.GPU),
        (read("gpu_lost", source="nvml_poll", code=15), Unusable.GPU),
        (read("unresponsive"), Unusable.GPU),
    ],
)  # fmt: skip
def test_fusion_takes_each_for_what_it_is(told: Reading, unusable: Unusable) -> None:
    fusion = Fusion(driver="595.45.04")
    incidents = fusion.add(told) + fusion.tick(told.at + 30.0)
    assert [incident.verdict.unusable for incident in incidents][-1] is unusable
