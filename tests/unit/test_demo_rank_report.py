"""Judging `demo --fault rank`: who must stay, what must be equal, and what the screen says."""

from typing import Any

from test_demo_report import SCENE, WHERE, stream, told

from dynamo_gpu_ft.cli.demo import rank_report
from dynamo_gpu_ft.cli.demo.processes import Process
from dynamo_gpu_ft.cli.demo.rank import Played, Round
from dynamo_gpu_ft.cli.demo.scenario import Killed
from dynamo_gpu_ft.events import (
    EngineDied,
    Event,
    GroupRecovered,
    MemberDied,
    Planned,
    Recovered,
    StepDone,
)

KILLED_AT, WALL = 103.5, 1_000_003.5
CORE, ZERO, ONE, NEW = (Process(pid, 1, pid) for pid in (1, 2, 3, 4))
IN_PLACE: list[Event] = [
    MemberDied(time=WALL + 0.1, engine="e", epoch=1, shard=1, reason="killed by signal 9"),
    StepDone(time=WALL + 0.2, epoch=1, step="quiesce", duration_s=0.1, ok=True),
    Planned(time=WALL + 0.2, engine="e", epoch=1, kind="substitute", lost=(1,), ranks=(0, 1), cost_s=1),
    StepDone(time=WALL + 0.5, epoch=2, step="rebuild", duration_s=0.3, ok=True),
    GroupRecovered(time=WALL + 0.6, engine="e", epoch=3, kind="substitute", outcome="serving", duration_s=0.5),
    told("b0", 96, 7),
    told("b1", 64, 39),
]  # fmt: skip
WHOLE: list[Event] = [
    EngineDied(time=WALL + 0.2, epoch=1, reason="killed", open_requests=2),
    Recovered(time=WALL + 20, epoch=2, duration_s=19.8, requests=2),
]
TOKENS = ([1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4])


def played(**changes: Any) -> Played:
    def round_(name: str, journal: list[Event], after: list[Process]) -> Round:
        streams = [stream(f"{name}{i}", tokens) for i, tokens in enumerate(TOKENS)]
        return Round(Killed(streams, [3], KILLED_AT, WALL), journal, [CORE, ZERO, ONE], after)

    base: dict[str, Any] = {
        "reference": [stream(f"a{i}", tokens) for i, tokens in enumerate(TOKENS)],
        "rank": round_("b", IN_PLACE, [CORE, ZERO, NEW]),
        "whole": round_("c", WHOLE, [NEW]),
        "shard": 1,
        "standbys": 2,
    }
    return Played(**{**base, **changes})


def test_a_recovery_in_place_passes_and_its_screen_has_the_timeline_and_the_table() -> None:
    result = rank_report.judge(SCENE, WHERE, played())
    assert (result["verdict"], result["problems"]) == ("pass", [])
    one, whole = result["one_worker"], result["whole_engine"]
    assert (one["noticed_s"], one["serving_s"], one["replaced"]) == (0.1, 0.6, 1)
    assert (one["tokens_restored"], one["tokens_recomputed"]) == (160, 46)
    assert (whole["serving_s"], whole["replaced"]) == (20.0, 3)
    screen = rank_report.render(result)
    assert "0.10 s  noticed: killed by signal 9" in screen
    assert "plan: substitute, a standby takes its place" in screen
    assert "1 of 3" in screen
    assert screen.splitlines()[-1].startswith("VERDICT: PASS: 2 of 2 streams identical")


def test_every_kill_of_a_series_is_judged_and_told() -> None:
    series = played()
    series.more = [played().rank, played().rank]
    result = rank_report.judge(SCENE, WHERE, series)
    assert [kill["identical"] for kill in result["kills"]] == [2, 2, 2]
    assert "3 kills of either worker in turn" in rank_report.render(result)
    assert "6 of 6 streams identical" in rank_report.render(result)
    series.more[1].after = [CORE, NEW]
    assert rank_report.judge(SCENE, WHERE, series)["verdict"] == "fail"


def test_a_second_replaced_process_fails() -> None:
    broken = played()
    broken.rank.after = [CORE, NEW]
    result = rank_report.judge(SCENE, WHERE, broken)
    assert result["verdict"] == "fail"
    assert "2 processes were replaced for one lost worker" in rank_report.render(result)


def test_a_stream_that_differs_and_a_recovery_that_was_a_restart_fail() -> None:
    broken = played()
    broken.rank.killed.streams[1] = stream("b1", [9, 8, 7, 0, 0, 0])
    broken.rank.journal[:] = WHOLE
    problems = rank_report.judge(SCENE, WHERE, broken)["problems"]
    assert problems == ["one worker: stream 2 differs", "the worker was not replaced in place"]
