"""Real sources through the monitor: the simulated NVML's events and poll, a followed kernel log, an engine's error, a heartbeat.

One fault that all of them see is one incident; a storm loses nothing silently; a stuck driver takes nobody else along.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from door import core
from nvml_world import LONG_S, NvmlWorld

from dynamo_gpu_ft.health import heartbeat, log_lines, nvml_events
from dynamo_gpu_ft.health.incidents import Incident, Unusable
from dynamo_gpu_ft.health.monitor import Monitor
from dynamo_gpu_ft.health.readings import Reading, Source, State
from dynamo_gpu_ft.sim.nvml import build
from dynamo_gpu_ft.topology import Device, Rank


def translate(record: Any) -> Reading | None:
    if record.source == "heartbeat":
        return heartbeat.reading_of(record)
    if record.source in nvml_events.SOURCES:
        return nvml_events.reading_of(record)
    return log_lines.reading_of(record)


class World(NvmlWorld):
    """The simulated NVML, a log that is followed, and a monitor of both; every GPU has a rank."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.watch = self.started(poll_s=0.05, call_deadline_s=0.5)
        self.gpus = self.watch.gpus()
        self.log = folder / "kern.log"
        self.log.touch()
        self.reader = core.LogReader(self.queue, str(self.log))
        self.told: list[Incident] = []
        ranks = [Rank(shard=g.index, pid=1, host_pid=1000 + g.index, device=Device(uuid=g.uuid, bdf=g.bdf, index=g.index)) for g in self.gpus]  # fmt: skip
        self.monitor = Monitor(ranks=ranks, queue=self.queue, translate=translate)
        self.monitor.listen(self.told.append)
        self.monitor.start()

    def write(self, line: str) -> None:
        with self.log.open("a") as file:
            file.write(line + "\n")

    def wait(self, true: Any) -> None:
        end = time.monotonic() + LONG_S
        while not true():
            assert time.monotonic() < end, [(i.name, i.version, len(i.evidence)) for i in self.told]
            time.sleep(0.005)

    def close(self) -> None:
        self.reader.stop()
        self.monitor.stop()
        super().close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with TemporaryDirectory(prefix="gft-nvml-") as made:  # short: sockets lie in it
        monkeypatch.setenv(build.CONTROL, str(Path(made) / "c"))
        world = World(Path(made))
        yield world
        world.close()


def test_one_fault_that_five_sources_see_is_one_incident(world: World) -> None:
    gpu = world.gpus[1]
    world.write(f"[  900.1] NVRM: Xid (PCI:{gpu.bdf}): 48, pid=1001, name=VLLM::Worker, An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer at partition 4, subpartition 0.")  # fmt: skip
    world.send("xid gpu=1 code=48")
    world.send("recovery gpu=1 action=1")
    world.write(
        f"[  900.2] NVRM: Xid (PCI:{gpu.bdf}): 45, pid=1001, name=VLLM::Worker, Ch 00000008"
    )
    error = Reading(
        at=time.monotonic(), source=Source.ENGINE, probe="cuda", state=State.FAILED, code=214, shard=1
    )  # fmt: skip
    world.monitor.add(error)
    world.wait(lambda: world.told and len(world.told[-1].evidence) >= 5)
    assert len({incident.id for incident in world.told}) == 1
    incident = world.monitor.open()[0]
    seen = {(e.first.source, e.first.probe) for e in incident.evidence}
    assert {source for source, _ in seen} == {Source.KERNEL_LOG, Source.NVML_EVENT, Source.NVML_POLL, Source.ENGINE}  # fmt: skip
    assert (incident.name, incident.shards, incident.verdict.unusable) == ("xid 48", (1,), Unusable.GPU)  # fmt: skip
    world.send("recovery gpu=1 action=0")
    world.wait(lambda: world.told[-1].cleared)
    assert world.told[-1].ended == "recovered"


def test_a_thousand_events_in_ten_milliseconds_are_one_incident_and_none_is_lost_silently(
    world: World,
) -> None:
    world.send("burst gpu=0 code=95 count=1000 over_ms=10")

    def counted() -> int:
        found = world.monitor.open()
        return sum(e.count for i in found for e in i.evidence) + world.monitor.snapshot().lost

    world.wait(lambda: counted() >= 1000)
    assert counted() == 1000
    assert {(i.name, i.shards) for i in world.told} == {("xid 95", (0,))}


def test_a_wedged_driver_call_is_an_incident_of_that_gpu_and_the_others_are_served(
    world: World,
) -> None:
    world.send("wedge call=fields gpu=0")
    world.wait(lambda: any(i.name == "driver_unresponsive" for i in world.told))
    stuck = world.told[-1]
    assert (stuck.shards, stuck.verdict.unusable) == ((0,), Unusable.GPU)
    world.send("xid gpu=1 code=48")
    world.wait(lambda: any(i.name == "xid 48" for i in world.told))
    assert world.told[-1].shards == (1,)


def test_a_context_that_died_in_another_process_is_not_ours_and_one_of_ours_is(
    world: World,
) -> None:
    gpu = world.gpus[0]
    world.write(f"[  900.1] NVRM: Xid (PCI:{gpu.bdf}): 31, pid=77, name=nvidia-smi, Ch 00000008, MMU Fault")  # fmt: skip
    world.wait(lambda: len(world.told) == 1)
    assert world.told[0].shards == ()
    world.write(f"[  900.2] NVRM: Xid (PCI:{gpu.bdf}): 31, pid=1000, name=VLLM::Worker, Ch 00000008, MMU Fault")  # fmt: skip
    world.wait(lambda: len({i.id for i in world.told}) == 2)
    assert world.told[-1].shards == (0,)
