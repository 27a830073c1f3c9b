"""Processes that a nursery forks: like spawned ones to whoever starts them, whatever becomes of the nursery."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.recovery import nursery as subject
from dynamo_gpu_ft.recovery import processes
from dynamo_gpu_ft.recovery.nursery import Nursery

WAIT_S = 60.0
SPAWN = multiprocessing.get_context("spawn")
IMPORTED = ["colorsys", "no.such.module", "wave"]


def tell(pipe: Connection, lock: Any) -> None:
    with lock:
        pipe.send(
            {
                "pid": os.getpid(),
                "parent": os.getppid(),
                "environment": os.environ.get("GPU_FT_TEST_NURSERY"),
                "imported": [name for name in IMPORTED if name in sys.modules],
                "files": len(list(Path("/proc/self/fd").iterdir())),
                "ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
            }
        )
    pipe.recv()
    sys.exit(7)


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    made = Nursery(IMPORTED)
    await_ready(made)
    yield made
    made.close()


def await_ready(nursery: Nursery) -> None:
    assert wait([nursery._socket], WAIT_S)
    assert nursery.ready


def born(nursery: Nursery) -> tuple[Any, Connection, dict[str, Any]]:
    ours, theirs = SPAWN.Pipe()
    lock = SPAWN.Lock()  # its semaphore has to outlive the child's start
    process = nursery.process(tell, args=(theirs, lock), name="child", daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(WAIT_S)
    return process, ours, ours.recv()


def test_a_child_is_this_process_s_own_with_its_environment_of_now_and_the_nursery_s_imports(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_FT_TEST_NURSERY", "now")
    process, pipe, told = born(nursery)
    assert (told["pid"], told["parent"]) == (process.pid, os.getpid())
    assert told["environment"] == "now"
    assert told["imported"] == ["colorsys", "wave"]
    assert not told["ignored"]
    assert process.is_alive()
    pipe.send("end")
    process.join(WAIT_S)
    assert process.exitcode == 7


def name_itself(pipe: Connection) -> None:
    import setproctitle

    setproctitle.setproctitle("worker 3")
    pipe.send((Path("/proc/self/cmdline").read_bytes(), Path("/proc/self/comm").read_text()))


def test_a_child_can_take_a_title_with_another_environment_than_the_nursery_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The package that engines use finds the title's place behind the first variable: here none is left as it was."""
    pytest.importorskip("setproctitle")
    made = Nursery(["setproctitle"])
    await_ready(made)
    for name, value in os.environ.items():
        monkeypatch.setenv(name, f"{value} ")
    ours, theirs = SPAWN.Pipe()
    process = made.process(name_itself, args=(theirs,))
    process.start()
    theirs.close()
    assert ours.poll(WAIT_S)
    title, comm = ours.recv()
    assert (title.rstrip(b"\0"), comm) == (b"worker 3", "worker 3\n")
    process.join(WAIT_S)
    made.close()


def test_a_killed_child_is_told_by_its_sentinel_and_its_signal(nursery: Nursery) -> None:
    process, pipe, _ = born(nursery)  # whose pipe is closed ends of itself
    process.kill()
    assert wait([process.sentinel], WAIT_S) == [process.sentinel]
    process.join(WAIT_S)
    assert process.exitcode == -signal.SIGKILL
    pipe.close()


def test_children_leave_no_descriptors_to_each_other(nursery: Nursery) -> None:
    found = [born(nursery) for _ in range(3)]
    assert len({told["files"] for _, _, told in found}) == 1
    found[0][0].kill()
    assert wait([found[0][0].sentinel], WAIT_S)  # nobody else holds it open
    for process, pipe, _ in found[1:]:
        assert process.is_alive()
        pipe.send("end")
        process.join(WAIT_S)


def test_the_nursery_s_death_is_not_its_children_s(nursery: Nursery) -> None:
    process, pipe, _ = born(nursery)
    os.kill(nursery.pid, signal.SIGKILL)
    nursery._process.join(WAIT_S)
    assert not nursery.ready
    assert process.is_alive()
    with pytest.raises(OSError):
        born(nursery)
    pipe.send("end")
    process.join(WAIT_S)
    assert process.exitcode == 7


def test_a_process_with_many_files_is_told_of_the_nursery_s_death_too(
    many_files: contextlib.ExitStack,
) -> None:
    """The other end of what tells of it has a high number then, and no child may hold it."""
    made = Nursery(IMPORTED)
    await_ready(made)
    many_files.close()
    process, pipe, _ = born(made)
    os.kill(made.pid, signal.SIGKILL)
    assert wait([made._process.sentinel], WAIT_S)
    assert process.is_alive()
    pipe.send("end")
    process.join(WAIT_S)
    assert process.exitcode == 7
    made.close()


def test_a_stopped_nursery_is_given_up_and_can_be_ended(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "BIRTH_S", 0.2)
    os.kill(nursery.pid, signal.SIGSTOP)
    with pytest.raises(OSError, match=f"the nursery \\(pid {nursery.pid}\\) bears no child"):
        born(nursery)
    nursery.close()
    assert not processes.lives(processes.Process(nursery.pid, 0))


def test_a_nursery_whose_imports_start_threads_does_not_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "threads_at_import.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Nursery(["threads_at_import"])
    try:
        assert wait([made._socket], WAIT_S)
        assert not made.ready
        assert made.unfit
    finally:
        made.close()


def leave_a_trace() -> None:
    sys.prepared = os.getpid()  # type: ignore[attr-defined]


def leave_a_trace_and_fail() -> None:
    leave_a_trace()
    raise ValueError("not on this machine")


def tell_of_the_trace(pipe: Connection) -> None:
    pipe.send(getattr(sys, "prepared", None))


@pytest.mark.parametrize("prepare", [leave_a_trace, leave_a_trace_and_fail])
def test_children_find_what_was_prepared_and_a_failure_of_it_is_passed_over(
    prepare: Callable[[], None],
) -> None:
    made = Nursery([], {}, prepare)
    await_ready(made)
    ours, theirs = SPAWN.Pipe()
    process = made.process(tell_of_the_trace, args=(theirs,))
    process.start()
    theirs.close()
    assert ours.poll(WAIT_S)
    assert ours.recv() == made.pid
    process.join(WAIT_S)
    made.close()


def parent_of_nursery(pipe: Connection) -> None:
    made = Nursery([])
    await_ready(made)
    ours, theirs = SPAWN.Pipe()
    lock = SPAWN.Lock()
    child = made.process(tell, args=(theirs, lock))
    child.start()
    theirs.close()
    ours.poll(WAIT_S)
    os.kill(made.pid, signal.SIGSTOP)
    pipe.send((made.pid, child.pid, os.getpid()))
    threading.Event().wait()


def test_a_nursery_ends_with_its_parent_even_when_it_is_stopped() -> None:
    ours, theirs = SPAWN.Pipe()
    parent = SPAWN.Process(target=parent_of_nursery, args=(theirs,))
    parent.start()
    theirs.close()
    assert ours.poll(WAIT_S)
    pid, child, _ = ours.recv()
    handles = [os.pidfd_open(pid), os.pidfd_open(child)]
    parent.kill()
    parent.join(WAIT_S)
    try:
        assert wait([handles[0]], WAIT_S)
        signal.pidfd_send_signal(
            handles[1], signal.SIGKILL
        )  # not under a tag: it would have lived on
    finally:
        for handle in handles:
            os.close(handle)
