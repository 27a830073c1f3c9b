"""`explain log`: whole logs become one fault per real one, with device, ranks, verdict, action and the lines that it rests on."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.cli.main import main

LOG = """\
[    5.000000] nvidia: module license 'NVIDIA' taints kernel.
[    6.000000] NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.65.06  Wed Jul  2 00:00:00 UTC 2025
[  400.000000] NVRM: GPU at PCI:0000:9b:00: GPU-01234567-89ab-cdef-0123-456789abcdef
[  400.123000] NVRM: Xid (PCI:0000:9b:00): 13, pid=4242, name=VLLM::Worker, Graphics SM Warp Exception on (GPC 1, TPC 3, SM 0): Out Of Range Address
[  400.124000] NVRM: Xid (PCI:0000:9b:00): 45, pid=4242, name=VLLM::Worker, Ch 00000001 caused by previous Xid 13
[  500.000000] usb 1-1: new high-speed USB device
[  600.000000] NVRM: Xid (PCI:0000:18:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
[  600.000100] NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.
[  600.100000] NVRM: Xid (PCI:0000:18:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)
[  700.000000] nvidia-nvswitch1: SXid (PCI:0000:86:00.0): 20034, Fatal, Link 33 LTSSM Fault Up (First)
[  700.000100] nvidia-nvswitch1: SXid (PCI:0000:86:00.0): 20034, Severity 1 Engine instance 33 Sub-engine instance 00
[  700.100000] NVRM: Xid (PCI:0000:9b:00): 74, pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 14(0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0)
[  700.200000] NVRM: Xid (PCI:0000:5d:00): 45, pid=77, name=python, Ch 00000001
[  900.000000] NVRM: Xid (PCI:0000:5d:00): 63, pid=1, name=x, Row Remapper: New row marked for remapping, reset gpu to activate.
[ 1000.000000] NVRM: Xid (PCI:0000:b3:00): 119, pid=1, name=nvidia-smi, Timeout after 6s of waiting for RPC response from GPU4 GSP! Expected function 76 (GSP_RM_CONTROL) (0x20801813 0x4c).
[ 1006.000000] NVRM: Xid (PCI:0000:b3:00): 119, pid=1, name=nvidia-smi, Timeout after 6s of waiting for RPC response from GPU4 GSP! Expected function 76 (GSP_RM_CONTROL) (0x20801813 0x4c).
[ 1100.000000] NVRM: Xid (PCI:0000:01:00 GPU-I:05): 31, pid=99, name=a,b (c), Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_8 faulted @ 0x73ac_1c000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_WRITE
"""
RANKS = [
    {"shard": 0, "host_pid": 4242, "device": {"uuid": "GPU-01234567-89ab-cdef-0123-456789abcdef"}},
    {"shard": 1, "host_pid": 4243, "device": {"bdf": "0000:18:00"}},
]
EXPECTED = {
    # name: (device, ranks, verdict, action, kinds of lines)
    "xid 13": ("gpu 0000:9b:00", [0], "context", "restart_context", 2),
    "xid 79": ("gpu 0000:18:00", [1], "gpu", "reboot_node", 3),
    "sxid 20034": ("switch 0000:86:00", [0, 1], "link", "reset_fabric", 3),
    "xid 63": ("gpu 0000:5d:00", [], "nothing", "report", 1),
    "xid 119": ("gpu 0000:b3:00", [], "gpu", "reset_gpu", 1),
    "xid 31": ("gpu 0000:01:00 GPU-I:05", [], "context", "restart_context", 1),
}


def explained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, log: str, *more: str, ranks: Any = RANKS
) -> tuple[int, dict[str, Any]]:
    file, ranks_file = tmp_path / "log", tmp_path / "ranks.json"
    file.write_text(log)
    ranks_file.write_text(json.dumps(ranks))
    capsys.readouterr()
    code = main(["explain", "log", str(file), "--json", "--ranks", str(ranks_file), *more])
    return code, json.loads(capsys.readouterr().out)


def test_each_real_fault_of_a_log_is_one_entry(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, answer = explained(capsys, tmp_path, LOG)
    found = {
        fault["name"]: (
            fault["devices"][0]["text"], fault["ranks"], fault["verdict"], fault["action"], len(fault["evidence"]),
        )
        for fault in answer["faults"]
    }  # fmt: skip
    assert found == EXPECTED
    assert (code, answer["driver"], answer["boots"]) == (1, "580.65.06", 1)


def test_every_fault_rests_on_lines_of_the_log_and_says_where_they_stand(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, answer = explained(capsys, tmp_path, LOG)
    lines = LOG.splitlines()
    for fault in answer["faults"]:
        for evidence in fault["evidence"]:
            assert evidence["line"] in lines[int(evidence["number"]) - 1]


def test_interleaved_doubled_and_cut_lines_give_the_same_faults(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, rng: random.Random
) -> None:
    lines = LOG.splitlines()
    noisy = []
    for line in lines:
        noisy += [line, *([line] * rng.randrange(3))]
        noisy += [f"[ {rng.randrange(900)}.0] usb 1-{rng.randrange(9)}: noise"] * rng.randrange(3)
    noisy.append("[ 1100.000001] NVRM: Xid (PCI:0000:9b:")
    _, answer = explained(capsys, tmp_path, "\n".join(noisy))
    assert {fault["name"] for fault in answer["faults"]} == set(EXPECTED)


def test_a_driver_branch_decides_what_a_reused_number_means(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = "[ 900.0] NVRM: Xid (PCI:0000:9b:00): 144, pid=1, name=x, something\n"
    reasons = [
        explained(capsys, tmp_path, line, "--driver", driver)[1]["faults"][0]["reason"]
        for driver in ("550.76", "580.65.06")
    ]
    assert reasons[0] != reasons[1]


def test_each_boot_has_its_own_faults(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fault = "[ 400.0] NVRM: Xid (PCI:0000:18:00): 79, pid=1, name=x, GPU has fallen off the bus.\n"
    _, answer = explained(capsys, tmp_path, fault + "[    1.0] NVRM: Xid (PCI:0000:18:00): 79, pid=1, name=x, GPU has fallen off the bus.\n")  # fmt: skip
    assert (answer["boots"], len(answer["faults"])) == (2, 2)


def test_a_storm_in_a_log_is_as_many_faults_as_there_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    storm = [
        f"[{400 + n / 1000:12.6f}] NVRM: Xid (PCI:0000:{16 + n % 29:02x}:00): 95, pid={n}, name=x, Uncontained: FBHUB. RST: Yes, D-RST: No"
        for n in range(29_000)
    ]
    _, answer = explained(capsys, tmp_path, "\n".join(storm))
    assert len(answer["faults"]) == 29
    assert sum(fault["lines"] for fault in answer["faults"]) == 29_000


def test_the_page_for_people_says_the_gravest_first_and_shows_the_lines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LOG.encode())))
    assert main(["explain", "log", "-"]) == 1
    page = capsys.readouterr().out
    assert page.startswith("6 faults in ")
    assert page.index("xid 79 on gpu 0000:18:00") < page.index("xid 13 on") < page.index("xid 63")
    assert "GPU has fallen off the bus." in page
    assert "the log tells" not in page


def test_a_log_without_faults_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("[ 1.0] usb 1-1: new device\n")
    assert main(["explain", "log", str(file)]) == 0
    assert capsys.readouterr().out.startswith("No fault")


def test_neighbours_stand_in_for_time_where_a_log_has_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pages = ["usb 1-1: noise"] * 100
    log = [
        "NVRM: Xid (PCI:0000:9b:00): 31, pid=1, name=x, MMU Fault",
        "NVRM: Xid (PCI:0000:9b:00): 45, pid=1, name=x, Ch 1",
        *pages,
        "NVRM: Xid (PCI:0000:9b:00): 79, pid=1, name=x, GPU has fallen off the bus.",
    ]
    _, answer = explained(capsys, tmp_path, "\n".join(log))
    assert [fault["name"] for fault in answer["faults"]] == ["xid 31", "xid 79"]
    assert answer["timed"] is False


@pytest.mark.parametrize("what", ["log", "ranks"])
def test_what_cannot_be_read_is_said_and_the_exit_code_is_2(
    what: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "log"
    file.write_text(LOG)
    bad = tmp_path / "ranks.json"
    bad.write_text('{"shard": "zero"}')
    arguments = [str(tmp_path / "none")] if what == "log" else [str(file), "--ranks", str(bad)]
    assert main(["explain", "log", *arguments]) == 2
    assert what in capsys.readouterr().err
