"""The NVML watcher when the driver, or the process around it, does its worst: calls that never return, errors without end,
processes that are stopped, forked, killed or ended, and a Python that holds its lock for ever.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from door import core
from nvml_world import until

POLL_S, DEADLINE_S = 0.05, 0.3
# What a call may be overdue before it is told; instrumented code on a busy machine is late for reasons of its own.
SLACK_S = 5.0 if "LD_PRELOAD" in os.environ else 0.1
WORKER = Path(__file__).with_name("nvml_worker.py")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def worker(nvml: Any, pynvml_path: str) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(what: str, **more: Any) -> subprocess.Popen[str]:
        paths = [str(Path(core.__file__).parents[2]), pynvml_path]
        process = subprocess.Popen(
            [sys.executable, str(WORKER), str(nvml.library), what],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, **more,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def pynvml_path(tmp_path: Path) -> str:
    """A folder with NVIDIA's binding: the installed one, or the copy that vLLM brings along. Empty when there is none."""
    import importlib.util
    import shutil

    if importlib.util.find_spec("pynvml"):
        return ""
    found = importlib.util.find_spec("vllm")
    if found is not None and found.origin:
        copy = Path(found.origin).parent / "third_party" / "pynvml.py"
        if copy.exists():
            shutil.copy(copy, tmp_path)
    return str(tmp_path)


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def stuck(nvml: Any, gpu: int) -> Any:
    record = nvml.of("unresponsive")
    assert record.index == gpu
    return record


def test_a_poll_that_does_not_return_costs_its_gpu_only(nvml: Any) -> None:
    watcher = nvml.started(poll_s=POLL_S, call_deadline_s=DEADLINE_S)
    nvml.send("wedge gpu=4 call=fields")
    wedged = time.monotonic_ns()
    record = stuck(nvml, 4)
    assert record.source == "nvml_poll"
    assert record.facts["call"] == "nvmlDeviceGetFieldValues"
    assert DEADLINE_S * 1000 <= int(record.facts["waited_ms"]) <= (DEADLINE_S + SLACK_S) * 1000
    assert "has not returned for 0.3" in record.text
    assert record.bdf == watcher.gpus()[4].bdf
    assert DEADLINE_S - POLL_S <= (record.at_ns - wedged) / 1e9 <= POLL_S + DEADLINE_S + SLACK_S
    asked = nvml.calls(gpu=4)
    nvml.send("recovery gpu=5 action=1")
    assert nvml.next().index == 5
    nvml.send("xid gpu=4 code=119")  # events of it still arrive: waiting asks nothing of it
    assert nvml.next().code == 119
    polls = watcher.counts()["polls"]
    until(lambda: watcher.counts()["polls"] > polls + 70)
    assert nvml.calls(gpu=4) == asked
    assert [gpu.responsive for gpu in watcher.gpus()] == [True] * 4 + [False] + [True] * 3


def test_a_gpu_that_answers_too_late_stays_given_up(nvml: Any) -> None:
    watcher = nvml.started(poll_s=POLL_S, call_deadline_s=DEADLINE_S)
    nvml.send("wedge gpu=4 call=fields")
    stuck(nvml, 4)
    nvml.send("release")
    asked = nvml.calls(gpu=4)
    polls = watcher.counts()["polls"]
    until(lambda: watcher.counts()["polls"] > polls + 30)
    assert nvml.calls(gpu=4) == asked
    assert not watcher.gpus()[4].responsive


@pytest.mark.parametrize("call", ["handle", "supported", "nvmlDeviceGetUUID"])
def test_a_gpu_that_is_stuck_from_the_start_does_not_hold_up_the_others(
    nvml: Any, call: str
) -> None:
    nvml.script(f"wedge gpu=2 call={call}")
    began = time.monotonic()
    watcher = nvml.started(poll_s=POLL_S, call_deadline_s=DEADLINE_S)
    assert time.monotonic() - began < 3 * DEADLINE_S + SLACK_S + 1
    stuck(nvml, 2)
    assert nvml.send("xid gpu=3 code=13") == 1
    assert nvml.next().index == 3
    assert [gpu.responsive for gpu in watcher.gpus()].count(False) == 1


