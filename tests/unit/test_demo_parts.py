"""The demo's small parts: processes, prompts, the arena's private folder, progress lines, and where figures come from."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_gpu_ft.cli.demo import arena_folder, machine, processes
from dynamo_gpu_ft.cli.demo.arena_folder import ArenaFolder
from dynamo_gpu_ft.cli.demo.processes import Process
from dynamo_gpu_ft.cli.demo.progress import Phase
from dynamo_gpu_ft.cli.demo.prompts import make_prompts
from dynamo_gpu_ft.errors import GpuFtError


def test_descendants_are_found_by_title_and_ended() -> None:
    child = subprocess.Popen(["VLLM::EngineCore (x) ) y", "1000"], executable="/bin/sleep")
    (found,) = [
        process for process in processes.descendants(os.getpid()) if process.pid == child.pid
    ]
    assert found.title() == "VLLM::EngineCore (x) ) y 1000"
    assert found.running()
    assert processes.end_all([found]) == []
    assert not found.running()
    child.wait()


def test_a_pid_that_is_used_again_is_not_hit() -> None:
    child = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        (found,) = [p for p in processes.descendants(os.getpid()) if p.pid == child.pid]
        former = Process(pid=found.pid, parent=found.parent, started=found.started - 1)
        assert not former.running()
        assert not processes.kill(former)
        assert child.poll() is None
        assert processes.kill(found, signal.SIGTERM)
        assert child.wait(timeout=10) == -signal.SIGTERM
        assert not processes.kill(found)
    finally:
        child.kill()
        child.wait()


def test_a_zombie_does_not_count_as_running() -> None:
    child = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    (found,) = [p for p in processes.descendants(os.getpid()) if p.pid == child.pid]
    assert not found.running()
    assert found.title() == ""
    child.wait()


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tokenizers")
    from dynamo_gpu_ft.cli.models import tiny

    folder = tmp_path_factory.mktemp("tokenizer")
    tiny._write_tokenizer(folder)
    return folder


def test_prompts_are_exact_distinct_and_repeatable(tokenizer_folder: Path) -> None:
    prompts = make_prompts(tokenizer_folder, 4, 500, seed=1)
    assert [len(prompt) for prompt in prompts] == [500] * 4
    # No block of 32 tokens is shared, so no prefix cache can help one stream with another's KV.
    assert len({tuple(prompt[:32]) for prompt in prompts}) == 4
    assert make_prompts(tokenizer_folder, 4, 500, seed=1) == prompts
    assert make_prompts(tokenizer_folder, 4, 500, seed=2) != prompts


def test_prompts_that_cannot_be_made_say_what_would_work(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(GpuFtError, match="--prompt-tokens"):
        make_prompts(tokenizer_folder, 1, 5, seed=0)
    with pytest.raises(GpuFtError, match="fewer --streams"):
        make_prompts(tokenizer_folder, 1000, 100_000, seed=0)
    with pytest.raises(GpuFtError, match=r"tokenizer\.json"):
        make_prompts(tmp_path, 1, 500, seed=0)


def test_an_arena_folder_goes_with_its_block_and_what_a_killed_one_left_is_swept(
    tmp_path: Path,
) -> None:
    hold = """if True:
        import os, signal, sys
        from pathlib import Path
        from dynamo_gpu_ft.cli.demo.arena_folder import ArenaFolder
        with ArenaFolder(1, memory=Path(sys.argv[1])) as folder:
            print(folder.path, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run(
        [sys.executable, "-c", hold, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    left = Path(killed.stdout.strip())
    assert left.parent == tmp_path, killed.stderr
    assert left.is_dir()
    with ArenaFolder(1, memory=tmp_path) as first:
        assert not left.exists()
        assert first.in_memory
        assert first.path.stat().st_mode & 0o777 == 0o700
        with ArenaFolder(1, memory=tmp_path) as second:
            assert first.path.is_dir()
            assert second.path != first.path
        assert not second.path.exists()
    assert list(tmp_path.iterdir()) == []


def test_an_arena_that_does_not_fit_in_memory_goes_to_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_folder.tempfile, "tempdir", str(tmp_path))
    with ArenaFolder(1 << 60) as folder:
        assert not folder.in_memory
        assert folder.path.parent == tmp_path


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_at_start_and_end_only_when_little_happens() -> None:
    out = io.StringIO()
    with Phase("starting", out=out) as phase:
        for _ in range(1000):
            phase.tick("loading")
    lines = out.getvalue().splitlines()
    assert lines[0] == "[demo] starting ..."
    assert lines[-1].startswith("[demo] starting: done in ")
    assert len(lines) == 2


def test_a_failed_phase_says_so_and_lets_the_error_through() -> None:
    out = Terminal()
    with pytest.raises(ValueError, match="x"), Phase("starting", out=out):
        raise ValueError("x")
    assert "starting: failed after" in out.getvalue()


def test_the_machine_line_names_processor_cores_and_memory() -> None:
    line = machine.machine()
    assert "cores" in line
    assert "GiB" in line
    assert "\n" not in line


def test_a_folder_outside_a_checkout_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert machine.commit() == ""
