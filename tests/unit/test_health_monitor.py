"""The monitor's promises: any thread may add, listeners cannot hurt it, nothing is lost silently, it ends in time, a fork is safe."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_gpu_ft import native
from dynamo_gpu_ft.events import EventStream, IncidentEvent, Journal, decode, log_event
from dynamo_gpu_ft.health import heartbeat
from dynamo_gpu_ft.health.attribution import host_pid, rank_of_process
from dynamo_gpu_ft.health.incidents import Incident
from dynamo_gpu_ft.health.monitor import Monitor
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.health.report import event_of
from dynamo_gpu_ft.health.settings import Settings
from dynamo_gpu_ft.health.sources import Polled
from tests.unit.fusion_world import GPUS, RANKS, xid

WAIT_S = 20.0


def now(code: int, gpu: int = 0, **more: Any) -> Reading:
    return msgspec.structs.replace(xid(0, code, gpu, **more), at=time.monotonic())


class Heard:
    """A listener that can be waited for."""

    def __init__(self) -> None:
        self.incidents: list[Incident] = []
        self._changed = threading.Condition()

    def __call__(self, incident: Incident) -> None:
        with self._changed:
            self.incidents.append(incident)
            self._changed.notify_all()

    def wait(self, true: Callable[[list[Incident]], Any]) -> list[Incident]:
        with self._changed:
            assert self._changed.wait_for(lambda: true(self.incidents), WAIT_S), self.incidents
            return list(self.incidents)


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    made = Monitor(ranks=RANKS)
    yield made
    made.stop()


def test_what_was_added_before_the_start_is_told_after_it(monitor: Monitor) -> None:
    heard = Heard()
    monitor.listen(heard)
    monitor.add(now(79))
    assert heard.incidents == []
    monitor.start()
    monitor.start()
    assert heard.wait(len)[0].shards == (0,)
    assert [i.code for i in monitor.open()] == [79]


def test_many_threads_may_add_at_once_and_nothing_is_lost(monitor: Monitor) -> None:
    heard = Heard()
    monitor.listen(heard)
    monitor.start()
    threads = [
        threading.Thread(target=lambda gpu=gpu: [monitor.add(now(48, gpu)) for _ in range(200)])
        for gpu in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heard.wait(lambda told: len({i.devices[0].index for i in told}) == 8)
    monitor.stop()
    assert sum(e.count for i in monitor.open() for e in i.evidence) == 1600
    assert monitor.snapshot().lost == 0


def test_readings_beyond_the_room_are_counted_as_lost() -> None:
    monitor = Monitor(room=10)
    for _ in range(25):
        monitor.add(now(48))
    heard = Heard()
    monitor.listen(heard)
    monitor.start()
    heard.wait(len)
    monitor.stop()
    assert monitor.snapshot().lost == 15


def test_a_listener_that_raises_is_reported_once_and_harms_nobody(
    monitor: Monitor, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(incident: Incident) -> None:
        raise RuntimeError("a listener's own fault")

    heard = Heard()
    monitor.listen(bad)
    monitor.listen(heard)
    monitor.start()
    for gpu in range(3):
        monitor.add(now(79, gpu))
    heard.wait(lambda told: len(told) >= 3)
    assert len([r for r in caplog.records if "listener" in r.getMessage()]) == 1


def test_who_has_ended_listening_hears_no_more(monitor: Monitor) -> None:
    first, second = Heard(), Heard()
    end = monitor.listen(first)
    monitor.listen(second)
    monitor.start()
    monitor.add(now(79, 0))
    second.wait(len)
    end()
    end()
    monitor.add(now(79, 1))
    second.wait(lambda told: len(told) == 2)
    assert len(first.incidents) == 1


def test_a_listener_may_stop_the_monitor(monitor: Monitor) -> None:
    stopped = threading.Event()

    def stop(incident: Incident) -> None:
        monitor.stop()
        stopped.set()

    monitor.listen(stop)
    monitor.start()
    monitor.add(now(79))
    assert stopped.wait(WAIT_S)
    assert monitor._thread is not None
    monitor._thread.join(WAIT_S)
    assert not monitor.running
    monitor.add(now(79, 1))
    assert len(monitor.open()) == 1


def test_what_has_to_settle_is_told_by_the_clock_alone() -> None:
    clock = [1000.0]
    heard = Heard()
    monitor = Monitor(clock=lambda: clock[0])
    monitor.listen(heard)
    monitor.add(msgspec.structs.replace(xid(0, 45), at=1000.0))
    monitor.start()
    clock[0] = 1006.0
    # The clock of this test jumps; a real one needs no nudge, the wait is until the deadline of the fusion.
    monitor.add(msgspec.structs.replace(xid(0, 79, 1), at=1006.0))
    told = heard.wait(lambda told: len(told) == 2)
    monitor.stop()
    assert {i.code for i in told} == {45, 79}


def test_the_thread_wakes_by_itself_when_something_settles() -> None:
    heard = Heard()
    monitor = Monitor(settings=Settings(window_s=0.2))
    monitor.listen(heard)
    monitor.start()
    monitor.add(now(45))
    assert heard.wait(len)[0].code == 45
    monitor.stop()


def test_an_event_loop_hears_of_incidents_and_may_leave() -> None:
    monitor = Monitor(ranks=RANKS)
    monitor.start()

    async def consume() -> list[int | None]:
        codes = []
        stream = monitor.incidents()
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)  # the generator has begun to listen
        monitor.add(now(79, 0))
        codes.append((await first).code)
        monitor.add(now(48, 1))
        codes.append((await anext(stream)).code)
        await stream.aclose()
        return codes

    assert asyncio.run(asyncio.wait_for(consume(), WAIT_S)) == [79, 48]
    monitor.add(now(79, 2))  # nobody is there any more: no error
    monitor.stop()
    assert not monitor._listeners


def test_what_native_sources_put_into_the_queue_is_fused(memory_folder: Path) -> None:
    core = native.load()
    queue = core.WatchQueue(64)
    heard = Heard()
    monitor = Monitor(ranks=RANKS, queue=queue, translate=heartbeat.reading_of)
    monitor.listen(heard)
    monitor.start()
    path = str(memory_folder / "beats")
    beat = core.Beat(path, rank=0, ranks=1)
    watch = core.HangWatch(queue, path, ranks=1, floor=0.05, unknown=0.05, after=0.05)
    beat.begin(3)
    incident = heard.wait(len)[0]
    assert (incident.name, incident.shards) == ("hang", (0,))
    beat.end()
    assert heard.wait(lambda told: told[-1].cleared)[-1].ended == "recovered"
    watch.stop()
    monitor.stop()


def test_a_record_that_cannot_be_translated_is_counted_as_lost(memory_folder: Path) -> None:
    core = native.load()
    queue = core.WatchQueue(64)
    seen = threading.Event()

    def translate(record: Any) -> Reading | None:
        seen.set()
        raise ValueError("of a newer core")

    monitor = Monitor(queue=queue, translate=translate)
    monitor.start()
    path = str(memory_folder / "beats")
    beat = core.Beat(path, rank=0, ranks=1)
    watch = core.HangWatch(queue, path, ranks=1, floor=0.05, unknown=0.05, after=0.05)
    beat.begin(3)
    assert seen.wait(WAIT_S)
    watch.stop()
    monitor.stop()
    assert monitor.snapshot().lost >= 1


def test_sources_are_started_stopped_and_say_why_they_cannot(tmp_path: Path) -> None:
    class Broken:
        name = "kernel_log"

        def start(self, add: Any) -> None:
            raise PermissionError("CAP_SYSLOG is needed")

        def stop(self) -> None:
            raise AssertionError("was never started")

    looks: list[int] = []
    closed = threading.Event()
    ready = threading.Event()

    def look() -> list[Reading]:
        looks.append(1)
        if len(looks) == 1:
            raise OSError("a look may fail")
        ready.set()
        return [now(79, 2)]

    heard = Heard()
    monitor = Monitor(sources=[Broken(), Polled("probes", look, 0.001, closed.set)])
    monitor.listen(heard)
    monitor.start()
    assert monitor.sources() == {"kernel_log": "CAP_SYSLOG is needed", "probes": ""}
    assert ready.wait(WAIT_S)
    heard.wait(len)
    monitor.stop()
    monitor.stop()
    assert closed.is_set()
    assert monitor.sources() == {"kernel_log": "CAP_SYSLOG is needed"}


def test_a_source_that_cannot_be_stopped_does_not_keep_the_others_from_it() -> None:
    class Stubborn:
        name = "stubborn"

        def start(self, add: Any) -> None: ...

        def stop(self) -> None:
            raise RuntimeError("no")

    closed = threading.Event()
    monitor = Monitor(sources=[Stubborn(), Polled("probes", list, 60, closed.set)])
    monitor.start()
    monitor.stop()
    assert closed.is_set()


def test_in_a_forked_child_everything_is_without_effect(monitor: Monitor) -> None:
    monitor.start()
    heard = Heard()
    monitor.listen(heard)
    reader, writer = os.pipe()
    monitor._lock.acquire()  # as if another thread held it at the moment of the fork
    child = os.fork()
    if child == 0:
        said = b"bad"
        try:
            monitor.add(now(79))
            monitor.set_ranks(())
            monitor.stop()
            quiet = monitor.open() == [] and monitor.sources() == {} and not monitor.running
            said = b"ok" if quiet and monitor.snapshot().devices == () else b"no"
        finally:
            os.write(writer, said)
            os._exit(0)
    monitor._lock.release()
    os.close(writer)
    assert os.read(reader, 16) == b"ok"
    os.close(reader)
    os.waitpid(child, 0)
    monitor.add(now(48, 1))
    assert heard.wait(len)[0].code == 48


def test_new_ranks_are_told_for_what_is_open(monitor: Monitor) -> None:
    heard = Heard()
    monitor.set_ranks(())
    monitor.listen(heard)
    monitor.start()
    monitor.add(now(79, 3))
    heard.wait(len)
    monitor.set_ranks(RANKS)
    assert heard.wait(lambda told: told[-1].shards)[-1].shards == (3,)


def test_an_incident_is_one_line_for_people_and_one_event_of_the_journal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monitor: Monitor
) -> None:
    journal = Journal(str(tmp_path / "journal"))
    stream = EventStream(journal, log_event)
    heard = Heard()
    monitor.listen(lambda incident: stream.emit(event_of(incident)))
    monitor.listen(heard)
    monitor.start()
    with caplog.at_level("INFO"):
        monitor.add(now(79, 0))
        heard.wait(len)
    event = decode((tmp_path / "journal").read_bytes().splitlines()[0])
    assert isinstance(event, IncidentEvent)
    assert (event.name, event.shards, event.unusable) == ("xid 79", (0,), "gpu")
    line = next(r for r in caplog.records if r.name == "dynamo_gpu_ft.events")
    assert line.levelname == "WARNING"
    assert "xid 79 on gpu 0000:10:00, shard 0: unusable: this gpu; to do: reboot node" in line.getMessage()  # fmt: skip
    journal.close()


def proc_with(folder: Path, pid: int, nspid: str, namespace: str) -> str:
    (folder / str(pid)).mkdir(parents=True)
    (folder / str(pid) / "status").write_text(f"Name:\tpython\nNSpid:\t{nspid}\n")
    (folder / "self" / "ns").mkdir(parents=True)
    (folder / "self" / "ns" / "pid").symlink_to(namespace)
    return str(folder)


INIT, NESTED = "pid:[4026531836]", "pid:[4026532999]"


@pytest.mark.parametrize(
    ("nspid", "namespace", "expected"),
    [("7", INIT, 7), ("4242\t7", NESTED, 4242), ("7", NESTED, None), ("x", INIT, None)],
)
def test_the_hosts_number_of_a_process_is_known_where_its_proc_tells_it(
    tmp_path: Path, nspid: str, namespace: str, expected: int | None
) -> None:
    proc = proc_with(tmp_path, 7, nspid, namespace)
    assert host_pid(7, proc) == expected
    assert host_pid(8, proc) is None


def test_a_monitor_named_by_the_kernel_is_nobody_of_the_engine_even_without_host_pids() -> None:
    ranks = [msgspec.structs.replace(rank, host_pid=None) for rank in RANKS]
    smi = xid(0, 13, pid=1234, facts={"process": "nvidia-smi"})
    other = xid(0, 13, pid=1234, facts={"process": "VLLM::Worker"})
    assert rank_of_process(smi, ranks) == (None, True)
    assert rank_of_process(other, ranks) == (None, False)
    assert rank_of_process(xid(0, 13, pid=1003), RANKS) == (3, False)
    own = Reading(at=0, source=Source.PROCESS, probe="process", state=State.FAILED, pid=12, pid_space="own")  # fmt: skip
    assert rank_of_process(own, RANKS) == (2, False)


def test_an_unnamed_device_is_that_of_the_shard_that_saw_it(monitor: Monitor) -> None:
    heard = Heard()
    monitor.listen(heard)
    monitor.start()
    seen = Reading(
        at=time.monotonic(), source=Source.ENGINE, probe="cuda", state=State.FAILED, code=700, shard=5
    )  # fmt: skip
    monitor.add(seen)
    incident = heard.wait(len)[0]
    assert incident.devices[0] == GPUS[5]
    assert incident.shards == (5,)
