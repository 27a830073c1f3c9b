"""The demo's runs from end to end on a stand-in server: what each kind of server is answered with, and that nothing stays."""

import argparse
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.cli.demo import processes, report, scenario
from dynamo_gpu_ft.cli.demo.progress import Phase
from dynamo_gpu_ft.cli.demo.scenario import Scene
from dynamo_gpu_ft.cli.demo.server import Server, free_port
from dynamo_gpu_ft.errors import GpuFtError

pytest.importorskip("aiohttp")

ROOT = Path(__file__).resolve().parents[2]
FAKE = str(ROOT / "tests" / "unit" / "demo_fake_server.py")
WHERE = report.Where(engine="fake", model="none", machine="here", date="today", commit="")


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(scenario, "PLAIN", (FAKE, "plain"))
    monkeypatch.setattr(scenario, "PROTECTED", (FAKE, "protected"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Scene(
        model=tmp_path,
        prompts=[[number + 1] * 100 for number in range(3)],
        max_tokens=50,
        kill_at=20,
        dtype="float32",
        tp=1,
        block_size=32,
        port=0,
        arena_bytes=1 << 20,
        engine_args=(),
        folder=tmp_path,
    )


def undisturbed(scene: Scene) -> list[Any]:
    with scenario.plain_server(scene, "plain.log") as server:
        server.wait_ready(Phase("ready"))
        return scenario.undisturbed(scene, server)


_before: set[processes.Process] = set()


@pytest.fixture(autouse=True)
def others() -> None:
    """Other tests have helpers of multiprocessing started, which live as long as this process."""
    _before.clear()
    _before.update(processes.descendants(os.getpid()))


def children() -> list[str]:
    ours = [p for p in processes.descendants(os.getpid()) if p not in _before]
    return [process.title() for process in ours if process.running()]


def test_a_server_that_keeps_its_promise_passes(scene: Scene) -> None:
    reference = undisturbed(scene)
    result = report.judge(scene, WHERE, reference, None, scenario.with_protection(scene))
    assert result["problems"] == []
    assert result["verdict"] == "pass"
    for row in result["streams"]:
        assert row["identical"]
        assert 20 <= row["tokens_before_fault"] < 50
        assert row["tokens_restored"] in (96, 128)
        assert 0 <= row["tokens_recomputed"] < 32
        assert 0 < row["gap_s"] < 30
    assert list(result["recovery_s"]) == ["notice", "start_engine", "first_token"]
    assert children() == []


def test_the_same_kill_without_protection_loses_every_stream_and_is_measured(scene: Scene) -> None:
    with scenario.plain_server(scene, "plain.log") as server:
        server.wait_ready(Phase("ready"))
        reference = scenario.undisturbed(scene, server)
        without = scenario.without_protection(scene, server)
    result = report.judge(scene, WHERE, reference, without, None)
    assert result["without"]["streams_failed"] == 3
    delivered = [len(stream.tokens) for stream in without.killed.streams]
    assert result["without"]["tokens_recomputed"] == sum(100 + count for count in delivered)
    assert result["without"]["outage_s"] == pytest.approx(
        sum(result["without"]["phases_s"].values()), abs=0.01
    )
    assert report.render(result).splitlines()[-1].startswith("VERDICT: 3 streams lost")
    assert children() == []


@pytest.mark.parametrize(
    ("mode", "problem"),
    [
        ("wrong", "differs from token"),
        ("silent", "not named in the server's journal"),
        ("plain", "ended early"),
    ],
)
def test_a_server_that_breaks_its_promise_fails(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, mode: str, problem: str
) -> None:
    monkeypatch.setattr(scenario, "PROTECTED", (FAKE, mode))
    reference = undisturbed(scene)
    result = report.judge(scene, WHERE, reference, None, scenario.with_protection(scene))
    assert result["verdict"] == "fail"
    assert sum(problem in line for line in result["problems"]) == 3
    assert report.render(result).splitlines()[-1].startswith("VERDICT: FAIL")


def test_a_server_that_ends_before_it_is_ready_is_told_with_the_end_of_its_log(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenario, "PLAIN", (FAKE, "broken"))
    with pytest.raises(GpuFtError, match=r"(?s)status 3.*no room on this device"):
        undisturbed(scene)
    assert children() == []


@pytest.mark.parametrize("way_out", ["end", "error"])
def test_a_stubborn_server_and_its_runaway_grandchild_are_ended_on_every_way_out(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way_out: str
) -> None:
    monkeypatch.setattr(scenario, "PLAIN", (FAKE, "stubborn"))
    monkeypatch.setattr("dynamo_gpu_ft.cli.demo.server.STOP_DEADLINE_S", 0.3)
    try:
        with scenario.plain_server(scene, "plain.log") as server:
            server.wait_ready(Phase("ready"))
            assert sum("sleep 1000" in title for title in children()) == 1
            if way_out == "error":
                raise ValueError(way_out)
    except ValueError:
        pass
    assert children() == []
    shared = (tmp_path / "shared_memory_name").read_text()
    assert not Path("/dev/shm", shared).exists()


def test_processes_that_were_there_before_are_left_alone(scene: Scene) -> None:
    bystander = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        undisturbed(scene)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


PLAYER = """
    import argparse, sys
    from pathlib import Path
    from dynamo_gpu_ft.cli.demo import command, scenario
    fake, folder = sys.argv[1], Path(sys.argv[2])
    scenario.PLAIN = (fake, "plain")
    scene = scenario.Scene(
        model=folder, prompts=[[1] * 100], max_tokens=1_000_000, kill_at=10, dtype="float32", tp=1, block_size=32,
        port=int(sys.argv[3]), arena_bytes=1 << 20, engine_args=(), folder=folder)
    command._scene = lambda args, folder: (scene, "none")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args(["--without"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_demo_that_is_ended_by_a_signal_takes_its_server_along(
    scene: Scene, tmp_path: Path, number: signal.Signals
) -> None:
    port = free_port()
    player = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PLAYER), FAKE, str(tmp_path), str(port)],
        stderr=subprocess.DEVNULL,
        # Tests started in a shell's background ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        server = Server((), tmp_path, (), port=port, environ={}, log=tmp_path / "none")
        until(server.healthy)
        family = processes.descendants(player.pid)
        assert len(family) == 3  # the server, its engine and its resource tracker
        player.send_signal(number)
        status = player.wait(timeout=30)
    finally:
        player.kill()
        player.wait()
    assert status != 0
    # SIGKILL leaves the demo no time: the server is then ended by the kernel, and the stand-in's engine is not ours.
    until(lambda: not family[0].running())
    if number != signal.SIGKILL:
        assert not any(process.running() for process in family)
    processes.end_all(family)


def until(condition: Callable[[], bool], deadline_s: float = 30.0) -> None:
    ends = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends, "did not happen in time"
        time.sleep(0.01)


def test_unknown_combinations_are_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    from dynamo_gpu_ft.cli.demo import command

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    for wrong in (
        ["--streams", "0"],
        ["--arena-bytes", "much"],
        ["--without", "--skip-without"],
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
    assert "not allowed with" in capsys.readouterr().err
