"""Real ranks under NVRx's real launcher, started by our command line: losses, hangs, and what the ranks ask for."""

import os
import re
import signal
from pathlib import Path

import pytest

from dynamo_gpu_ft.nvrx.children import VARIABLE
from dynamo_gpu_ft.recovery import processes
from tests.nvrx import harness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

OPTIONS = ["--backend", "nvrx", "--ranks", "2", "--stop", "2"]
LIMITS = ["--heartbeat", "2", "--section", "step=4", "--max-restarts", "4"]


@pytest.mark.parametrize(
    "nvrx", ["0.4.1", pytest.param("0.7.0", marks=pytest.mark.long)], indirect=True
)
def test_a_killed_a_stopped_and_a_stuck_rank_are_each_replaced_and_the_job_ends_well(
    nvrx: str, tmp_path: Path
) -> None:
    ended = harness.launch(
        [*OPTIONS, *LIMITS], harness.GLOO_RANK, tmp_path / "report", "kill,stop,stuck", version=nvrx
    )
    assert ended.status == 0, ended.said[-4000:]
    each = {(round_, rank) for round_ in range(4) for rank in range(2)}
    assert ended.who("ready") == each, ended.said[-8000:]
    assert ended.who("done") == {(3, 0), (3, 1)}, ended.said[-8000:]
    # The stopped rank was found by its silence, the stuck one by its section.
    assert "subsequent heartbeat" in ended.said
    assert re.search(r"'step' has been open|section", ended.said)
    assert harness.alive(ended.pids()) == []


@pytest.mark.long
def test_a_recovery_that_failed_is_not_restarted_and_says_so_with_its_own_status(
    nvrx: str, tmp_path: Path
) -> None:
    ended = harness.launch(
        [*OPTIONS, *LIMITS], harness.GLOO_RANK, tmp_path / "report", "failed,fine", version=nvrx
    )
    assert ended.status == 93, ended.said[-4000:]
    assert "every restart was used up" in ended.said.splitlines()[-1]
    assert {round_ for round_, _ in ended.who("ready")} == {0}
    assert harness.alive(ended.pids()) == []


@pytest.mark.long
def test_a_node_that_a_rank_wants_excluded_runs_nothing_again(nvrx: str, tmp_path: Path) -> None:
    ended = harness.launch(
        [*OPTIONS, *LIMITS], harness.GLOO_RANK, tmp_path / "report", "exclude,fine", version=nvrx
    )
    assert ended.status == 1, ended.said[-4000:]
    assert "this GPU has to be reset" in ended.said.splitlines()[-1]
    assert {round_ for round_, _ in ended.who("ready")} == {0}
    assert harness.alive(ended.pids()) == []


@pytest.mark.long
def test_the_kill_of_nvrxs_launcher_alone_ends_its_ranks_and_the_job(
    nvrx: str, tmp_path: Path
) -> None:
    command = harness.started([*OPTIONS, *LIMITS], tmp_path / "report", "hold", version=nvrx)
    [folder] = (tmp_path / "tmp").glob("gpu-ft-*")
    found = processes.find(folder.name, VARIABLE)
    [launcher] = [each.pid for each in found if parent(each.pid) == command.pid]
    os.kill(launcher, signal.SIGKILL)
    assert command.wait(40) == 1
    assert processes.find(folder.name, VARIABLE) == []
    assert not folder.exists()


def parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("PPid:"))


def test_the_kill_of_our_command_ends_the_launcher_its_monitors_and_the_ranks(
    nvrx: str, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    command = harness.started([*OPTIONS, *LIMITS], report, "hold", version=nvrx)
    [folder] = (tmp_path / "tmp").glob("gpu-ft-*")
    tag = folder.name
    assert len(processes.find(tag, VARIABLE)) >= 5  # the launcher, two monitors, two ranks
    command.send_signal(signal.SIGKILL)
    command.wait(30)
    harness.until(lambda: processes.find(tag, VARIABLE) == [], "something was left behind")
    harness.until(lambda: not folder.exists(), "its folder was left behind")
