"""The events: their form on disk, and a stream whose listeners cannot hurt the emitter."""

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from dynamo_gpu_ft.events import (
    EngineDied,
    EngineReady,
    Event,
    EventStream,
    GroupRecovered,
    Journal,
    MemberDied,
    NotProtectedEvent,
    Planned,
    Recovered,
    RecoveryFailedEvent,
    RequestResumed,
    StateChanged,
    StepDone,
    decode,
    encode,
    log_event,
)

ALL: list[Event] = [
    EngineReady(epoch=1, pids=(10, 11)),
    EngineDied(epoch=1, reason="EngineCore exited with signal 9", open_requests=4),
    StepDone(epoch=2, step="reap", duration_s=0.25, ok=True),
    RequestResumed(
        epoch=2, request_id="a", tokens_before=9, tokens_restored=8, tokens_recomputed=1
    ),
    Recovered(epoch=2, duration_s=4.5, requests=4),
    RecoveryFailedEvent(reason="three restarts within a minute"),
    NotProtectedEvent(reason="no room for an arena"),
    MemberDied(engine="e", epoch=2, shard=1, reason="exit"),
    StateChanged(
        engine="e", epoch=2, former="suspect", happening="done", state="quiesce", lost=(1,)
    ),
    Planned(engine="e", epoch=2, kind="substitute", lost=(1,), ranks=(0, 1), cost_s=1.5),
    GroupRecovered(engine="e", epoch=4, kind="substitute", outcome="serving", duration_s=0.4),
]


@pytest.mark.parametrize("event", ALL, ids=lambda event: type(event).__name__)
def test_an_event_is_one_line_of_json_and_comes_back_equal(event: Event) -> None:
    line = encode(event)
    assert b"\n" not in line
    assert msgspec.json.decode(line)["event"]
    assert decode(line) == event


def test_a_line_that_is_no_event_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode('{"event": "engine_ready", "epoch": "one"}')


def test_every_listener_hears_every_event_in_order_though_one_always_fails() -> None:
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("no")

    stream = EventStream(broken)
    stream.add(heard.append)
    for event in ALL:
        stream.emit(event)
    assert heard == ALL


def test_a_failing_listener_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[object] = []
    monkeypatch.setattr(
        logging.getLogger("dynamo_gpu_ft.events"), "exception", lambda *parts: reports.append(parts)
    )
    stream = EventStream(lambda event: 1 // 0)
    for event in ALL:
        stream.emit(event)
    assert len(reports) == 1


def test_bad_news_is_a_warning_and_good_news_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []
    logger = logging.getLogger("dynamo_gpu_ft.events")
    monkeypatch.setattr(logger, "isEnabledFor", lambda level: True)
    monkeypatch.setattr(logger, "log", lambda level, *parts: levels.append(level))
    for event in (ALL[0], ALL[1], ALL[2], StepDone(epoch=2, step="x", duration_s=1, ok=False)):
        log_event(event)
    assert levels == [logging.INFO, logging.WARNING, logging.INFO, logging.WARNING]


def test_the_journal_is_private_and_holds_one_event_per_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path))
    for event in ALL:
        journal(event)
    journal.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [decode(line) for line in path.read_bytes().splitlines()] == ALL


def test_a_journal_is_continued_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    code = (
        "import sys; from dynamo_gpu_ft.events import *;"
        "Journal(sys.argv[1])(EngineReady(epoch=int(sys.argv[2])))"
    )
    for epoch in (1, 2):
        subprocess.run([sys.executable, "-c", code, str(path), str(epoch)], check=True, timeout=60)
    assert [decode(line).epoch for line in path.read_bytes().splitlines()] == [1, 2]  # type: ignore[union-attr]


def test_a_line_cut_short_by_a_full_disk_spoils_no_other_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path))
    with monkeypatch.context() as full_disk:
        full_disk.setattr(os, "write", lambda fd, data, write=os.write: write(fd, data[:10]))
        with pytest.raises(OSError, match="wrote 10 of"):
            journal(ALL[0])
    journal(ALL[1])
    journal.close()
    assert decode(path.read_bytes().splitlines()[1]) == ALL[1]


def test_a_journal_that_cannot_be_opened_says_so_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        Journal(str(tmp_path / "nowhere" / "journal"))
