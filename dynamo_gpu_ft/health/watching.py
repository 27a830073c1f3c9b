"""Everything of the health room at work in one process: native watchers, probes, monitor, endpoint, by the configuration.

Engine adapters make one per process and hear of incidents; each part that cannot work here is named with its reason, and the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.health import heartbeat, http, log_lines, nvml_events
from dynamo_gpu_ft.health.incidents import Incident
from dynamo_gpu_ft.health.monitor import Monitor
from dynamo_gpu_ft.health.probes.attach import attach
from dynamo_gpu_ft.health.readings import Reading
from dynamo_gpu_ft.health.settings import Settings
from dynamo_gpu_ft.health.sources import Polled
from dynamo_gpu_ft.topology import Device, Rank

_log = logging.getLogger("dynamo_gpu_ft.health")

KMSG = "/dev/kmsg"
#: XIDs after which a GPU must not be asked anything: the call would not come back.
SILENT = frozenset({79, 119, 120, 175})
_PROBES_EVERY_S = 10.0
_QUEUE = 4096


class Watching:
    """One per process. Thread-safe once started.

    devices      GPUs to watch; None: all
    rank         global rank of the worker this is, for its port; None: the serving process
    forward      hears every reading that was made in this process, on the thread that made it; must not block or raise
    on_incident  hears every incident, new or revised, on the monitor's thread
    vitals       plain data about this process's steps, for the endpoint
    """

    def __init__(
        self,
        config: Config,
        ranks: Sequence[Rank] = (),
        *,
        devices: Sequence[Device] | None = None,
        rank: int | None = None,
        forward: Callable[[Reading], None] | None = None,
        on_incident: Callable[[Incident], None] | None = None,
        vitals: Callable[[], Any] | None = None,
    ) -> None:
        self._config, self._devices, self._rank = config, devices, rank
        self._forward, self._vitals = forward, vitals
        self._core = native.load()
        self._queue = self._core.WatchQueue(_QUEUE)
        self._nvml: Any = None
        self._hangs: Any = None
        self._expects = False
        self._endpoint: http.Endpoint | None = None
        absent = self._open_nvml()
        self.monitor = Monitor(
            settings=Settings(),
            driver=self._nvml.driver_version if self._nvml is not None else "",
            ranks=ranks,
            queue=self._queue,
            translate=self._translate,
        )
        if absent:
            self.monitor.unavailable("nvml", absent)
        else:
            self.monitor.add_source(_Native("nvml", lambda: self._nvml))
        self.monitor.listen(self._leave_silent_gpus_alone)
        if on_incident is not None:
            self.monitor.listen(on_incident)

    def start(self) -> None:
        """Starts what can be started; blocks for a few driver calls' deadlines at most. Never raises."""
        self.monitor.start()
        self._open_logs()
        self._open_probes()
        self._endpoint = http.serve(
            self.monitor, self._config, rank=self._rank, heartbeat=self._vitals
        )

    def stop(self) -> None:
        """Ends all of it; a driver call that does not come back is left alone. Safe to repeat."""
        if self._endpoint is not None:
            self._endpoint.stop()
        self.remove_heartbeats()
        self.monitor.stop()

    def add(self, reading: Reading) -> None:
        """A reading from elsewhere: another process's, or an error that the engine hands in."""
        self.monitor.add(reading)

    def report(self, reading: Reading) -> None:
        """A reading of this process's own making: forwarded too."""
        self.monitor.add(reading)
        if self._forward is not None:
            self._forward(reading)

    def set_ranks(self, ranks: Sequence[Rank]) -> None:
        self.monitor.set_ranks(ranks)

    def gpus(self) -> list[Device]:
        """The GPUs that NVML knows and this watches; [] without NVML."""
        found = self._nvml.gpus() if self._nvml is not None else ()
        return [Device(index=gpu.index, uuid=gpu.uuid, bdf=gpu.bdf) for gpu in found]

    def add_heartbeats(self, path: str, *, ranks: int) -> None:
        """Judges the ranks of this heartbeat file from now on, instead of another's. Raises `CoreError` for a file that is none."""
        self.remove_heartbeats()
        config = self._config
        self._hangs = self._core.HangWatch(
            self._queue,
            path,
            ranks=ranks,
            after=config.hang_after_s,
            floor=config.hang_floor_s,
            unknown=config.hang_unknown_s,
            silent=config.hang_after_s,
            no_step=config.hang_unknown_s,
        )
        self._hangs.expect(self._expects)

    def remove_heartbeats(self) -> None:
        if self._hangs is not None:
            self._hangs.stop()
            self._hangs = None

    def expect(self, work: bool) -> None:
        """Whether requests are open, so that some rank should make steps."""
        self._expects = work
        if self._hangs is not None:
            self._hangs.expect(work)

    def _open_nvml(self) -> str:
        """Why NVML cannot be watched, "" if it is."""
        wanted = None
        if self._devices is not None:
            wanted = [d.uuid or d.bdf or str(d.index) for d in self._devices]
        try:
            watcher = self._core.NvmlWatcher(
                self._queue,
                library=self._config.health_library,
                gpus=wanted,
                poll_s=self._config.health_poll_s,
                call_deadline_s=self._config.health_call_deadline_s,
            )
            watcher.start()
        except self._core.CoreError as error:
            return str(error)
        self._nvml = watcher
        return ""

    def _open_logs(self) -> None:
        path, core, queue = self._config.health_log, self._core, self._queue
        if path != "none":
            # The ring buffer's past names the GPUs; of a file that another program fills, only what comes is news.
            self.monitor.add_source(
                _Native(
                    "kernel_log",
                    lambda: core.LogReader(queue, path or KMSG, from_start=not path),
                )
            )
        if not path:
            self.monitor.add_source(_Native("tracepoint", lambda: core.TraceReader(queue)))

    def _open_probes(self) -> None:
        if self._nvml is None:
            return
        indexes = [gpu.index for gpu in self._nvml.gpus()]
        try:
            attached, baseline = attach(self._config, indexes, self._config.health_library)
        except Exception as error:
            self.monitor.unavailable("probes", str(error) or type(error).__name__)
            return
        for reading in baseline:
            self.report(reading)

        def look() -> list[Reading]:
            found = attached.look()
            if self._forward is not None:
                for reading in found:
                    self._forward(reading)
            return found

        self.monitor.add_source(Polled("probes", look, _PROBES_EVERY_S, attached.close))

    def _translate(self, record: Any) -> Reading | None:
        if record.source == "heartbeat":
            reading: Reading | None = heartbeat.reading_of(record)
        elif record.source in nvml_events.SOURCES:
            reading = nvml_events.reading_of(record)
        else:
            reading = log_lines.reading_of(record)
        if reading is not None and self._forward is not None:
            self._forward(reading)
        return reading

    def _leave_silent_gpus_alone(self, incident: Incident) -> None:
        if incident.probe != "xid" or incident.code not in SILENT or self._nvml is None:
            return
        for gpu in self._nvml.gpus():
            here = Device(index=gpu.index, uuid=gpu.uuid, bdf=gpu.bdf)
            if any(device.same(here) for device in incident.devices) and self._nvml.avoid(
                gpu.index
            ):
                _log.info("GPU %d is asked nothing more after %s", gpu.index, incident.name)


class _Native:
    """A native source as the monitor knows sources: its records come through the queue, not by `add`."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self.name = name
        self._make = make
        self._made: Any = None

    def start(self, add: Callable[[Reading], None]) -> None:
        self._made = self._make()

    def stop(self) -> None:
        self._made.stop()
