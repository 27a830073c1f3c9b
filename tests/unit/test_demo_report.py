"""Judging the demo's runs: what passes, what fails, what is only noted, and what the last line says."""

from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft import events
from dynamo_gpu_ft.cli.demo import journal, report
from dynamo_gpu_ft.cli.demo.load import Ask, Stream
from dynamo_gpu_ft.cli.demo.scenario import Killed, Protected, Scene, Without

WHERE = report.Where(engine="e", model="m", machine="h", date="d", commit="c")
SCENE = Scene(
    model=Path(),
    prompts=[[1] * 100, [2] * 100],
    max_tokens=6,
    kill_at=3,
    dtype="float32",
    tp=1,
    block_size=32,
    port=0,
    arena_bytes=1,
    engine_args=(),
    folder=Path(),
)
KILLED_AT, WALL = 103.5, 1_000_003.5


def stream(name: str, tokens: list[int], *, finish: str | None = "length") -> Stream:
    """Tokens at seconds 101, 102, 103 and, after the kill at 103.5, from 110 on."""
    times = [101.0 + place if place < 3 else 107.0 + place for place in range(len(tokens))]
    return Stream(
        Ask(name, [1], 6),
        text="".join(f" {value}" for value in tokens),
        tokens=tokens,
        arrivals=[(when, place + 1) for place, when in enumerate(times)],
        finish_reason=finish,
        error=None if finish else "cut",
    )


def told(name: str, restored: int, recomputed: int) -> events.RequestResumed:
    return events.RequestResumed(
        epoch=2,
        request_id=f"cmpl-{name}-0-1a2b",
        tokens_before=restored + recomputed,
        tokens_restored=restored,
        tokens_recomputed=recomputed,
    )


REFERENCE = [stream("a0", [1, 2, 3, 4, 5, 6]), stream("a1", [9, 8, 7, 6, 5, 4])]
GOOD_EVENTS = [told("c0", 96, 7), told("c1", 64, 39)]


def judged(
    streams: list[Stream] | None = None,
    journal_: list[events.Event] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    good = [stream("c0", [1, 2, 3, 4, 5, 6]), stream("c1", [9, 8, 7, 6, 5, 4])]
    killed = Killed(streams or good, [1, 2], KILLED_AT, WALL)
    protected = Protected(killed, GOOD_EVENTS if journal_ is None else journal_, **changes)
    return report.judge(SCENE, WHERE, REFERENCE, None, protected)


def test_identical_streams_with_restored_kv_pass() -> None:
    result = judged()
    assert (result["verdict"], result["problems"], result["notes"]) == ("pass", [], [])
    assert result["streams"][0] == {
        "identical": True,
        "tokens_before_fault": 3,
        "tokens_restored": 96,
        "tokens_recomputed": 7,
        "gap_s": 7.0,
        "tokens": 6,
        "error": None,
    }
    last = report.render(result).splitlines()[-1]
    assert last.startswith("VERDICT: PASS: 2 of 2 streams identical")


def test_one_other_token_fails_and_its_place_is_named() -> None:
    streams = [stream("c0", [1, 2, 3, 4, 5, 6]), stream("c1", [9, 8, 7, 6, 0, 4])]
    result = judged(streams)
    assert result["verdict"] == "fail"
    assert result["problems"] == ["stream 2 differs from token 4 on, 1 after the kill"]
    assert [row["identical"] for row in result["streams"]] == [True, False]
    assert report.render(result).splitlines()[-1].startswith("VERDICT: FAIL: 1 of 2")


def test_equal_tokens_with_other_text_are_not_identical() -> None:
    other = stream("c1", [9, 8, 7, 6, 5, 4])
    other.text += " "
    assert judged([stream("c0", [1, 2, 3, 4, 5, 6]), other])["verdict"] == "fail"


@pytest.mark.parametrize("tokens", [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]])
def test_a_stream_that_ended_with_an_error_fails_whatever_it_delivered(tokens: list[int]) -> None:
    result = judged([stream("c0", tokens, finish=None), stream("c1", [9, 8, 7, 6, 5, 4])])
    assert result["problems"] == ["stream 1 ended early: cut"]
    assert not result["streams"][0]["identical"]


