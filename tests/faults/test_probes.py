"""Probes against the simulated NVML: what is told at attach, what only when it changes, and what a stuck or lost GPU costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.health.probes.base import Seen
from dynamo_gpu_ft.health.probes.memory import EccProbe
from dynamo_gpu_ft.health.readings import State
from dynamo_gpu_ft.sim.nvml.build import library
from dynamo_gpu_ft.topology import Device

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("probe_child.py")
Readings = list[dict[str, Any]]


class Machine:
    """The child with its simulated machine."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        first = self._heard()
        self.driver, self.baseline = first["driver"], first["readings"]

    def set(self, line: str) -> None:
        self._ask(f"fake {line}")

    def look(self) -> Readings:
        self.answer = self._ask("look")
        return self.answer["readings"]  # type: ignore[no-any-return]

    def support(self) -> list[dict[str, str]]:
        return self._ask("support")["support"]  # type: ignore[no-any-return]

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child ended with {self.process.wait(10)}"
        return json.loads(line)  # type: ignore[no-any-return]


@contextmanager
def machine(*script: str, deadline: float = 5.0, ends: bool = True) -> Iterator[Machine]:
    command = [sys.executable, str(CHILD), str(library()), str(deadline), *script]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    late = threading.Timer(60, process.kill)
    late.start()
    try:
        yield Machine(process)
        if ends:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(10) == 0
    finally:
        late.cancel()
        process.kill()
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


def brief(readings: Readings) -> list[tuple[str, str]]:
    return sorted((each["probe"], each["state"]) for each in readings)


def test_a_healthy_machine_has_nothing_to_tell_and_every_probe_is_supported() -> None:
    with machine("world gpus=2 profile=h100") as m:
        assert m.baseline == []
        assert m.look() == []
        assert len(m.support()) == 2
        for gpu in m.support():
            assert set(gpu) == {"recovery_action", "ecc", "rows", "nvlink", "fabric", "pcie", "throttle", "gpu_lost"}  # fmt: skip
            assert set(gpu.values()) == {""}
        assert "595" in m.driver


def test_a_card_without_links_says_what_it_does_not_have_and_complains_of_nothing() -> None:
    with machine("world gpus=1 profile=pcie") as m:
        assert m.baseline == []
        assert {name for name, why in m.support()[0].items() if why} == {"nvlink", "fabric"}
        assert "not supported" in m.support()[0]["nvlink"]
        assert m.look() == []


def test_what_was_there_already_is_told_once_as_baseline() -> None:
    script = ("world gpus=2 profile=h100", "set gpu=1 4=2 144=1 230=4 165@5=0", "set gpu=1 clocks.reasons=0x40")  # fmt: skip
    with machine(*script) as m:
        assert brief(m.baseline) == [
            ("ecc", "degraded"), ("nvlink", "degraded"), ("recovery_action", "degraded"), ("rows", "degraded"),
            ("throttle", "degraded"),
        ]  # fmt: skip
        assert all(each["baseline"] and each["device"]["index"] == 1 for each in m.baseline)
        assert all(each["device"]["uuid"].startswith("GPU-") for each in m.baseline)
        assert all(each["source"] == "nvml_counter" for each in m.baseline)
        assert m.look() == []


def test_new_uncorrectable_errors_are_told_by_how_many_they_are() -> None:
    with machine("world gpus=1 profile=h100", "set gpu=0 4=2") as m:
        m.set("set gpu=0 4=5 6=9")
        (found,) = m.look()
        assert (found["probe"], found["state"], found["baseline"]) == ("ecc", "degraded", False)
        assert found["text"].startswith("3 uncorrectable")
        assert found["facts"]["uncorrected_ever"] == "9"
        assert m.look() == []
        m.set("set gpu=0 sram.threshold=1")
        assert "threshold" in m.look()[0]["text"]
        # A reset sets the counter back: what is counted after it is new.
        m.set("set gpu=0 4=1")
        assert m.look()[0]["text"].startswith("1 uncorrectable")