def test_a_registration_that_does_not_return_costs_its_gpu_only(nvml: Any) -> None:
    nvml.script("wedge gpu=2 call=register")
    watcher = nvml.started(poll_s=POLL_S, call_deadline_s=DEADLINE_S)
    record = stuck(nvml, 2)
    assert record.source == "nvml_event"
    until(lambda: watcher.gpus()[7].registered != 0)
    for gpu in (0, 7):
        assert nvml.send(f"xid gpu={gpu} code=43") >= 1
        assert nvml.next().index == gpu
    assert watcher.counts()["event_threads"] == 2


def test_a_wait_that_does_not_return_is_told_once_and_the_poll_goes_on(nvml: Any) -> None:
    watcher = nvml.started(poll_s=POLL_S, call_deadline_s=DEADLINE_S)
    nvml.send("wedge call=wait")
    record = nvml.of("unresponsive")
    assert (record.source, record.index, record.facts["call"]) == (
        "nvml_event",
        -1,
        "nvmlEventSetWait_v2",
    )
    nvml.send("recovery gpu=1 action=1")
    assert nvml.next().what == "recovery_action"
    until(lambda: watcher.counts()["stuck_calls"] == 3)  # and events are given up
    assert nvml.queue.take() == []
    assert watcher.counts()["event_threads"] == 3


def test_a_wait_that_is_stuck_for_a_while_costs_no_events_afterwards(nvml: Any) -> None:
    watcher = nvml.started(poll_s=POLL_S, call_deadline_s=DEADLINE_S)
    sets = watcher.counts()["sets"]
    nvml.send("wedge call=wait")
    nvml.of("unresponsive")
    until(lambda: watcher.counts()["event_threads"] == 2)
    until(lambda: watcher.counts()["sets"] > sets)  # the new thread has one of its own to wait for
    nvml.send("release")
    nvml.send("xid gpu=3 code=74")
    assert nvml.of("xid").code == 74


def test_an_init_that_does_not_return_is_an_error_in_time(nvml: Any) -> None:
    nvml.script("wedge call=init")
    watcher = nvml.watcher(call_deadline_s=DEADLINE_S)
    began = time.monotonic()
    with pytest.raises(core.CoreError, match="nvmlInit_v2 has not returned") as caught:
        watcher.start()
    assert caught.value.code == "timed_out"
    assert time.monotonic() - began < DEADLINE_S + SLACK_S + 0.5
    record = nvml.of("unresponsive")
    assert (record.index, record.facts["call"]) == (-1, "nvmlInit_v2")
    assert not watcher.stop(0.1)


@pytest.mark.parametrize(
    ("script", "first"),
    [("wedge call=init", "timed_out"), ("wedge call=*", "timed_out"), ("wedge gpu=* call=fields", ""), ("wedge call=wait", "")],
)  # fmt: skip
def test_a_process_ends_at_once_whatever_is_stuck_in_the_driver(
    nvml: Any, worker: Start, script: str, first: str
) -> None:
    nvml.script(script)
    process = worker("leave")
    if first:
        assert line(process) == [first]
    assert line(process) == ["stuck"]
    began = time.monotonic()
    said, _ = process.communicate("go\n", timeout=20)
    assert process.returncode == 0
    assert said.split()[0] == "stopped"
    assert time.monotonic() - began < 2


def test_errors_without_end_are_told_once_and_never_spin(nvml: Any) -> None:
    watcher = nvml.started(poll_s=POLL_S)
    nvml.send("return call=wait code=999")
    record = nvml.of("error")
    assert (record.code, record.index) == (999, -1)
    until(lambda: watcher.counts()["event_errors"] >= 5)
    assert nvml.calls()["nvmlEventSetWait_v2"] < 50
    assert nvml.queue.take() == []
    nvml.send("release")
    record = nvml.next()
    assert (record.what, record.code) == ("error", 0)
    assert nvml.send("xid gpu=0 code=13") == 1
    assert nvml.next().code == 13


def test_waits_that_are_over_at_once_never_spin(nvml: Any) -> None:
    watcher = nvml.started(poll_s=POLL_S)
    before = nvml.calls()["nvmlEventSetWait_v2"]
    nvml.send("return call=wait code=10")
    until(lambda: watcher.counts()["event_errors"] >= 4)
    assert nvml.calls()["nvmlEventSetWait_v2"] - before < 50


def test_a_loss_that_no_gpu_admits_to_never_spins(nvml: Any) -> None:
    watcher = nvml.started(poll_s=POLL_S)
    nvml.send("return call=wait code=15")
    assert nvml.of("error").code == 15
    until(lambda: watcher.counts()["event_errors"] >= 4)
    assert nvml.calls()["nvmlEventSetWait_v2"] < 50
    assert all(not gpu.lost for gpu in watcher.gpus())


