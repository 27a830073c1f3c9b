"""Classes of steps, files of an engine start, and the native watch's records as readings."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dynamo_gpu_ft import native
from dynamo_gpu_ft.health import heartbeat
from dynamo_gpu_ft.health.readings import Source, State


def test_steps_are_compared_with_steps_of_as_many_tokens() -> None:
    classes = [heartbeat.step_class(tokens) for tokens in (0, 1, 2, 3, 4, 8, 2048, 2**40)]
    assert classes == [0, 1, 2, 2, 3, 4, 12, heartbeat.SAMPLE - 1]
    assert heartbeat.step_class(5, encoder=True) == heartbeat.ENCODER
    assert heartbeat.step_class(-3) == 0


def record(what: str, pid: int = 77, **facts: str) -> Any:
    return SimpleNamespace(what=what, at_ns=2_500_000_000, pid=pid, facts=facts)


def test_a_hang_is_a_failed_reading_of_its_shard() -> None:
    told = heartbeat.reading_of(
        record("hang", shard="1", cause="step", elapsed_ms="830", limit_ms="800", laggards="0"),
        clock=lambda: 5.0,
    )
    assert (told.at, told.time, told.shard, told.pid) == (2.5, 5.0, 1, 77)
    assert (told.source, told.probe, told.state) == (Source.HEARTBEAT, "step", State.FAILED)
    assert told.text == (
        "a step takes longer than it ever does: 830 ms, the limit is 800 ms; behind: shard 0"
    )


@pytest.mark.parametrize(
    ("what", "state"),
    [
        ("fine", State.HEALTHY),
        ("slow", State.DEGRADED),
        ("gone", State.FAILED),
        ("?", State.UNKNOWN),
    ],
)
def test_every_word_of_the_watch_has_a_state_and_an_unknown_one_is_not_healthy(
    what: str, state: State
) -> None:
    assert heartbeat.reading_of(record(what, pid=-1)).state is state


def test_files_that_a_killed_server_left_are_removed_and_held_or_new_ones_stay(
    tmp_path: Path,
) -> None:
    def made(tag: str, age_s: float) -> str:
        beats, health = heartbeat.files(str(tmp_path), tag)
        native.load().Beat(beats, rank=0, ranks=1)
        Path(health).touch()
        os.utime(beats, (time.time() - age_s,) * 2)
        return beats

    old, new, held = made("old", 3600), made("new", 0), made("held", 3600)
    (tmp_path / "dynamo_gpu_ft-other.arena").touch()
    descriptor = heartbeat.hold(held)
    assert heartbeat.remove_stale(str(tmp_path)) == [old]
    assert {path.name for path in tmp_path.iterdir()} == {
        *(Path(path).name for path in (new, held)),
        "dynamo_gpu_ft-new.health", "dynamo_gpu_ft-held.health", "dynamo_gpu_ft-other.arena",
    }  # fmt: skip
    os.close(descriptor)
    assert heartbeat.remove_stale(str(tmp_path)) == [held]
    assert heartbeat.remove_stale(str(tmp_path / "absent")) == []


def test_the_last_one_to_let_go_removes_the_file(tmp_path: Path) -> None:
    beats, _ = heartbeat.files(str(tmp_path), "tag")
    native.load().make_heartbeat_file(beats, 2)
    first, second = heartbeat.hold(beats), heartbeat.hold(beats)
    heartbeat.let_go(beats, first)
    assert os.path.exists(beats)
    heartbeat.let_go(beats, second)
    assert not os.path.exists(beats)
