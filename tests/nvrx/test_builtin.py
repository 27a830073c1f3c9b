"""Real processes under the built-in monitor: losses, hangs, limits, wishes, and that nothing is left of any of it."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.nvrx import harness

pytestmark = pytest.mark.timeout(120)

OPTIONS = ["--backend", "builtin", "--ranks", "2", "--stop", "2", "--heartbeat", "1"]
LIMITS = [*OPTIONS, "--section", "step=1.5", "--max-restarts", "8"]


def run(report: Path, faults: str, options: list[str] = LIMITS) -> harness.Ended:
    return harness.launch(options, harness.PLAIN_RANK, report, faults)


def test_killed_stopped_stuck_and_crashed_ranks_are_each_replaced_and_the_job_ends_well(
    tmp_path: Path,
) -> None:
    ended = run(tmp_path / "report", "kill,stop,stuck,crash,fine")
    assert ended.status == 0, ended.said
    # Rank 0 may be ended, with the round, before it has said anything.
    assert {(round_, 1) for round_ in range(5)} <= ended.who("ready")
    assert {(4, 0), (4, 1)} <= ended.who("done")
    assert "rank 1 was ended by SIGKILL" in ended.said
    assert "no sign of process" in ended.said
    assert "section 'step' lasts" in ended.said
    assert "rank 1 exited with status 3" in ended.said
    assert harness.alive(ended.pids()) == []


def test_an_idle_an_unwatched_and_a_departing_rank_are_left_alone(tmp_path: Path) -> None:
    names = ("idle", "deaf", "orderly")
    with ThreadPoolExecutor() as pool:  # they wait most of the time
        for name, ended in zip(
            names, pool.map(lambda name: run(tmp_path / name, name), names), strict=True
        ):
            assert ended.status == 0, ended.said
            assert ended.who("done") == {(0, 0), (0, 1)}, name


def test_a_rank_that_dies_again_and_again_ends_the_job_with_the_reason(tmp_path: Path) -> None:
    ended = run(tmp_path / "report", "crash", [*OPTIONS, "--max-restarts", "2"])
    assert ended.status == 1
    last = ended.said.splitlines()[-1]
    assert "given up: 3 deaths within 600 s, more than max_restarts = 2" in last
    assert "rank 1 exited with status 3" in last
    assert {round_ for round_, rank in ended.who("ready") if rank == 1} == {0, 1, 2}
    assert harness.alive(ended.pids()) == []


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("no_restart", 93, "there is no model of that name"),
        ("code", 93, "rank 1 exited with status 93"),
        ("failed", 93, "every restart was used up"),
        ("exclude", 1, "not restarted on this node: this GPU has to be reset"),
    ],
)
def test_a_wish_of_a_rank_is_carried_out_instead_of_a_restart(
    tmp_path: Path, fault: str, status: int, words: str
) -> None:
    ended = run(tmp_path / "report", fault)
    assert ended.status == status, ended.said
    assert words in ended.said.splitlines()[-1]
    assert {round_ for round_, _ in ended.who("ready")} == {0}


def test_what_a_killed_rank_had_started_goes_with_it_even_from_a_session_of_its_own(
    tmp_path: Path,
) -> None:
    ended = run(tmp_path / "report", "leak,fine")
    assert ended.status == 0, ended.said
    assert sum(1 for r, rank, w in ended.lines if (r, rank) == (0, 1) and "pid=" in w) == 2
    assert harness.alive(ended.pids()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_end_of_the_monitor_is_the_end_of_its_ranks(tmp_path: Path, number: int) -> None:
    report = tmp_path / "report"
    launcher = harness.started(LIMITS, report, "hold")
    launcher.send_signal(number)
    status = launcher.wait(30)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    harness.until(lambda: harness.alive(harness.pids(report)) == [], "ranks outlived their monitor")
    harness.until(lambda: os.listdir(tmp_path / "tmp") == [], "its folder was left behind")


def test_a_monitor_that_was_stopped_itself_takes_nobody_for_hung(tmp_path: Path) -> None:
    report = tmp_path / "report"
    launcher = harness.started(LIMITS, report, "hold")
    try:
        launcher.send_signal(signal.SIGSTOP)
        time.sleep(2.5)  # the fault itself: longer than every limit
        launcher.send_signal(signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.wait(1.0)
        assert {round_ for round_, _, _ in harness.read(report)} == {0}
        assert launcher.poll() is None
    finally:
        launcher.terminate()
        launcher.wait(30)


def test_a_command_that_cannot_be_started_ends_in_status_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [*harness.command(LIMITS, harness.PLAIN_RANK, tmp_path / "r", "")[:-4], "--", "no-such"],
        env=harness.environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "the command cannot be started" in done.stderr
    assert os.listdir(tmp_path) == []
