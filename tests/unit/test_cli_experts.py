"""`dynamo-gpu-ft experts`: plan, check and simulate end to end, with the exit codes and the answers of false and torn files."""

import json
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.cli.main import main
from dynamo_gpu_ft.experts.base import Placement
from dynamo_gpu_ft.experts.spread import spread

SMALL = ["--layers", "3", "--experts", "16", "--ranks", "8", "--node", "2", "--tray", "1", "--redundant", "24"]  # fmt: skip


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["experts", *arguments])
    return code, capsys.readouterr().out


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    file = tmp_path / "plan.json"
    code, _ = said(capsys, "plan", *SMALL, "--domain", "node", "--to", str(file))
    assert code == 0
    return file


def test_a_plan_is_told_checked_and_survives_what_it_says(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, "check", str(plan), "--json")
    facts = json.loads(text)
    assert (code, facts["true"]) == (0, True)
    assert facts["survives_one_rank"] == [8, 8]
    assert facts["survives_domains"]["node"] == [4, 4]
    for kill in ("rank:0", "rank:7", "node:1"):
        code, text = said(capsys, "simulate", str(plan), "--kill", kill, "--json")
        assert code == 0
        assert json.loads(text)["placements"]["dynamo_gpu_ft"]["lost_experts"] == 0
    code, text = said(capsys, "simulate", str(plan), "--kill", "rank:2")
    assert code == 0
    assert "after the loss" in text
    assert "x" in text


def test_a_loss_is_told_in_four_stages_and_beside_eplb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = str(tmp_path / "skewed.json")
    assert said(capsys, "plan", *SMALL, "--domain", "node", "--alpha", "1.5", "--to", plan)[0] == 0
    wish = ["simulate", plan, "--kill", "rank:3", "--beside", "eplb", "--expert-bytes", "1KiB"]
    code, text = said(capsys, *wish, "--json")
    assert code == 0
    rows = json.loads(text)["placements"]
    for row in rows.values():
        assert [s["stage"] for s in row["stages"]] == ["before", "loss", "repair", "rebalance"]
        assert row["stages"][0]["bytes"] == row["stages"][1]["bytes"] == 0
    ours, eplb = rows["dynamo_gpu_ft"], rows["eplb"]
    assert [s["survives_one_rank"] for s in ours["stages"]][::3] == [[8, 8], [7, 7]]
    assert ours["stages"][1]["survives_one_rank"][0] < 7
    assert ours["missing_copies"] == 0
    assert ours["balance_rebalanced"] > ours["balance_after_loss"] == ours["balance_repaired"]
    assert ours["bytes_repaired"] == 0 < ours["bytes_rebalanced"]
    assert ours["steps"] > 0
    assert eplb["lost_experts"] > ours["lost_experts"] == 0
    assert eplb["bytes_repaired"] > 0
    assert eplb["bytes_rebalanced"] > ours["bytes_rebalanced"]
    code, text = said(capsys, *wish)
    assert code == 0
    for word in ("before", "after the loss", "after the repair", "after rebalancing", "eplb", "7 of 7"):  # fmt: skip
        assert word in text


def test_a_budget_is_kept_and_what_it_leaves_is_told(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wish = ["simulate", str(plan), "--kill", "rank:3", "--expert-bytes", "1KiB", "--budget", "5KiB"]
    row = json.loads(said(capsys, *wish, "--json")[1])["placements"]["dynamo_gpu_ft"]
    assert 0 < row["bytes_repaired"] + row["bytes_rebalanced"] <= 5 << 10
    assert row["missing_copies"] > 0
    assert f"leaves {row['missing_copies']} experts" in said(capsys, *wish)[1]


def test_a_certificate_that_promises_too_much_is_found_false(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[str, Any] = json.loads(plan.read_bytes())
    told["plan"]["certificate"]["two"][0] = told["plan"]["certificate"]["two"][1]
    told["plan"]["certificate"]["copies"][1] += 1
    plan.write_text(json.dumps(told))
    code, text = said(capsys, "check", str(plan))
    assert code == 1
    assert "false" in text


def test_a_loss_beyond_the_promise_is_an_exit_code_and_a_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "bare.json")
    bare = ["--layers", "2", "--experts", "16", "--ranks", "8", "--redundant", "0", "--mode", "refill", "--losses", "0"]  # fmt: skip
    assert said(capsys, "plan", *bare, "--to", file)[0] == 0
    code, text = said(capsys, "simulate", file, "--kill", "rank:1", "--expert-bytes", "1KiB", "--json")  # fmt: skip
    story = json.loads(text)
    row = story["placements"]["dynamo_gpu_ft"]
    assert code == 1
    assert (row["lost_experts"], row["bytes"]) == (4, 4096)
    assert 0 < row["lost_tokens_percent"] < 100
    assert "fewer" in story["not_repaired"] or "slots" in story["not_repaired"]


def test_what_cannot_be_planned_or_read_is_two_with_a_way_out(
    tmp_path: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert main(["experts", *arguments]) == 2
        return capsys.readouterr().err

    assert "extra slots cannot survive" in refused("plan", "--experts", "16", "--layers", "1", "--ranks", "8", "--redundant", "8")  # fmt: skip
    assert "--redundant 8" in refused("plan", "--experts", "16", "--ranks", "8", "--redundant", "3")
    assert "rank:0 to rank:7" in refused("simulate", str(plan), "--kill", "rank:8")
    assert "cannot be read" in refused("check", str(tmp_path / "none.json"))
    (tmp_path / "torn.json").write_bytes(plan.read_bytes()[:-40])
    assert "cannot be read" in refused("check", str(tmp_path / "torn.json"))
    told = json.loads(plan.read_bytes())
    told["loads"].pop()
    (tmp_path / "other.json").write_text(json.dumps(told))
    assert "contradicts itself" in refused("check", str(tmp_path / "other.json"))


def test_the_plot_is_a_picture(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = plan.with_suffix(".png")
    code, text = said(capsys, "simulate", str(plan), "--kill", "node:0", "--plot", str(picture))
    assert code == 0
    assert str(picture) in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_tokens_are_shared_by_copies_and_what_has_none_is_lost() -> None:
    placement = Placement.of_rows([[0, 1, 0, 2]], experts=3, ranks=2)
    whole = spread(placement, [[10, 3, 5]])
    assert whole.tokens == ((8.0, 10.0),)
    assert whole.balance == (0.9,)
    left = spread(placement, [[10, 3, 5]], dead=[1])
    assert (left.tokens, left.lost, left.alive) == (((13.0, 0.0),), (5,), (0,))
    assert left.lost_share == 5 / 18
