"""What watches one vLLM worker from inside: its heartbeat, its own errors, and the monitor of its GPU.

Made once the worker has its device. Readings go to this process's monitor and, where a resilient client serves the engine, over the
wire to it; the client decides.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from typing import Any

from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm import settings
from dynamo_gpu_ft.engines.vllm.devices import device_of
from dynamo_gpu_ft.errors import HealthError
from dynamo_gpu_ft.health import heartbeat
from dynamo_gpu_ft.health.attribution import host_pid
from dynamo_gpu_ft.health.catalogue.engine import engine_error
from dynamo_gpu_ft.health.device_beat import DeviceBeat
from dynamo_gpu_ft.health.readings import Reading
from dynamo_gpu_ft.health.watching import Watching
from dynamo_gpu_ft.health.wire import Sender
from dynamo_gpu_ft.recovery import processes
from dynamo_gpu_ft.topology import Rank

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")


class WorkerHealth:
    """One worker's. `step` and `long_work` are entered by its main thread only."""

    def __init__(
        self,
        beat: native._core.Beat,
        rank: Rank,
        config: Config,
        device_beat: DeviceBeat | None = None,
    ) -> None:
        self.rank = rank
        self._device_beat = device_beat
        self._beat, self._config = beat, config
        self._kinds: list[int] = []
        self._sender: Sender | None = None
        self._watching: Watching | None = None
        self._last_error: BaseException | None = None
        self._kept: tuple[str, int] | None = None

    @classmethod
    def start(cls, wrapper: Any) -> WorkerHealth | None:
        """For vLLM's worker wrapper with an initialised device; None when switched off. Blocks for NVML's own start.

        Raises what keeps the heartbeat from working; sources of the monitor that cannot work are told by the monitor."""
        config = settings.config_of(wrapper.vllm_config)
        if not config.health:
            return None
        tag = os.environ.get(processes.TAG_VARIABLE, "")
        worker, parallel = wrapper.worker, wrapper.vllm_config.parallel_config
        shard, ranks = int(worker.rank), int(parallel.world_size)
        beats, socket = heartbeat.files(config.arena_dir, tag or wrapper.vllm_config.instance_id)
        beat = native.load().Beat(beats, rank=shard, ranks=ranks)
        beat.busy(config.start_timeout_s)
        device = device_of(worker, config)
        rank = Rank(shard=shard, pid=os.getpid(), host_pid=host_pid(os.getpid()), device=device)
        health = cls(beat, rank, config, _device_beat(beat, worker))
        health._announce_compiling()
        watching = Watching(
            config,
            [rank],
            devices=[device] if device.known else None,
            rank=shard,
            forward=health._forward,
            vitals=lambda: {"shard": shard, "steps": beat.steps},
        )
        if not (tag and health._connect(socket)):
            health._keep(beats)
            if worker.local_rank == 0:
                watching.add_heartbeats(beats, ranks=ranks)  # nobody else looks at these ranks
        watching.start()
        health._watching = watching
        return health

    def step(self, kind: int) -> _Step:
        """Context of one step of this class."""
        return _Step(self, kind)

    def long_work(self) -> _LongWork:
        """Context of work before the first step: it may take as long as a start."""
        return _LongWork(self)

    def failed(self, error: BaseException) -> None:
        """Reports an error of the engine if it says something about a GPU or a communicator. Never raises."""
        try:
            if error is self._last_error:
                return  # on its way through an outer context
            self._last_error = error
            reading = engine_error(
                error, shard=self.rank.shard, device=self.rank.device, pid=self.rank.pid
            )
            if reading is not None:
                self.report(reading)
        except Exception:
            _log.exception("an engine error could not be classified: %r", error)

    def report(self, reading: Reading) -> None:
        if self._watching is not None:
            self._watching.report(reading)
        else:
            self._forward(reading)

    def stop(self) -> None:
        """Ends everything; the heartbeat is left on purpose, which is no death."""
        if self._watching is not None:
            self._watching.stop()
        if self._sender is not None:
            self._sender.close()
        self._beat.leave()
        if self._device_beat is not None:
            self._device_beat.close()
        self._let_go()

    def _let_go(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None and os.getpid() == self.rank.pid:
            heartbeat.let_go(*kept)

    def _keep(self, beats: str) -> None:
        """Without a server that keeps the heartbeat file, its workers do, and tidy up after those that were killed."""
        try:
            self._kept = beats, heartbeat.hold(beats)
        except OSError as error:
            _log.warning("the heartbeat file %s is kept by nobody: %s", beats, error)
        atexit.register(self._let_go)  # an offline engine ends without being shut down
        heartbeat.remove_stale(self._config.arena_dir)

    def _forward(self, reading: Reading) -> None:
        if self._sender is not None:
            self._sender.send(reading)

    def _connect(self, socket: str) -> bool:
        """Whether a server takes this worker's readings."""
        try:
            sender = Sender(socket, self.rank)
        except HealthError as error:
            _log.warning("readings of shard %d stay in its process: %s", self.rank.shard, error)
            return False
        if sender.hello():
            self._sender = sender
            return True
        sender.close()
        return False

    def _announce_compiling(self) -> None:
        """A step in which torch compiles takes as long as it takes. Only if the engine has loaded the compiler already."""
        callback = getattr(sys.modules.get("torch._dynamo"), "callback", None)
        handler = getattr(callback, "callback_handler", None)
        if handler is None:
            return
        handler.register_start_callback(lambda _: self._compiling(True))
        handler.register_end_callback(lambda _: self._compiling(False))

    def _compiling(self, begins: bool) -> None:
        if not self._kinds:
            return
        if begins:
            self._beat.busy(self._config.start_timeout_s)
        else:
            self._beat.begin(self._kinds[-1])  # what follows is what such a step usually takes


class _Step:
    def __init__(self, health: WorkerHealth, kind: int) -> None:
        self._health, self._kind = health, kind

    def __enter__(self) -> None:
        self._health._kinds.append(self._kind)
        self._health._beat.begin(self._kind)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        health = self._health
        health._kinds.pop()
        if error is None:
            if health._device_beat is not None:
                health._device_beat.mark()
            health._beat.end()
        else:
            health._beat.idle()  # a failed step says nothing about what is usual
            health.failed(error)


class _LongWork:
    def __init__(self, health: WorkerHealth) -> None:
        self._health = health

    def __enter__(self) -> None:
        self._health._beat.busy(self._health._config.start_timeout_s)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._health._beat.idle()
        if error is not None:
            self._health.failed(error)


def _device_beat(beat: native._core.Beat, worker: Any) -> DeviceBeat | None:
    """The device's half on CUDA; None elsewhere, and where the driver refuses: the host's half goes on."""
    device = getattr(worker, "device", None)
    if getattr(device, "type", "") != "cuda":
        return None
    try:
        return DeviceBeat(beat, device)
    except Exception as error:
        _log.warning("hangs of the device are seen by the host's steps only: %s", error)
        return None
