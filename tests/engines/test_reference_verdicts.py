"""A fatal XID of a rank's device, injected into a simulated driver and judged by the health room, at every phase of the reference engine.

The engine goes on on a spare device, with fewer ranks, or fails with the reason; never on the device that was condemned.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft import native  # noqa: E402
from dynamo_gpu_ft.cli.models import tiny_llama  # noqa: E402
from dynamo_gpu_ft.health import nvml_events  # noqa: E402
from dynamo_gpu_ft.health.monitor import Monitor  # noqa: E402
from dynamo_gpu_ft.sim.nvml import build  # noqa: E402
from dynamo_gpu_ft.sim.nvml.control import Control  # noqa: E402
from tests.engines.reference_drill import RECOVERING, SERVING, Drill, Fault  # noqa: E402

LONG_S = 20.0


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(
        tempfile.mkdtemp(prefix="gft-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    )
    yield made
    shutil.rmtree(made, ignore_errors=True)


class Driver:
    """A simulated NVML of this module alone, heard by one monitor after another."""

    def __init__(self, folder: Path) -> None:
        shutil.copy(build.library(), folder / build.SONAME)
        self.control, self._core = Control(folder / "c"), native.load()
        self._library = str(folder / build.SONAME)
        self._monitors: list[Monitor] = []
        self._watchers: list[object] = []

    def watch(self, drill: Drill) -> None:
        """A new monitor, to which nothing has happened yet, with the drill's engine as its listener."""
        queue = self._core.WatchQueue(4096)
        watcher = self._core.NvmlWatcher(queue, library=self._library)
        monitor = Monitor(queue=queue, translate=nvml_events.reading_of)
        drill.engine.watch(monitor)
        monitor.start()
        watcher.start()
        self._monitors.append(monitor)
        self._watchers.append(watcher)

        def xid(device: int) -> None:
            """Injects, and waits until the engine has heard the verdict: its listener comes before ours."""
            heard = threading.Event()
            end = monitor.listen(lambda incident: heard.set() if incident.shards else None)
            assert sum(each.sets for each in self.control.send(f"xid gpu={device} code=79"))
            assert heard.wait(LONG_S)
            end()

        drill.xid = xid

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.stop(LONG_S)
        for monitor in self._monitors:
            monitor.stop()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    with tempfile.TemporaryDirectory(prefix="gft-nvml-") as made:  # short: sockets lie in it
        monkeypatch.setenv(build.CONTROL, str(Path(made) / "c"))
        world = Driver(Path(made))
        yield world
        world.close()


@pytest.fixture(scope="module")
def pair(folder: Path) -> Iterator[Drill]:
    """Two ranks, a standby, and one device more than ranks."""
    with Drill(tiny_llama(), folder, tp=2, standbys=1, devices=3, arena_name="verdicts") as drill:
        yield drill


@pytest.fixture(scope="module")
def undisturbed(pair: Drill) -> list[list[int]]:
    return pair.run(1).tokens


@pytest.mark.parametrize("phase", [*SERVING, *RECOVERING])
def test_a_rank_whose_device_is_condemned_goes_on_on_another_one(
    pair: Drill, driver: Driver, undisturbed: list[list[int]], phase: str
) -> None:
    engine = pair.engine
    driver.watch(pair)
    bad = engine.devices.of(0)
    faults = [Fault("xid", phase, 0)]
    if phase in RECOVERING:
        faults.insert(0, Fault("kill", "decode", 1))
    report = pair.run(1, faults)
    assert not report.failed
    assert report.tokens == undisturbed
    (died,) = [e for e in report.deaths if e.shard == 0]
    assert died.reason.startswith("xid 79 on gpu")
    assert engine.devices.of(0) != bad
    assert engine.coordinator.membership.of_shard(0).device.index == engine.devices.of(0)
    assert (1 in {e.shard for e in report.deaths}) or report.kept[1]
    engine.returned(0)  # what was condemned is spare from now on
    engine.devices.condemned.clear()


def test_a_device_that_fails_under_a_replacement_costs_it_and_nobody_else(
    pair: Drill, driver: Driver, undisturbed: list[list[int]]
) -> None:
    driver.watch(pair)
    report = pair.run(1, [Fault("kill", "decode", 1), Fault("xid", "validate", 1)])
    assert report.tokens == undisturbed
    assert {e.shard for e in report.deaths} == {1}
    assert report.kept[0]
    pair.engine.devices.condemned.clear()


def test_without_a_spare_device_the_end_is_clean_and_says_why(folder: Path, driver: Driver) -> None:
    with Drill(tiny_llama(), folder, tp=2, standbys=1, arena_name="none-spare") as drill:
        driver.watch(drill)
        report = drill.run(1, [Fault("xid", "decode", 1)])
        assert "xid 79 on gpu" in report.failed
        assert "too few devices" in report.failed


def test_with_fewer_ranks_allowed_the_engine_goes_on_without_the_device(
    folder: Path, driver: Driver
) -> None:
    with Drill(tiny_llama(), folder, tp=2, min_shards=1, arena_name="fewer") as drill:
        wanted = drill.run(1).tokens
        driver.watch(drill)
        report = drill.run(1, [Fault("xid", "decode", 0)])
        assert report.tokens == wanted
        assert list(drill.engine.crew.members) == [1]


def test_a_whole_restart_uses_no_condemned_device(folder: Path, driver: Driver) -> None:
    with Drill(
        tiny_llama(), folder, tp=2, devices=3, min_shards=1, arena_name="again", in_place=False
    ) as drill:
        wanted = drill.run(1).tokens
        driver.watch(drill)
        report = drill.run(1, [Fault("xid", "decode", 1)])
        assert report.tokens == wanted
        devices = drill.engine.devices
        assert [devices.of(0), devices.of(1), devices.spares] == [0, 2, 0]
        driver.watch(drill)
        report = drill.run(1, [Fault("xid", "decode", 0)])  # the second one finds no spare device
        assert report.tokens == wanted
        assert list(drill.engine.crew.members) == [1]
        assert drill.engine.returned(0) == []
        drill.engine.restart()
        assert sorted(drill.engine.crew.members) == [0, 1]
        assert drill.run(1).tokens == wanted
