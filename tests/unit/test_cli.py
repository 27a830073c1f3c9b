"""The command line: which commands there are, their exit codes, and that a missing part is answered and not thrown."""

import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import dynamo_gpu_ft
from dynamo_gpu_ft.cli import main as cli
from dynamo_gpu_ft.cli.progress import tracked
from dynamo_gpu_ft.cli.render import as_json, columns
from dynamo_gpu_ft.errors import ArenaError


def command(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Puts a command of the test's own in the place of `inspect`."""
    module = types.SimpleNamespace(add_arguments=lambda parser: None, run=run)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)


def test_the_module_and_the_version_option_name_the_version() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "dynamo_gpu_ft", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0
    assert answer.stdout.strip() == f"dynamo-gpu-ft {dynamo_gpu_ft.__version__}"


def test_help_lists_every_command_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        cli.main(["--help"])
    assert leave.value.code == 0
    text = capsys.readouterr().out
    for name in (*cli.COMMANDS, "arena_bytes", "DYN_GPU_FT_"):
        assert name in text


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["inspect", "--no-such-option"]])
def test_a_call_that_names_nothing_runnable_could_not_run(arguments: list[str]) -> None:
    try:
        status: object = cli.main(arguments)
    except SystemExit as leave:
        status = leave.code
    assert status == 2


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_commands_answer_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    command(monkeypatch, lambda args: status)
    assert cli.main(["inspect"]) == status


def test_an_error_of_ours_is_one_message_and_could_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        raise ArenaError("no arena", remedy="make one")

    command(monkeypatch, run)
    assert cli.main(["inspect"]) == 2
    assert capsys.readouterr().err == "dynamo-gpu-ft inspect: no arena. Try: make one\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [(ImportError("no vllm"), 2), (ValueError("bug"), 2), (KeyboardInterrupt(), 130)],
)
def test_any_other_end_has_its_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    def run(args: object) -> int:
        raise error

    command(monkeypatch, run)
    assert cli.main(["inspect"]) == status


def test_a_reader_that_goes_away_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    answer = subprocess.run(
        [sys.executable, "-m", "dynamo_gpu_ft", "doctor"],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert answer.returncode == 0
    assert "Traceback" not in answer.stderr


def test_serve_hands_its_arguments_on_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    command(monkeypatch, lambda argv: seen.append(argv) or 0)
    assert cli.main(["serve", "model", "--help", "--tensor-parallel-size", "2"]) == 0
    assert seen == [["model", "--help", "--tensor-parallel-size", "2"]]


def test_columns_are_aligned_and_numbers_stand_right() -> None:
    text = columns(["state", "n"], [["sealed", 7], ["writing", 1024]])
    assert text.splitlines() == ["  state       n", "  sealed      7", "  writing  1024"]


def test_json_shows_bytes_and_paths_as_text() -> None:
    assert json.loads(as_json({"a": b"\x01", "b": Path("/x")})) == {"a": "01", "b": "/x"}


def test_progress_is_silent_for_two_seconds_and_then_speaks_now_and_then() -> None:
    out, now = io.StringIO(), iter(range(1000))
    assert list(tracked(range(6), 6, "reading", out=out, clock=lambda: float(next(now)))) == list(
        range(6)
    )
    assert out.getvalue().splitlines() == [
        "reading: 2/6, about 4 s left",
        "reading: 4/6, about 2 s left",
        "reading: 6/6, about 0 s left",
    ]
