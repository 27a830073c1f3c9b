"""Lines of a log as readings: what they are about, whose process they name, and what fusion makes of a whole log."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from dynamo_gpu_ft import native
from dynamo_gpu_ft.health.fusion import Fusion
from dynamo_gpu_ft.health.incidents import Incident, Unusable
from dynamo_gpu_ft.health.log_lines import UNKNOWN_XID, reading_of
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.topology import Device, Rank

core = native.load()
UUID = "GPU-5a3c1b7e-0d42-9f11-8c66-2b90aa71fe03"


def read(line: str) -> Reading:
    reading = reading_of(core.parse_line(line.encode()), lambda: 123.0)
    assert reading is not None
    return reading


def incidents(log: str, **how: Any) -> list[Incident]:
    fusion = Fusion(driver="595.45.04", booted=None, **how)
    readings = [reading_of(record) for record in core.parse_log(log.encode())]
    told = fusion.add_all(reading for reading in readings if reading is not None)
    told += fusion.tick(max(reading.at for reading in readings if reading is not None) + 2)
    return list({incident.id: incident for incident in told}.values())


def test_an_xid_is_a_reading_with_all_its_names() -> None:
    reading = read(
        "[12.5] NVRM: Xid (PCI:0000:4F:00 GPU-I:05 GPU-CI:00): 43, pid=77, name=train, Ch 00000003"
    )
    assert reading.probe == "xid"
    assert (reading.code, reading.state, reading.source) == (43, State.FAILED, Source.KERNEL_LOG)
    assert reading.device == Device(bdf="0000:4f:00", gi=5, ci=0)
    assert (reading.pid, reading.pid_space) == (77, "host")
    assert reading.facts["process"] == "train"
    assert "monitor" not in reading.facts
    assert (reading.at, reading.time, reading.baseline) == (12.5, 0.0, False)


def test_time_is_the_logs_own_on_the_wall_the_callers_without_one() -> None:
    assert read("2024-07-23T07:53:55Z h kernel: NVRM: Xid (PCI:0000:4f:00): 43").time == 1721721235
    assert read("NVRM: Xid (PCI:0000:4f:00): 43").time == 123.0


@pytest.mark.parametrize(
    "name", ["nvidia-smi", "nv-hostengine", "gpud", "dcgm-exporter", "cache_mgr_main", "dcgmi"]
)
def test_a_monitors_process_is_marked_and_convicts_nobody(name: str) -> None:
    line = f"NVRM: Xid (PCI:0000:4f:00): 43, pid=77, name={name}, Ch 00000003"
    assert read(line).facts["monitor"] == "1"
    ranks = (Rank(shard=0, pid=1, device=Device(bdf="0000:4f:00")),)
    for found in incidents(f"[20000.0] {line}\n", ranks=ranks):
        assert found.shards == ()


def test_the_named_process_is_the_one_that_is_hit() -> None:
    device = Device(bdf="0000:4f:00")
    ranks = tuple(Rank(shard=n, pid=n + 1, host_pid=70 + n, device=device) for n in range(3))
    line = "[20000.0] NVRM: Xid (PCI:0000:4f:00): 43, pid=71, name=VLLM::Worker_TP, Ch 00000003\n"
    (found,) = incidents(line, ranks=ranks)
    assert (found.shards, found.verdict.unusable) == ((1,), Unusable.CONTEXT)


def test_a_recovery_action_that_is_over_is_healthy() -> None:
    line = "NVRM: Xid (PCI:0000:9b:00): 154, GPU recovery action changed from {} to {}"
    assert read(line.format("0x0 (None)", "0x1 (GPU Reset Required)")).state is State.FAILED
    over = read(line.format("0x1 (GPU Reset Required)", "0x0 (None)"))
    assert (over.state, over.facts["new_action"]) == (State.HEALTHY, "0x0")


def test_links_are_counted_as_nvml_counts_them() -> None:
    words = "(0x004505c6 0x0 0x0 0x0 0x0 0x0 0x0)"
    line = f"NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link {{}} {words}"
    assert read(line.format("08")).facts["link"] == "8"
    assert read(line.format("-1")).facts["link"] == "-1"


def test_a_number_that_the_end_of_the_line_may_have_cut_is_not_taken_for_a_code() -> None:
    (record,) = core.parse_log(b"NVRM: Xid (PCI:0000:18:00): 7")
    reading = reading_of(record)
    assert reading is not None
    assert (reading.code, reading.facts["cut_code"]) == (UNKNOWN_XID, "7")
    (record,) = core.parse_log(b"NVRM: Xid (PCI:0000:18:00): 79, GPU has fal")
    reading = reading_of(record)
    assert reading is not None
    assert reading.code == 79


@pytest.mark.parametrize(
    ("line", "probe", "state", "kind"),
    [
        ("NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.", "gpu_lost", State.FAILED, "gpu"),
        (f"NVRM: GPU at PCI:0000:9b:00: {UUID}", "name", State.UNKNOWN, "gpu"),
        ("NVRM: x: Reset required [NV_ERR_RESET_REQUIRED] (0x62)", "gpu_lost", State.FAILED, "gpu"),
        ("NVRM: _kgspLogXid119: **** GSP Timeout ****", "driver", State.FAILED, "gpu"),
        ("NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat", "driver", State.HEALTHY, "node"),
        ("python3[7]: segfault at 0 ip 0 sp 0 error 4 in libnccl.so.2[7f+1]", "crash", State.DEGRADED, "gpu"),
        ("INFO: task python3:7 blocked for more than 120 seconds.", "hung_task", State.DEGRADED, "gpu"),
        ("nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 12028, Non-fatal, Link 46 x", "sxid", State.FAILED, "switch"),
        ("[Jul 23 2024 07:53:55] [ERROR] [tid 1] x [NV_WARN_NOTHING_TO_DO]", "fabric", State.HEALTHY, "node"),
        ("[Jul 23 2024 07:53:55] [ERROR] [tid 1] detected number of NVSwitches don't match with any x", "fabric",
         State.FAILED, "node"),
    ],
)  # fmt: skip
def test_other_lines_say_what_they_are_about(
    line: str, probe: str, state: State, kind: str
) -> None:
    reading = read(line)
    assert (reading.probe, reading.state, reading.device.kind) == (probe, state, kind)


def test_details_are_no_reading_and_lost_lines_are_one() -> None:
    detail = "nvidia-nvswitch3: SXid (PCI:0000:86:00.0): 20034, Data {0x1, 0x2}"
    record = core.parse_line(detail.encode())
    assert record is None or reading_of(record) is None

    class Gap:
        source, what, at_ns, last_ns, count, serial, index, code = "kernel_log", "gap", 5 * 10**9, 5 * 10**9, 12, 3, -1, -1  # fmt: skip
        gi = ci = pid = -1
        bdf = uuid = text = ""
        facts = {"why": "overwritten"}  # noqa: RUF012

    gap = reading_of(Gap())
    assert gap is not None
    assert (gap.probe, gap.state, gap.facts["lost"]) == ("log", State.UNKNOWN, "12")


def test_another_tenants_crash_convicts_nobody() -> None:
    ranks = (Rank(shard=0, pid=1, host_pid=500, device=Device(bdf="0000:4f:00")),)
    log = "[20000.0] python3[7]: segfault at 0 ip 0 sp 0 error 4 in libcuda.so.1[7f+1]\n"
    log += "[20000.1] INFO: task java:8 blocked for more than 120 seconds.\n"
    for found in incidents(log, ranks=ranks):
        assert found.shards == ()
        assert found.verdict.unusable.severity <= Unusable.CONTEXT.severity  # of that process


def test_both_lines_of_a_lost_gpu_are_one_incident() -> None:
    log = "[20000.0] NVRM: Xid (PCI:0000:18:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"
    log += "[20000.0] NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.\n"
    log += "[20000.1] NVRM: Xid (PCI:0000:18:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)\n"
    (found,) = incidents(log)
    assert found.verdict.unusable in (Unusable.GPU, Unusable.NODE)
    assert found.devices[0].bdf == "0000:18:00"


def test_a_storm_of_29_faults_is_at_most_29_incidents(rng: random.Random) -> None:
    lines = []
    for n in range(80_000):
        bus = rng.randrange(29)
        lines.append(
            f"[{20000 + n / 2000:.6f}] NVRM: Xid (PCI:0000:{bus:02x}:00): 95, pid={900 + bus}, name=python3, Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No"
        )
    records = core.parse_log("\n".join(lines).encode())
    assert len(records) <= 29 * 8
    assert sum(record.count for record in records) == 80_000
    found = incidents("\n".join(lines))
    assert len(found) == 29
    assert all(math.isfinite(each.updated) for each in found)
