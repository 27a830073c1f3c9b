"""What the doctor says of the kernel's log and of tracepoints: readable or not, and what mends it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dynamo_gpu_ft.cli import gpu_logs


def test_a_log_that_can_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "kern").write_text("")
    good, words, remedy = gpu_logs.look(str(tmp_path / "kern"), str(tmp_path))
    assert good
    assert words.startswith(
        f"kernel log: {tmp_path}/kern can be read; tracepoints: {tmp_path} is no"
    )
    assert remedy == ""


def test_a_log_that_is_not_there_comes_with_its_remedy(tmp_path: Path) -> None:
    good, words, remedy = gpu_logs.look("/dev/no-such-kmsg", str(tmp_path))
    assert not good
    assert "there is no /dev/no-such-kmsg" in words
    assert "mount it into the container" in remedy


def test_tracepoints_need_the_driver(tmp_path: Path) -> None:
    (tmp_path / "instances").mkdir()
    _, words, remedy = gpu_logs.look("none", str(tmp_path))
    assert "kernel log: switched off" in words
    assert "575.51" in remedy
    for event in ("nvidia/nvidia_dev_xid", "nvswitch/nvswitch_dev_sxid"):
        (tmp_path / "events" / event).mkdir(parents=True)
    assert gpu_logs.look("none", str(tmp_path))[1].endswith("tracepoints: can be read")


def test_it_answers_in_a_process_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dynamo_gpu_ft.cli.gpu_logs"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode in (0, 1)
    assert done.stdout.startswith("kernel log: ")
    assert len(done.stdout.splitlines()) == 1
