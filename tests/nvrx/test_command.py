"""The command line: help, dry run, the choice of the back end, and packages that lack something."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.nvrx import harness


def command(
    *options: str, version: str = "", cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "dynamo_gpu_ft.nvrx", *options],
        env=harness.environ(version), capture_output=True, text=True, timeout=100, check=False, cwd=cwd,
    )  # fmt: skip


def test_help_names_every_option_and_exit_status() -> None:
    told = command("--help")
    assert told.returncode == 0
    for word in ("--backend", "--section", "--dry-run", "93", "128+N", "builtin", "Rank"):
        assert word in told.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "there is no command to run"),
        (["--section", "idle=3", "--", "x"], "the idle section cannot have a limit"),
        (["--ranks", "0", "--", "x"], "number of ranks is out of range"),
        (["--nodes", "2", "--", "x"], "several nodes have nowhere to meet"),
        (["--nodes", "2", "--endpoint", "h:1", "--backend", "builtin", "--", "x"], "it runs one node"),
        (["--backend", "builtin", "--set", "a=1", "--", "x"], "no configuration of NVRx"),
        (["--set", "a", "--", "x"], "FIELD=VALUE"),
        (["--max-restarts", "-1", "--", "x"], "'max_restarts' is out of range"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_ends_in_status_2_and_says_why(options: list[str], words: str) -> None:
    told = command(*options)
    assert told.returncode == 2
    assert words in told.stderr
    assert "Traceback" not in told.stderr


def test_a_dry_run_shows_the_launchers_command_line_and_its_file_and_starts_nothing(
    nvrx: str, tmp_path: Path
) -> None:
    options = ["--ranks", "2", "--section", "step=3", "--dry-run"]
    touch = ["--", "touch", str(tmp_path / "started")]
    told = command(*options, *touch, version=nvrx)
    assert told.returncode == 0, told.stderr
    assert "nvidia_resiliency_ext.fault_tolerance.launcher" in told.stdout
    assert "--nproc-per-node=2" in told.stdout
    assert "fault_tolerance:" in told.stdout
    assert "    step: 3.0" in told.stdout
    assert "    idle: null" in told.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_without_nvrx_shows_the_built_in_monitors_limits() -> None:
    told = command("--dry-run", "--section", "step=3", "--", "true")
    assert told.returncode == 0
    assert "the built-in monitor, 1 ranks of" in told.stdout
    assert "  step: 3.0" in told.stdout


def test_nvrx_that_is_wanted_and_not_there_is_an_error_that_says_what_to_do() -> None:
    told = command("--backend", "nvrx", "--", "true")
    assert told.returncode == 2
    assert "nvidia-resiliency-ext is not installed" in told.stderr
    assert "--backend builtin" in told.stderr


def doctored(folder: Path, *, client: str = "", flags: str = "") -> str:
    """A package of that name which lacks what the arguments leave out."""
    tolerance = folder / "nvidia_resiliency_ext" / "fault_tolerance"
    tolerance.mkdir(parents=True)
    (tolerance.parent / "__init__.py").write_text("")
    (tolerance / "__init__.py").write_text(
        textwrap.dedent(
            """
            import dataclasses, enum
            @dataclasses.dataclass
            class FaultToleranceConfig:
                rank_heartbeat_timeout: float = 1
            class WorkloadAction(enum.Enum):
                Continue = 0
                ExcludeThisNode = 1
            class RankMonitorClient:
                def init_workload_monitoring(self): ...
            """
        )
        + textwrap.indent(client, "    ")
    )
    (tolerance / "launcher.py").write_text(
        "import argparse\ndef get_args_parser():\n    p = argparse.ArgumentParser()\n"
        + textwrap.indent(flags, "    ")
        + "\n    return p\n"
    )
    return str(folder)


def test_a_package_that_lacks_something_is_told_everything_it_lacks(tmp_path: Path) -> None:
    folder = doctored(
        tmp_path, client="def start_section(self, name): ...", flags="p.add_argument('--nnodes')"
    )
    told = command("--backend", "nvrx", "--", "true", version=folder)
    assert told.returncode == 2
    for word in (
        "flag --max-restarts",
        "flag --ft-cfg-path",
        "field rank_section_timeouts of FaultToleranceConfig",
        "method send_heartbeat of RankMonitorClient",
        "parameter section of RankMonitorClient.start_section",
        "WorkloadAction.ShutdownWorkload",
        "--backend builtin",
    ):
        assert word in told.stderr
    assert "flag --nnodes" not in told.stderr


def test_left_to_choose_it_takes_the_built_in_monitor_and_says_why(tmp_path: Path) -> None:
    told = command("--", "true", version=doctored(tmp_path))
    assert told.returncode == 0, told.stderr
    assert "the built-in monitor runs this: nvidia-resiliency-ext does not offer" in told.stderr


def test_a_package_that_cannot_be_imported_is_told_with_its_own_words(tmp_path: Path) -> None:
    folder = doctored(tmp_path)
    broken = tmp_path / "nvidia_resiliency_ext" / "fault_tolerance" / "__init__.py"
    broken.write_text("import a_library_that_is_not_there")
    told = command("--backend", "nvrx", "--", "true", version=folder)
    assert told.returncode == 2
    assert "No module named 'a_library_that_is_not_there'" in told.stderr
    shutil.rmtree(tmp_path / "nvidia_resiliency_ext")


def test_a_rank_under_a_launcher_whose_client_lacks_something_ends_with_the_names(
    tmp_path: Path,
) -> None:
    code = "from dynamo_gpu_ft.nvrx.rank import Rank; Rank()"
    environ = harness.environ(doctored(tmp_path), FT_RANK_MONITOR_IPC_SOCKET="/nowhere")
    told = subprocess.run(
        [sys.executable, "-c", code],
        env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "method send_heartbeat of RankMonitorClient" in told.stderr
    assert told.returncode == 1


def test_the_doctors_line_names_the_version_and_what_of_it_is_used(nvrx: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "dynamo_gpu_ft.cli.nvrx_offer"],
        env=harness.environ(nvrx), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout
    assert told.stdout.strip().endswith(": launcher usable, in-process wrapper usable")
