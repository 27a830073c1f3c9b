"""The metrics: one table, a recorder that is free until started, and ports that never stop an engine."""

import logging
import multiprocessing
import socket
import typing
import urllib.request
from collections.abc import Iterator

import pytest

from dynamo_gpu_ft import __version__
from dynamo_gpu_ft.events import (
    EngineDied,
    EngineReady,
    EventStream,
    GroupRecovered,
    MemberDied,
    NotProtectedEvent,
    Recovered,
    RecoveryFailedEvent,
    RequestResumed,
    StateChanged,
    StepDone,
)
from dynamo_gpu_ft.metrics import TABLE, Recorder, listener, metrics, port_of
from dynamo_gpu_ft.metrics.table import Counter, Gauge, Histogram, markdown_table


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int) -> dict[str, float]:
    """Series of one port as {name{labels}: value}."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.stop()


def test_before_start_recording_does_nothing_and_imports_nothing() -> None:
    recorder = Recorder()
    recorder.add("snapshot_bytes_total", 5)
    recorder.set("protected", 1)
    recorder.observe("recovery_duration_seconds", 1, step="reap")
    assert recorder.registry is None


def test_with_port_zero_nothing_is_started(recorder: Recorder) -> None:
    assert recorder.start("front", port=0) is None
    recorder.add("restored_tokens_total", 5)
    assert recorder.registry is None


def test_what_is_recorded_can_be_read_from_the_port(recorder: Recorder) -> None:
    port = recorder.start("worker", port=free_port(), digest="xxh3_128")
    assert port is not None
    recorder.add("snapshot_bytes_total", 4096)
    recorder.add("seal_failures_total", reason="fenced")
    recorder.set("snapshot_lag_tokens", 7)
    series = scrape(port)
    assert series["dynamo_gpu_ft_snapshot_bytes_total"] == 4096
    assert series['dynamo_gpu_ft_seal_failures_total{reason="fenced"}'] == 1
    assert series["dynamo_gpu_ft_snapshot_lag_tokens"] == 7
    info = next(name for name in series if name.startswith("dynamo_gpu_ft_info"))
    assert 'digest="xxh3_128"' in info
    assert __version__ in info
    assert not any(name.startswith("dynamo_gpu_ft_recoveries") for name in series), "not a worker's"


def test_a_port_in_use_is_reported_once_and_is_never_fatal(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[object] = []
    logger = logging.getLogger("dynamo_gpu_ft.metrics")
    monkeypatch.setattr(logger, "warning", lambda *parts: warnings.append(parts))
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        taken = occupant.getsockname()[1]
        assert recorder.start("front", port=taken) is None
        assert recorder.start("front", port=taken) is None
    recorder.set("open_requests", 3)
    assert recorder.registry.get_sample_value("dynamo_gpu_ft_open_requests") == 3
    assert len(warnings) == 1


def test_a_wrong_name_or_label_never_reaches_the_caller(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[object] = []
    logger = logging.getLogger("dynamo_gpu_ft.metrics")
    monkeypatch.setattr(logger, "warning", lambda *parts: warnings.append(parts))
    recorder.start("front", port=free_port())
    for _ in range(3):
        recorder.add("recoveries_total", colour="red")
        recorder.add("no_such_total")  # type: ignore[arg-type]
    assert len(warnings) == 2


def test_a_second_start_keeps_the_first_port(recorder: Recorder) -> None:
    port = recorder.start("front", port=free_port())
    assert recorder.start("front", port=free_port()) == port


def _child_port(recorder: Recorder, port: int, answer: "multiprocessing.Queue[object]") -> None:
    answer.put((recorder.start("worker", port=port), recorder.registry is not None))


def test_a_forked_child_starts_its_own(recorder: Recorder) -> None:
    recorder.start("front", port=free_port())
    context, mine = multiprocessing.get_context("fork"), free_port()
    answer: multiprocessing.Queue[object] = context.Queue()
    child = context.Process(target=_child_port, args=(recorder, mine, answer))
    child.start()
    assert answer.get(timeout=30) == (mine, True)
    child.join(30)
    assert child.exitcode == 0


@pytest.mark.parametrize(
    ("process", "rank", "standalone", "port"),
    [
        ("front", 0, False, 9400),
        ("worker", 0, False, 9401),
        ("worker", 3, True, 9404),
        ("scheduler", 0, False, 0),
        ("scheduler", 0, True, 9400),
    ],
)
def test_processes_of_one_engine_have_ports_of_their_own(
    process: typing.Any, rank: int, standalone: bool, port: int
) -> None:
    assert port_of(process, 9400, rank=rank, standalone=standalone) == port
    assert port_of(process, 0, rank=rank, standalone=standalone) == 0


def test_events_become_metrics(recorder: Recorder) -> None:
    recorder.start("front", port=free_port())
    stream = EventStream(listener(recorder))
    stream.emit(EngineReady(epoch=1))
    stream.emit(EngineDied(epoch=1, reason="signal 9", open_requests=2))
    stream.emit(StepDone(epoch=2, step="reap", duration_s=0.2, ok=True))
    stream.emit(
        RequestResumed(
            epoch=2, request_id="a", tokens_before=9, tokens_restored=8, tokens_recomputed=1
        )
    )
    stream.emit(Recovered(epoch=2, duration_s=3, requests=2))
    read = recorder.registry.get_sample_value
    assert read("dynamo_gpu_ft_protected") == 1
    assert read("dynamo_gpu_ft_open_requests") == 2
    assert read("dynamo_gpu_ft_restored_tokens_total") == 8
    assert read("dynamo_gpu_ft_recomputed_tokens_total") == 1
    assert read("dynamo_gpu_ft_recoveries_total", {"outcome": "serving"}) == 1
    assert read("dynamo_gpu_ft_recovery_duration_seconds_sum", {"step": "all"}) == 3
    stream.emit(MemberDied(engine="e", epoch=2, shard=1, reason="exit"))
    moved = StateChanged(
        engine="e", epoch=2, former="serving", happening="lost", state="suspect", lost=(1,)
    )
    stream.emit(moved)
    stream.emit(
        GroupRecovered(engine="e", epoch=4, kind="respawn", outcome="serving", duration_s=0.5)
    )
    assert read("dynamo_gpu_ft_members_died_total", {"shard": "1"}) == 1
    assert read("dynamo_gpu_ft_group_state", {"state": "suspect"}) == 1
    assert read("dynamo_gpu_ft_group_state", {"state": "serving"}) == 0
    assert read("dynamo_gpu_ft_group_epoch") == 4
    labels = {"kind": "respawn", "outcome": "serving"}
    assert read("dynamo_gpu_ft_group_recoveries_total", labels) == 1
    assert read("dynamo_gpu_ft_recovery_duration_seconds_sum", {"step": "in_place"}) == 0.5
    stream.emit(RecoveryFailedEvent(reason="x"))
    stream.emit(NotProtectedEvent(reason="x"))
    assert read("dynamo_gpu_ft_recoveries_total", {"outcome": "failed"}) == 1
    assert read("dynamo_gpu_ft_protected") == 0


def test_the_names_the_type_checker_knows_are_those_of_the_table() -> None:
    for kind, names in (("counter", Counter), ("gauge", Gauge), ("histogram", Histogram)):
        assert {row.name for row in TABLE if row.kind == kind} == set(typing.get_args(names))


def test_names_follow_the_convention() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert row.name.endswith("_total") == (row.kind == "counter")
        assert not row.name.endswith(("_time", "_size"))
        assert row.processes
        assert row.help
        assert row.full_name in markdown_table()


def test_a_process_has_one_recorder() -> None:
    assert metrics() is metrics()
