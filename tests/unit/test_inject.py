"""The `inject` command: lines for the simulated NVML, the driver's log lines, signals; and the library it builds."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli.main import COULD_NOT_RUN, OK, PROBLEMS, main
from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.sim import inject_log
from dynamo_gpu_ft.sim.nvml import build
from dynamo_gpu_ft.sim.nvml.control import Control

ROOT = Path(__file__).resolve().parents[2]
LISTENER = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.nvmlInit_v2()
events, device, data = ctypes.c_void_p(), ctypes.c_void_p(), (ctypes.c_ulonglong * 4)()
library.nvmlDeviceGetHandleByIndex_v2(1, ctypes.byref(device))
library.nvmlEventSetCreate(ctypes.byref(events))
library.nvmlDeviceRegisterEvents(device, ctypes.c_ulonglong(8), events)
print("ready", flush=True)
print(library.nvmlEventSetWait_v2(events, ctypes.byref(data), 60000), data[1], data[2], hex(data[3]), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def control() -> Iterator[Path]:
    with TemporaryDirectory(prefix="gft-nvml-") as made:  # short: sockets lie in it
        yield Path(made) / "c"


@pytest.fixture
def listener(control: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that waits for one XID of GPU 1."""
    Control(control)
    library = build.library(ROOT / "build")
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER, str(library)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {build.CONTROL: str(control)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def inject(control: Path, *words: str) -> int:
    return main(["inject", "--control", str(control), *words])


def test_an_xid_reaches_a_process_that_waits_for_it(
    control: Path, listener: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        inject(control, "xid", "79", "--gpu", "0") == PROBLEMS
    )  # it has registered another GPU only
    assert inject(control, "xid", "79", "--gpu", "1", "--gi", "5") == OK
    assert f"pid {listener.pid}: heard=1" in capsys.readouterr().out
    assert listener.stdout is not None
    assert listener.stdout.readline() == f"0 8 79 {0xFFFFFFFF00000005:#x}\n"


def test_what_lasts_waits_for_processes_that_come_later(control: Path) -> None:
    assert inject(control, "recovery-action", "4", "--gpu", "2") == PROBLEMS
    assert inject(control, "wedge", "fields", "--gpu", "3", "--seconds", "1.5") == PROBLEMS
    assert (control / "commands").read_text().splitlines() == [
        "recovery gpu=2 action=4",
        "wedge gpu=3 call=fields seconds=1.5",
    ]
    assert stat.S_IMODE(control.stat().st_mode) == 0o700


def test_every_kind_of_command_is_understood_by_the_library(
    control: Path, listener: subprocess.Popen[str]
) -> None:
    for words in (
        ["lost", "--gpu", "0"], ["found", "--gpu", "*"], ["event", "0x4000", "--data", "79"], ["release"], ["release", "--gpu", "1"],
        ["command", "set gpu=0 144=1 162@3=7 util.gpu=90"], ["command", "queue size=10"], ["command", "state"],
    ):  # fmt: skip
        assert inject(control, *words) in (OK, PROBLEMS), words


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "no such command"),
        ("xid gpu=99 code=1", "there is no gpu=99 among 8"),
        ("xid gpu=1", "needs code=NUMBER"),
        ("recovery gpu=0 action=x", "is no number"),
        ("wedge gpu=0", "needs call=NAME"),
        ("world gpus=2", "only before nvmlInit"),
    ],
)
def test_a_wrong_command_says_what_would_be_right(
    control: Path,
    listener: subprocess.Popen[str],
    capsys: pytest.CaptureFixture[str],
    line: str,
    says: str,
) -> None:
    assert inject(control, "command", line) == COULD_NOT_RUN
    assert says in capsys.readouterr().err


def test_the_library_is_built_once_and_printed_with_its_environment(
    control: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    built = build.library(ROOT / "build")
    monkeypatch.setenv("DYN_GPU_FT_CACHE", str(ROOT / "build"))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/x")
    assert inject(control, "build", "--shell") == OK
    assert capsys.readouterr().out.splitlines() == [
        f"export LD_LIBRARY_PATH={built.parent}:/opt/x",
        f"export FAKE_NVML_CONTROL={control}",
    ]
    dynamic = subprocess.run(
        ["readelf", "-d", str(built)], capture_output=True, text=True, check=True
    )
    assert "soname: [libnvidia-ml.so.1]" in dynamic.stdout
    monkeypatch.setenv("CXX", "/nonexistent/compiler")
    with pytest.raises(GpuFtError, match="cannot be built"):
        build.library(tmp_path)


@pytest.mark.parametrize("code", [*inject_log.MESSAGES, 173])
@pytest.mark.parametrize("variant", inject_log.VARIANTS)
def test_a_log_line_is_what_the_log_reader_reads(tmp_path: Path, variant: str, code: int) -> None:
    log = tmp_path / "kern.log"
    words = ["--as", "kmsg", "xid", str(code), "--bdf", "0000:9B:00.0", "--variant", variant]
    assert main(["inject", "log", "--file", str(log), *words]) == OK
    [record] = native.load().parse_log(log)
    assert (record.what, record.code, record.bdf) == ("xid", code, "0000:9b:00")
    assert (record.gi, record.ci) == {"mig": (5, -1), "mig-ci": (5, 0)}.get(variant, (-1, -1))
    assert record.pid == (-1 if variant in ("no-pid", "unknown-pid") else 4242)
    assert record.facts.get("previous_xid") == ("48" if variant == "caused-by" else None)


def test_switch_errors_and_gpus_off_the_bus_have_lines_too(tmp_path: Path) -> None:
    log = tmp_path / "kern.log"
    for words in (
        ["sxid", "20034", "--bdf", "0000:86:00", "--severity", "Non-fatal"],
        ["fallen", "--bdf", "18:00"],
    ):
        assert main(["inject", "log", "--file", str(log), *words]) == OK
    switch, fallen = native.load().parse_log(log)
    assert (switch.what, switch.code, switch.bdf) == ("sxid", 20034, "0000:86:00")
    assert (switch.facts["severity"], switch.facts["link"]) == ("non-fatal", "14")
    assert (fallen.what, fallen.bdf) == ("fallen_off_bus", "0000:18:00")


def test_the_kernels_own_log_is_never_written_by_accident(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["inject", "log", "--file", "/dev/kmsg", "xid", "79", "--bdf", "0000:9b:00"])
        == COULD_NOT_RUN
    )
    assert "--kmsg" in capsys.readouterr().err
    assert (
        main(["inject", "log", "--file", str(tmp_path / "x"), "xid", "79", "--bdf", "9b"])
        == COULD_NOT_RUN
    )
    assert not (tmp_path / "x").exists()
    assert (
        main(["inject", "log", "--print", "xid", "79", "--bdf", "9b:00", "--message", "so"]) == OK
    )
    assert capsys.readouterr().out == "NVRM: Xid (PCI:0000:9b:00): 79, pid=4242, name=python3, so\n"


def test_a_worker_is_stopped_continued_and_killed(capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["sleep", "60"]) as worker:
        for kind in ("stop", "continue", "kill"):
            assert main(["inject", kind, "--pid", str(worker.pid)]) == OK
        assert worker.wait(20) == -signal.SIGKILL
    assert main(["inject", "kill", "--pid", str(worker.pid)]) == PROBLEMS
    assert main(["inject", "kill", "--pid", "-1"]) == COULD_NOT_RUN
