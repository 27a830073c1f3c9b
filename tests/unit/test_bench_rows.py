"""Rows of the benches: what counts as met, how they read, and what the entry point does with good and bad benches."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from bench import run
from bench.rows import Options, Row, markdown, row
from dynamo_gpu_ft.errors import GpuFtError


@pytest.mark.parametrize(
    ("ratio", "target", "met"), [(0.8, 0.8, True), (0.79, 0.8, False), (5.0, None, None)]
)
def test_a_target_is_met_from_its_value_on(
    ratio: float, target: float | None, met: bool | None
) -> None:
    assert row("a.b", 1.0, "s", ratio=ratio, target=target).met is met


def test_without_a_ratio_more_is_better() -> None:
    assert row("a.b", 6.0, "GB/s", baseline=8.0, target=0.8).ratio == 0.75
    assert row("a.b", 6.0, "GB/s").ratio is None


def test_a_missed_target_and_a_simulated_figure_stand_out_in_the_table() -> None:
    table = markdown(
        [
            row("a.slow", 1.23456, "GB/s", baseline=2.0, target=0.8, note="x|y"),
            Row("a.fake", 1.0, "s", simulated=True),
        ]
    )
    assert "| a.slow | 1.235 GB/s | 2 GB/s | 0.617 | ≥ 0.8 | **no** | x/y |" in table
    assert "a.fake (simulated)" in table


@pytest.fixture
def bench_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a bench of that name in place of the real ones."""
    monkeypatch.setattr(run, "QUESTIONS", {})
    monkeypatch.setattr(run.os, "getloadavg", lambda: (0.0, 0.0, 0.0))

    def put(name: str, *rows: Row, error: Exception | None = None) -> None:
        def measure(options: Options) -> list[Row]:
            options.say("measuring")
            if error is not None:
                raise error
            return list(rows)

        module = ModuleType(f"bench.{name}")
        module.measure = measure  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"bench.{name}", module)
        run.QUESTIONS[name] = f"what about {name}?"

    return put


def test_every_row_says_where_when_and_how(
    bench_with: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_with("fine", row("fine.x", 2.0, "s", baseline=1.0, target=1.0))
    file = tmp_path / "rows.json"
    assert run.main(["fine", "--json", str(file)]) == 0
    (found,) = json.loads(file.read_text())
    wanted = "name value unit baseline ratio target met simulated machine date commit command note"
    assert list(found) == wanted.split()
    assert found["command"] == "python bench/run.py fine"
    assert found["machine"]
    assert found["date"]
    assert "| fine.x | 2 s |" in capsys.readouterr().out


def test_a_busy_machine_is_written_into_every_row(
    bench_with: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench_with("fine", row("fine.x", 1.0, "s"))
    monkeypatch.setattr(run.os, "getloadavg", lambda: (10_000.0, 0.0, 0.0))
    file = tmp_path / "rows.json"
    assert run.main(["fine", "--json", str(file)]) == 0
    assert "busy machine: load 10000.0" in json.loads(file.read_text())[0]["command"]
    assert "expect noise" in capsys.readouterr().err


def test_a_missed_target_gives_status_1_and_keeps_its_row(
    bench_with: Callable[..., None], tmp_path: Path
) -> None:
    bench_with("slow", row("slow.x", 1.0, "s", baseline=2.0, target=1.0))
    file = tmp_path / "rows.json"
    assert run.main(["slow", "--json", str(file)]) == 1
    assert json.loads(file.read_text())[0]["met"] is False


def test_a_bench_that_cannot_run_gives_status_2_and_the_others_still_run(
    bench_with: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_with("broken", error=GpuFtError("no room"))
    bench_with("fine", row("fine.x", 1.0, "s"))
    file = tmp_path / "rows.json"
    assert run.main(["--json", str(file)]) == 2
    assert [found["name"] for found in json.loads(file.read_text())] == ["fine.x"]
    assert "bench broken could not run: no room" in capsys.readouterr().err


def test_an_unknown_bench_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["no_such"])
    assert ended.value.code == 2
    assert "arena_copy" in capsys.readouterr().err


def test_every_listed_bench_has_a_file_and_every_file_is_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run.main(["--list"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    with_measure = {
        path.stem
        for path in Path(run.__file__).parent.glob("*.py")
        if "\ndef measure(" in path.read_text()
    }
    assert listed == with_measure


def test_saved_results_are_json_markdown_and_a_plot_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    from bench import vllm_restore

    rows = [row(f"vllm_restore.ttft.{n}", 0.1, "s", baseline=0.3, ratio=3.0) for n in (256, 1024)]
    monkeypatch.setattr(vllm_restore, "measure", lambda options: rows)
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    assert run.main(["vllm_restore", "--save"]) == 0
    assert json.loads((tmp_path / "vllm_restore.json").read_text())[1]["ratio"] == 3.0
    assert "![" in (tmp_path / "vllm_restore.md").read_text()
    assert (tmp_path / "vllm_restore.png").read_bytes().startswith(b"\x89PNG")