def test_a_process_that_was_stopped_takes_no_call_for_stuck(nvml: Any, worker: Start) -> None:
    process = worker("watch")
    assert line(process) == ["ready"]
    for _ in range(5):
        process.send_signal(signal.SIGSTOP)
        time.sleep(
            1.2
        )  # longer than the deadline of its calls: the fault is the length of this pause
        process.send_signal(signal.SIGCONT)
        nvml.send("xid gpu=1 code=31")
        assert line(process) == ["xid", "31", "1"]


def test_a_forked_child_sees_nothing_and_may_watch_for_itself(worker: Start) -> None:
    process = worker("split")
    said, _ = process.communicate(timeout=100)
    assert said.split() == ["parent", "True"]


def test_a_killed_process_takes_nothing_with_it(nvml: Any, worker: Start) -> None:
    first, second = worker("watch"), worker("watch")
    assert line(first) == line(second) == ["ready"]
    assert nvml.send("xid gpu=0 code=43") == 2
    assert line(first) == line(second) == ["xid", "43", "0"]
    first.kill()
    first.wait()
    assert nvml.send("xid gpu=0 code=45") == 1
    assert line(second) == ["xid", "45", "0"]
    assert [pid for pid, _ in nvml.control.users()] == [second.pid]


def test_nvidias_own_binding_finds_the_same_library_in_the_same_process(
    nvml: Any, worker: Start, pynvml_path: str
) -> None:
    if pynvml_path and not (Path(pynvml_path) / "pynvml.py").exists():
        pytest.skip("neither nvidia-ml-py nor vLLM's copy of it is installed")
    process = worker("both")
    assert line(process) == ["ready"]
    assert nvml.send("xid gpu=1 code=79") == 2
    assert line(process) == ["both", "79", "79"]


CALLBACK = """
#include <stdint.h>
#include <stddef.h>
#include "gft_watch.h"
/* The listener of a program in C: notes what it hears. */
struct heard { int64_t count, last_code, at_ns; };
void listen(void *context, const gft_watch_record *record) {
  struct heard *to = (struct heard *)context;
  to->last_code = record->code;
  to->at_ns = record->at_ns;
  __atomic_add_fetch(&to->count, 1, __ATOMIC_SEQ_CST);
}
"""


class Heard(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int64), ("last_code", ctypes.c_int64), ("at_ns", ctypes.c_int64)]


@pytest.fixture
def listener(tmp_path: Path) -> tuple[Heard, int]:
    """(where it notes, address of a C function) for a queue's `on_record`."""
    source, built = tmp_path / "listen.c", tmp_path / "listen.so"
    source.write_text(CALLBACK)
    headers = Path(__file__).resolve().parents[2] / "csrc"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", f"-I{headers}", str(source), "-o", str(built)],
        check=True,
        timeout=60,
    )
    function = ctypes.CDLL(str(built)).listen
    return Heard(), ctypes.cast(function, ctypes.c_void_p).value or 0


def test_c_code_hears_of_an_event_while_python_is_locked_up(
    nvml: Any, listener: tuple[Heard, int]
) -> None:
    heard, address = listener
    nvml.queue = core.WatchQueue(16, on_record=address, context=ctypes.addressof(heard))
    nvml.started(poll_s=POLL_S)
    for code in (13, 31):
        assert nvml.send(f"xid gpu=0 code={code}") == 1
        until(lambda code=code: heard.last_code == code)  # type: ignore[misc]
    assert heard.count == 2
    # A sleep that does not let go of the interpreter: no Python runs until it is over, neither here nor in any thread.
    sleeper = ctypes.PyDLL(None)
    script = f"sleep 0.3; echo 'xid gpu=0 code=43' >> {nvml.control.commands}"
    with subprocess.Popen(["sh", "-c", script]):
        locked = threading.Thread(target=lambda: sleeper.usleep(1_000_000))
        before = time.monotonic_ns()
        locked.start()
        locked.join()
        after = time.monotonic_ns()
    assert after - before >= 1_000_000_000
    assert heard.last_code == 43
    assert before < heard.at_ns < after - 300_000_000  # heard in the middle of it
    assert [record.code for record in nvml.queue.take()] == [13, 31, 43]