def test_where_no_recovery_action_is_told_an_uncorrectable_error_fails_the_gpu() -> None:
    with machine("world gpus=1 profile=h100", "unset gpu=0 230") as m:
        assert "not supported" in m.support()[0]["recovery_action"]
        m.set("set gpu=0 4=1")
        assert brief(m.look()) == [("ecc", "failed")]


def test_few_corrected_errors_are_everyday_and_many_are_told() -> None:
    probe, gpu = EccProbe(), Device(index=0)
    before = Seen(at=10.0, values={"corrected": 5})
    few = Seen(at=12.0, values={"corrected": 24})
    assert probe.judge(gpu, before, few) == []
    (many,) = probe.judge(gpu, before, Seen(at=12.0, values={"corrected": 25}))
    assert (many.probe, many.state, many.facts["corrected"]) == ("ecc", State.DEGRADED, "25")
    assert probe.judge(gpu, None, Seen(at=12.0, values={"corrected": 10**9})) == []


def test_a_row_that_waits_is_degraded_one_that_failed_is_failed_and_a_reset_heals() -> None:
    with machine("world gpus=1 profile=h100") as m:
        for line, state in (("144=1", "degraded"), ("145=1", "failed"), ("144=0 145=0", "healthy"), ("repair.channel=1", "degraded")):  # fmt: skip
            m.set(f"set gpu=0 {line}")
            assert brief(m.look()) == [("rows", state)], line


def test_a_link_that_goes_down_is_named_and_so_is_its_return() -> None:
    with machine("world gpus=2 profile=h100") as m:
        m.set("set gpu=1 165@7=0")
        (down,) = m.look()
        assert (down["probe"], down["state"], down["facts"]["link"]) == ("nvlink", "failed", "7")
        assert down["device"]["index"] == 1
        assert m.look() == []
        m.set("set gpu=1 165@7=1")
        (up,) = m.look()
        assert (up["state"], up["facts"]["link"]) == ("healthy", "7")


@pytest.mark.parametrize(
    ("profile", "field", "few", "many", "name", "state"),
    [
        ("h100", 161, 5, 500, "replay", "degraded"),
        ("h100", 162, 1, 9, "recovery", "degraded"),
        ("h100", 163, 5, 500, "crc", "degraded"),
        ("b200", 208, 5, 500, "receive", "degraded"),
        ("b200", 211, 1, 99, "integrity", "degraded"),
        ("b200", 213, 1, 9, "recovered", "degraded"),
        ("b200", 214, 0, 1, "recovery_failed", "failed"),
    ],
)
def test_errors_of_a_link_count_over_a_window_on_old_and_on_new_devices(
    profile: str, field: int, few: int, many: int, name: str, state: str
) -> None:
    with machine(f"world gpus=1 profile={profile}", f"set gpu=0 {field}@3=1000") as m:
        assert m.baseline == []
        m.set(f"set gpu=0 {field}@3={1000 + few}")
        assert m.look() == []
        # In several steps, none of which is too many by itself.
        for step in range(1, 6):
            m.set(f"set gpu=0 {field}@3={1000 + few + many * step // 5}")
            found = m.look()
            if found:
                break
        (one,) = found
        assert (one["probe"], one["state"], one["facts"]["link"]) == ("nvlink", state, "3")
        assert name in one["text"]
        assert int(one["facts"][name]) >= 1
        assert m.look() == []


def test_the_fabrics_registration_and_health_are_levels() -> None:
    with machine("world gpus=1 profile=h100", "set gpu=0 fabric.state=2") as m:
        assert brief(m.baseline) == [("fabric", "degraded")]
        for line, state, words in (
            ("fabric.state=3", "healthy", "registered"),
            ("fabric.health_mask=0x1a9", "degraded", "bandwidth"),
            ("fabric.health_mask=0x19a", "failed", "route is unhealthy"),
            ("fabric.health_mask=0x4aa", "failed", "no partition"),
            ("fabric.health_mask=0x1001aa", "unknown", "bits without a meaning"),
            ("fabric.health_mask=0x81aa", "degraded", "fabric manager is disconnected"),
            ("fabric.health_mask=0x1aa fabric.health_summary=2", "failed", "unhealthy in sum"),
            ("fabric.health_summary=1 fabric.status=999", "failed", "NVML code 999"),
            ("fabric.status=0", "healthy", "registered"),
            ("fabric.state=1", "failed", "registered no more"),
            ("fabric.state=9", "failed", "registered no more"),
        ):
            m.set(f"set gpu=0 {line}")
            found = m.look()
            if line == "fabric.state=9":
                assert found[0]["state"] == "unknown"
                continue
            assert brief(found) == [("fabric", state)], line
            assert words in found[0]["text"]


