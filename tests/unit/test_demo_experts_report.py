"""The report of `demo --fault expert`: what passes, what does not, and what a person sees."""

from __future__ import annotations

from pathlib import Path

from dynamo_gpu_ft.cli.demo import experts_report
from dynamo_gpu_ft.cli.demo.experts import Played, Round, Setup, Stream
from dynamo_gpu_ft.cli.demo.report import FAIL, PASS, Where
from dynamo_gpu_ft.events import GroupRecovered, MemberDied

WHERE = Where(engine="", model="tiny-moe", machine="2 cores", date="2026-01-02", commit="abc")


def played(**changes: Round) -> Played:
    setup = Setup(Path("m"), ranks=4, streams=2, prompt_tokens=8, max_tokens=3, seed=0)

    def round_(*, pause: float, masked: int = 0) -> Round:
        streams = [Stream([1, 2, 3], [9.0, 10.0 + pause, 10.1 + pause], masked) for _ in range(2)]
        told = [
            (10.01, MemberDied(engine="e", epoch=1, shard=2, reason="its process is gone")),
            (10.05, GroupRecovered(engine="e", epoch=3, kind="degrade", outcome="serving", duration_s=0.04)),
        ]  # fmt: skip
        rows = {0: 10, 1: 12, 2: 9, 3: 11}
        return Round(
            streams, 10.0, 2, 0.0, told, rows, {**rows, 2: 0}, 10.06, 10.5, kept=3
        )  # fmt: skip

    found = {
        "reference": Round([Stream([1, 2, 3]), Stream([1, 2, 3])]),
        "copies": round_(pause=0.06),
        "lean": round_(pause=0.07, masked=1),
        "lean_after": Round([Stream([1, 2, 3]), Stream([1, 2, 3])]),
        "restart": round_(pause=3.0),
    }
    return Played(setup, **{**found, **changes}, experts=8, slots=(4, 3))


def test_equal_tokens_pass_and_the_screen_shows_times_load_and_verdict() -> None:
    result = experts_report.judge(WHERE, played())
    assert result["verdict"] == PASS
    text = experts_report.render(result)
    assert "noticed: its process is gone" in text
    assert "rank 2" in text
    assert text.splitlines()[-1].startswith("VERDICT: PASS: 2 of 2 streams identical")
    assert "50 times sooner" in text


def test_one_other_token_or_an_uncovered_expert_with_copies_fails() -> None:
    other = played()
    other.copies.streams[1].tokens = [1, 2, 4]
    result = experts_report.judge(WHERE, other)
    assert result["verdict"] == FAIL
    assert "1 streams differ" in result["problems"][0]
    assert "VERDICT: FAIL" in experts_report.render(result)
    masked = played()
    masked.copies.streams[0].masked = 1
    assert experts_report.judge(WHERE, masked)["verdict"] == FAIL


def test_tokens_of_the_masked_window_may_differ_but_not_those_behind_the_refill() -> None:
    window = played()
    window.lean.streams[0].tokens = [1, 5, 6]
    assert experts_report.judge(WHERE, window)["verdict"] == PASS
    window.lean_after.streams[0].tokens = [1, 5, 6]
    assert experts_report.judge(WHERE, window)["verdict"] == FAIL
