"""The guard of driver calls: deadlines by call, what is stuck stays stuck, and nothing waits for it."""

from __future__ import annotations

import os
import threading
import time

import pytest

from dynamo_gpu_ft.health.guard import Guard, Outcome
from dynamo_gpu_ft.health.probes.status import DriverVersion
from dynamo_gpu_ft.health.readings import State


def test_work_is_done_in_a_daemon_thread_of_the_guard_and_its_result_comes_back() -> None:
    guard = Guard(1.0, "0")
    outcome, thread = guard.run(threading.current_thread)
    assert outcome is Outcome.DONE
    assert (thread.name, thread.daemon) == ("gft-guard-0", True)
    assert guard.run(threading.current_thread)[1] is thread
    guard.close()
    thread.join(5)
    assert not thread.is_alive()


def test_what_the_work_raises_is_raised_to_who_waits_and_the_guard_goes_on() -> None:
    guard = Guard(1.0)

    def fail() -> None:
        raise LookupError("nothing there")

    with pytest.raises(LookupError):
        guard.run(fail)
    assert guard.run(lambda: 7) == (Outcome.DONE, 7)


def test_a_call_past_its_deadline_is_stuck_for_ever_and_told_at_once() -> None:
    guard, release = Guard(0.2), threading.Event()

    def work() -> None:
        with guard.calling("nvmlDeviceGetSomething"):
            release.wait(30)

    began = time.monotonic()
    assert guard.run(work) == (Outcome.STUCK, None)
    assert 0.2 <= time.monotonic() - began < 0.3
    assert guard.stuck == "nvmlDeviceGetSomething"
    release.set()
    assert guard.run(lambda: 1) == (Outcome.STUCK, None)
    assert not guard.begin(lambda: 1)
    assert guard.wait(0.0) == (Outcome.STUCK, None)


def test_many_calls_may_take_longer_together_than_one_may() -> None:
    guard, gate = Guard(0.3), threading.Semaphore(0)

    def work() -> str:
        for number in range(4):
            with guard.calling(str(number)):
                assert gate.acquire(timeout=10)
        return "slow but well"

    assert guard.begin(work)
    for _ in range(4):
        outcome, _ = guard.wait(time.monotonic() + 0.15)
        assert outcome is Outcome.RUNNING
        assert not guard.begin(lambda: 1)
        gate.release()
    assert guard.wait(float("inf")) == (Outcome.DONE, "slow but well")


def test_a_child_of_fork_has_a_guard_that_works() -> None:
    guard = Guard(5.0)
    assert guard.run(lambda: 1) == (Outcome.DONE, 1)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if guard.run(lambda: 2) == (Outcome.DONE, 2) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert guard.run(lambda: 3) == (Outcome.DONE, 3)


def test_a_driver_that_was_replaced_or_unloaded_below_the_process_is_told() -> None:
    version = DriverVersion("/nonexistent/version")
    assert version.read() == ""
    assert version.judge("", "580.1") == []
    assert version.judge("580.1", "580.1") == []
    (replaced,) = version.judge("580.1", "595.2")
    assert (replaced.probe, replaced.state, replaced.device.kind) == ("driver", State.DEGRADED, "node")  # fmt: skip
    assert (replaced.facts["event"], replaced.facts["version"]) == ("bound", "595.2")
    (gone,) = version.judge("580.1", "")
    assert gone.facts["event"] == "unloaded"
