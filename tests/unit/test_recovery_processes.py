"""Ending what an engine left behind: orphans found by tag whoever their parent is, nobody else touched."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from dynamo_gpu_ft.errors import RecoveryFailed
from dynamo_gpu_ft.events import EventStream, StepDone
from dynamo_gpu_ft.recovery import processes
from dynamo_gpu_ft.recovery.executor import run_step

PARENT = """
import os, subprocess, sys
code = "import signal; signal.alarm(60); print('up', flush=True); signal.pause()"
child = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


def spawn(tag: str | None) -> tuple["subprocess.Popen[str]", int]:
    """A parent with one child, both tagged; returns the parent and the child's pid once both are up."""
    environment = {**os.environ}
    if tag is not None:
        environment[processes.TAG_VARIABLE] = tag
    parent = subprocess.Popen(
        [sys.executable, "-S", "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def finish(parent: "subprocess.Popen[str]") -> None:
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.close()
    parent.stdout.close()
    parent.wait(10)


def test_orphans_of_a_killed_parent_are_found_and_ended() -> None:
    tag = f"test-{os.getpid()}-orphans"
    parent, child = spawn(tag)
    parent.send_signal(signal.SIGKILL)
    finish(parent)
    assert [p.pid for p in processes.find(tag)] == [child]
    assert processes.end_all(tag, deadline_s=10.0) == []
    assert processes.find(tag) == []


def test_a_stopped_process_is_ended_too() -> None:
    tag = f"test-{os.getpid()}-stopped"
    parent, child = spawn(tag)
    os.kill(child, signal.SIGSTOP)
    assert processes.end_all(tag, deadline_s=10.0) == []
    finish(parent)


def test_processes_with_another_tag_are_left_alone() -> None:
    parent, child = spawn(f"test-{os.getpid()}-other")
    try:
        assert processes.end_all(f"test-{os.getpid()}-mine", deadline_s=1.0) == []
        assert parent.poll() is None
        os.kill(child, 0)
    finally:
        processes.end_all(f"test-{os.getpid()}-other", deadline_s=10.0)
        finish(parent)


def test_children_started_inside_the_block_carry_the_tag_and_later_ones_do_not() -> None:
    tag = f"test-{os.getpid()}-block"
    with processes.tagged(tag):
        inside, child = spawn(None)
    assert processes.TAG_VARIABLE not in os.environ
    assert {p.pid for p in processes.find(tag)} == {inside.pid, child}
    processes.end_all(tag, deadline_s=10.0)
    finish(inside)


def run(step: object, deadline_s: float) -> tuple[object, list[StepDone]]:
    seen: list[StepDone] = []
    stream = EventStream(lambda event: seen.append(event))  # type: ignore[arg-type]
    try:
        result: object = asyncio.run(
            run_step("name", step, epoch=3, deadline_s=deadline_s, events=stream)  # type: ignore[arg-type]
        )
    except Exception as error:
        result = error
    return result, seen


def test_a_step_past_its_deadline_is_cancelled_and_journalled() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    result, seen = run(forever, 0.02)
    assert isinstance(result, RecoveryFailed)
    assert [(s.step, s.ok, s.detail, s.epoch) for s in seen] == [("name", False, "deadline", 3)]


def test_a_step_that_fails_is_journalled_and_its_error_is_raised() -> None:
    async def broken() -> None:
        raise ValueError("no")

    result, seen = run(broken, 5.0)
    assert isinstance(result, ValueError)
    assert seen[0].detail == "ValueError: no"


@pytest.mark.parametrize("value", [None, 7])
def test_a_step_that_succeeds_gives_its_result(value: object) -> None:
    async def fine() -> object:
        return value

    result, seen = run(fine, 5.0)
    assert result == value
    assert seen[0].ok


def test_a_process_is_found_and_ended_whatever_bytes_its_name_has() -> None:
    tag = f"bytes-{os.getpid()}"
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'\\xff) \\xfe'); print('up', flush=True); sys.stdin.read()"
    named = subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, processes.TAG_VARIABLE: tag},
    )
    assert named.stdout is not None
    named.stdout.readline()
    assert [p.pid for p in processes.find(tag)] == [named.pid]
    assert processes.end_all(tag, deadline_s=10) == []
    named.wait(10)
    assert named.stdin is not None
    named.stdin.close()
    named.stdout.close()