def test_a_narrow_pcie_link_and_its_errors_are_told() -> None:
    with machine("world gpus=1 profile=pcie", "set gpu=0 180=0 pcie.width=8") as m:
        assert brief(m.baseline) == [("pcie", "degraded")]
        assert m.look() == []
        m.set("set gpu=0 pcie.width=16")
        assert brief(m.look()) == [("pcie", "healthy")]
        m.set("set gpu=0 94=100000")
        assert brief(m.look()) == [("pcie", "degraded")]
        m.set("set gpu=0 180=1")
        (fatal,) = m.look()
        assert (fatal["state"], "fatal" in fatal["text"]) == ("failed", True)
        m.set("set gpu=0 pcie.width=0")  # a device that sleeps says nonsense
        assert m.look() == []


def test_slowing_down_is_told_and_a_power_cap_is_everyday() -> None:
    with machine("world gpus=1 profile=h100") as m:
        m.set("set gpu=0 clocks.reasons=0x5")
        assert m.look() == []
        m.set("set gpu=0 clocks.reasons=0x84")
        assert "power brake" in m.look()[0]["text"]
        m.set("set gpu=0 clocks.reasons=0x1")
        assert brief(m.look()) == [("throttle", "healthy")]


@pytest.mark.parametrize(
    ("action", "state"),
    [(1, "failed"), (2, "failed"), (3, "failed"), (4, "degraded"), (5, "failed"), (6, "failed"), (7, "failed"), (8, "failed"), (4_000_000_000, "failed")],
)  # fmt: skip
def test_every_recovery_action_is_told_with_its_code_and_one_that_nobody_knows_is_no_good_sign(
    action: int, state: str
) -> None:
    with machine("world gpus=1 profile=b200") as m:
        m.set(f"recovery gpu=0 action={action}")
        (found,) = m.look()
        assert (found["probe"], found["state"], found["code"]) == ("recovery_action", state, action)
        m.set("recovery gpu=0 action=0")
        (over,) = m.look()
        assert (over["state"], over["code"]) == ("healthy", 0)


def test_a_lost_gpu_is_one_reading_and_the_others_are_served() -> None:
    with machine("world gpus=3 profile=h100") as m:
        m.set("lost gpu=1")
        m.set("set gpu=2 144=1")
        found = m.look()
        assert brief(found) == [("gpu_lost", "failed"), ("rows", "degraded")]
        lost = next(each for each in found if each["probe"] == "gpu_lost")
        assert (lost["code"], lost["device"]["index"]) == (15, 1)
        assert m.look() == []
        m.set("found gpu=1")
        assert brief(m.look()) == [("gpu_lost", "healthy")]
        m.set("return gpu=0 call=fields code=16")
        (reset,) = m.look()
        assert (reset["probe"], reset["code"], reset["text"]) == ("gpu_lost", 16, "the GPU must be reset")  # fmt: skip


def test_a_driver_that_refuses_a_call_is_unknown_once_and_never_healthy() -> None:
    with machine("world gpus=1 profile=h100", "set gpu=0 144=1") as m:
        m.set("return gpu=0 call=nvmlDeviceGetRemappedRows code=999")
        (found,) = m.look()
        assert (found["probe"], found["state"]) == ("rows", "unknown")
        assert "999" in found["text"]
        assert m.look() == []
        m.set("release")
        m.set("return gpu=0 call=nvmlDeviceGetRemappedRows code=3")
        assert brief(m.look()) == [("rows", "unknown")]  # not supported all at once is no good sign
        m.set("release")
        m.set("set gpu=0 144=0")
        assert brief(m.look()) == [("rows", "healthy")]