def test_a_stream_the_journal_does_not_name_fails() -> None:
    result = judged(journal_=[told("c0", 96, 7)])
    assert result["problems"] == ["stream 2 is not named in the server's journal"]
    assert result["streams"][1]["tokens_restored"] is None
    assert "?" in report.render(result)


def test_identical_streams_without_any_restored_kv_fail() -> None:
    result = judged(journal_=[told("c0", 0, 103), told("c1", 0, 103)])
    assert result["verdict"] == "fail"
    assert "no KV was restored" in result["problems"]


@pytest.mark.parametrize(
    ("restored", "recomputed", "noted"),
    [
        (96, 7, False),
        (64, 39, False),
        (32, 71, True),
        (96, 0, False),
        (64, 32, False),
        (64, 64, True),
    ],
)
def test_recomputing_more_than_a_block_and_the_open_tail_is_noted(
    restored: int, recomputed: int, noted: bool
) -> None:
    result = judged(journal_=[told("c0", restored, recomputed), told("c1", 96, 7)])
    assert result["verdict"] == "pass"
    assert bool(result["notes"]) is noted


def test_an_arena_on_disk_is_noted() -> None:
    assert "on disk" in judged(in_memory=False)["notes"][0]


def test_two_resumptions_of_a_stream_are_added_up() -> None:
    found = journal.resumed([told("c0", 96, 7), told("c1", 1, 1), told("c0", 64, 2)], "c0")
    assert found == journal.Resumed(restored=160, recomputed=9)


def test_phases_come_in_order_and_from_the_journal() -> None:
    epoch = {"epoch": 2}
    lines: list[events.Event] = [
        events.EngineReady(epoch=1),
        events.EngineDied(epoch=1, reason="exit", open_requests=2, time=WALL + 0.25),
        events.StepDone(step="reap", duration_s=0.5, ok=True, **epoch),
        events.StepDone(step="start", duration_s=3.0, ok=False, **epoch),
        events.StepDone(step="start", duration_s=4.0, ok=True, **epoch),
        events.Recovered(duration_s=7.5, requests=2, time=WALL + 8.0, **epoch),
        events.StepDone(step="first_token", duration_s=0.1, ok=True, **epoch),
    ]
    found = journal.phases(lines, killed_at=WALL, last_first_token_at=WALL + 9.5)
    assert list(found.items()) == [
        ("notice", 0.25),
        ("reap", 0.5),
        ("start", 7.0),
        ("first_token", 1.5),
    ]


def test_a_journal_without_a_death_gives_no_phase_it_did_not_see() -> None:
    assert journal.phases([], killed_at=WALL, last_first_token_at=WALL) == {}


def test_a_torn_line_of_the_journal_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    good = events.encode(told("c0", 1, 2))
    path.write_bytes(
        good + b"\n" + good[:20] + b"\n" + b'{"event": "of the future"}\n' + good + b"\n"
    )
    assert [event.tokens_restored for event in journal.read(path) if isinstance(event, events.RequestResumed)] == [1, 1]  # fmt: skip
    assert journal.read(tmp_path / "missing") == []


def test_the_unprotected_part_counts_what_is_prefilled_again() -> None:
    lost = [stream("b0", [1, 2, 3], finish=None), stream("b1", [9, 8, 7], finish=None)]
    again = [stream("b0again", [4]), stream("b1again", [6])]
    for answer in again:
        answer.prompt_tokens, answer.cached_tokens = 103, 3
    without = Without(Killed(lost, [1], KILLED_AT, WALL), again, 40.0, {"engine_start": 39.0})
    result = report.judge(SCENE, WHERE, REFERENCE, without, None)
    assert result["without"]["streams_failed"] == 2
    assert result["without"]["tokens_recomputed"] == 200
    assert result["without"]["tokens_before_fault"] == [3, 3]
    assert "until every stream goes on   40.0 s" in report.render(result)
