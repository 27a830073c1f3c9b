"""Calls that hang, for real: a coordinator whose adapter or store ignores its deadline comes back in time all the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.events import EventStream, Journal
from dynamo_gpu_ft.recovery.group import journal
from dynamo_gpu_ft.recovery.group.coordinator import Coordinator
from dynamo_gpu_ft.recovery.group.plan import Policy
from dynamo_gpu_ft.recovery.group.side import Overrun, SideThread
from dynamo_gpu_ft.recovery.group.states import State
from dynamo_gpu_ft.sim.group import SimGroup

STUCK_S = 60.0  # nothing here may wait that long


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Set at the end, so that no thread stays inside a call."""
    event = threading.Event()
    yield event
    event.set()


def after(seconds: float) -> float:
    return time.monotonic() + seconds


def test_results_and_errors_come_back_from_one_thread_that_is_not_the_callers() -> None:
    side = SideThread("test")
    first = side.call("who", threading.get_ident, after(STUCK_S))
    assert first == side.call("who", threading.get_ident, after(STUCK_S)) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        side.call("wrong", lambda: 1 // 0, after(STUCK_S))
    with pytest.raises(SystemExit):
        side.call("exit", lambda: exit(3), after(STUCK_S))
    assert side.call("who", threading.get_ident, after(STUCK_S)) == first


def test_a_call_that_hangs_is_left_behind_and_its_thread_never_ends(
    release: threading.Event,
) -> None:
    side, late = SideThread("test"), []
    old = side.call("who", threading.current_thread, after(STUCK_S))

    def hang() -> None:
        release.wait(STUCK_S)
        late.append(threading.current_thread())

    with pytest.raises(Overrun, match="step"):
        side.call("step", hang, after(0.05))
    assert side.abandoned == ["step"]
    assert side.call("who", threading.current_thread, after(STUCK_S)) is not old
    release.set()
    end = after(STUCK_S)
    while not late and time.monotonic() < end:
        pass
    assert late == [old]
    old.join(0.2)
    assert old.is_alive(), "processes that it started may be tied to its life"


def led(
    group: SimGroup, tmp_path: Path, policy: Policy
) -> tuple[Coordinator, Callable[[], list[str]]]:
    path = str(tmp_path / "journal")
    coordinator = Coordinator(
        "e", group.shards, group, group.store, policy, EventStream(Journal(path))
    )
    group.state = lambda: coordinator.state.value
    coordinator.found(group.members())
    return coordinator, lambda: [
        event.state for event in journal.read(path) if isinstance(event, journal.StateChanged)
    ]


@pytest.mark.parametrize("step", ["lost", "standbys", "quiesce", "rebuild", "validate", "commit"])
def test_an_adapter_that_hangs_for_real_ends_in_failed_at_its_deadline(
    step: str, tmp_path: Path, release: threading.Event
) -> None:
    group = SimGroup(2)
    coordinator, states = led(group, tmp_path, Policy(step_s=0.1, recovery_s=10.0))
    real = getattr(group, step)

    def hang(*args: Any) -> Any:
        release.wait(STUCK_S)
        return real(*args)

    setattr(group, step, hang)
    began = time.monotonic()
    outcome = coordinator.recover({1: "exit"})
    assert outcome.state is State.FAILED
    assert f"{step} did not return in time" in outcome.reason
    assert time.monotonic() - began < 5.0
    assert group.abandoned == [outcome.reason]
    assert states()[-1] == "failed"


def test_an_adapter_whose_abandon_hangs_too_costs_no_more_than_the_deadline(
    tmp_path: Path, release: threading.Event
) -> None:
    group = SimGroup(2)
    coordinator, _ = led(group, tmp_path, Policy(step_s=0.1, recovery_s=2.0))
    group.quiesce = group.abandon = lambda *args: bool(release.wait(STUCK_S))  # type: ignore
    began = time.monotonic()
    outcome = coordinator.recover({1: "exit"})
    assert (outcome.state, outcome.superseded) == (State.FAILED, False)
    assert time.monotonic() - began < 2.5


def test_a_store_that_hangs_for_real_ends_in_failed_at_the_deadline(
    tmp_path: Path, release: threading.Event
) -> None:
    group = SimGroup(2)
    coordinator, _ = led(group, tmp_path, Policy(step_s=0.2, recovery_s=1.5))
    group.store.on_call = lambda name, moment: bool(release.wait(STUCK_S)) and None
    began = time.monotonic()
    outcome = coordinator.recover({1: "exit"})
    assert (outcome.state, "recovery_deadline_s" in outcome.reason) == (State.FAILED, True)
    assert time.monotonic() - began < 2.0


def test_the_journal_is_read_past_torn_lines_and_says_how_far_a_recovery_came(
    tmp_path: Path,
) -> None:
    group = SimGroup(3)
    coordinator, states = led(group, tmp_path, Policy())
    group.kill(2)
    assert coordinator.recover({2: "exit"}).state is State.SERVING
    path = tmp_path / "journal"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if b'"state":"validate"' in line)
    torn = b"".join(lines[: cut + 1]) + lines[cut + 1][:-9]
    path.write_bytes(b"\xff\x00 no event\n" + b'{"event":"of another version"}\n' + torn)
    stood = journal.standing("e", journal.read(str(path)))
    assert (stood.state, stood.lost, stood.unfinished) == (State.VALIDATE, (2,), True)
    assert len(stood.deaths[2]) == 1
    assert states()[-1] == "validate"
    path.write_bytes(torn + b"\n" + b"".join(lines[cut + 2 :]))
    assert not journal.standing("e", journal.read(str(path))).unfinished
    assert journal.standing("other", journal.read(str(path))).epoch == 0


def test_any_cut_of_a_journal_is_readable(tmp_path: Path) -> None:
    group = SimGroup(2)
    coordinator, _ = led(group, tmp_path, Policy())
    group.kill(0)
    coordinator.recover({0: "exit"})
    path = tmp_path / "journal"
    whole, cut_file = path.read_bytes(), tmp_path / "cut"
    complete = 0
    for cut in range(len(whole) + 1):
        cut_file.write_bytes(whole[:cut])
        events = list(journal.read(str(cut_file)))
        assert len(events) in (whole[:cut].count(b"\n"), whole[:cut].count(b"\n") + 1)
        complete = len(events)
    assert complete == whole.count(b"\n")