def test_counters_that_could_not_be_read_for_a_while_lose_nothing() -> None:
    with machine("world gpus=1 profile=h100", "set gpu=0 4=1") as m:
        m.set("return gpu=0 call=field:4 code=999")
        assert brief(m.look()) == [("ecc", "unknown")]
        m.set("set gpu=0 4=3")
        assert m.look() == []
        m.set("release")
        assert m.look()[0]["text"].startswith("2 uncorrectable")


def test_what_cannot_be_read_at_attach_is_unknown() -> None:
    with machine("world gpus=1 profile=h100", "return gpu=0 call=nvmlDeviceGetGpuFabricInfoV code=999") as m:  # fmt: skip
        assert brief(m.baseline) == [("fabric", "unknown")]
        assert "999" in m.support()[0]["fabric"]


def test_a_driver_without_the_newer_functions_is_asked_for_what_it_has() -> None:
    script = ("world gpus=1 profile=h100", "return call=nvmlDeviceGetRepairStatus code=13", "return call=nvmlDeviceGetSramEccErrorStatus code=25", "return call=nvmlDeviceGetCurrentClocksEventReasons code=13", "unset gpu=0 161 162 163 91 230")  # fmt: skip
    with machine(*script) as m:
        assert m.baseline == []
        assert {name for name, why in m.support()[0].items() if why} == {"recovery_action"}
        m.set("set gpu=0 145=1 clocks.reasons=0x40")
        assert brief(m.look()) == [("rows", "failed"), ("throttle", "degraded")]


def test_a_call_that_does_not_return_costs_its_gpu_alone_and_is_told_in_time_and_once() -> None:
    with machine("world gpus=3 profile=h100", deadline=0.5) as m:
        m.set("wedge gpu=1 call=nvmlDeviceGetRemappedRows")
        m.set("set gpu=2 144=1")
        found = m.look()
        assert m.answer["took"] < 0.5 + 0.2
        assert brief(found) == [("driver", "failed"), ("rows", "degraded")]
        stuck = next(each for each in found if each["probe"] == "driver")
        assert stuck["device"]["index"] == 1
        assert "driver_unresponsive" in stuck["text"]
        assert stuck["facts"]["call"] == "nvmlDeviceGetRemappedRows"
        m.set("set gpu=0 144=1")
        assert [each["device"]["index"] for each in m.look()] == [0]
        assert m.answer["took"] < 0.3  # the stuck GPU is waited for no more
        m.set("release")
        m.set("set gpu=1 144=1")
        assert m.look() == []  # and asked nothing more, even when the call came back


def test_a_process_with_a_stuck_call_ends_when_it_wants_to() -> None:
    with machine("world gpus=2 profile=h100", deadline=0.3, ends=False) as m:
        m.set("wedge gpu=0 call=fields")
        assert ("driver", "failed") in brief(m.look())
        m._ask("close")
        began = time.monotonic()
        assert m.process.stdin is not None
        m.process.stdin.close()
        assert m.process.wait(10) == 0
        assert time.monotonic() - began < 3


def test_a_gpu_that_is_stuck_at_attach_is_told_and_the_others_have_their_baseline() -> None:
    script = ("world gpus=2 profile=h100", "set gpu=1 144=1", "wedge gpu=0 call=nvmlDeviceGetUUID")
    with machine(*script, deadline=0.3, ends=False) as m:
        assert brief(m.baseline) == [("driver", "failed"), ("rows", "degraded")]
        m.process.kill()


def test_an_nvml_that_does_not_open_is_refused_with_a_remedy() -> None:
    for line, words in (("return call=nvmlInitWithFlags code=9", "NVML code 9"), ("wedge call=nvmlInitWithFlags", "no answer in time")):  # fmt: skip
        command = [sys.executable, str(CHILD), str(library()), "0.3", line]
        answer = subprocess.run(
            command, input="", capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert answer.returncode == 1
        assert "NotProtected" in answer.stderr
        assert words in answer.stderr
