"""The serving process's side of health: hears of every incident that concerns its engine, and says when the engine must end.

Sources are this process's own monitor (driver, kernel log, heartbeats of all ranks) and the readings that workers send. It outlives
engines; each start of one has its own heartbeat file and socket. Everything but the monitor's thread runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dynamo_gpu_ft import native
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm import devices
from dynamo_gpu_ft.health import heartbeat
from dynamo_gpu_ft.health.incidents import Incident
from dynamo_gpu_ft.health.watching import Watching
from dynamo_gpu_ft.health.wire import Hello, Receiver
from dynamo_gpu_ft.metrics import metrics
from dynamo_gpu_ft.recovery.devices import Choice, Fence, choose, named_by
from dynamo_gpu_ft.recovery.verdicts import Sentence, Verdicts
from dynamo_gpu_ft.topology import Device, Rank

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")


Condemn = Callable[[Sentence], None]


@dataclass
class _Start:
    """The files of one engine start."""

    tag: str
    ranks: int
    receiver: Receiver
    beats: str
    held: int  # descriptor whose lock keeps the files
    reading: bool = False  # the event loop listens to the receiver

    def close(self) -> None:
        self.receiver.close()
        os.close(self.held)
        try:
            os.unlink(self.beats)
        except OSError:
            pass  # somebody removed it already


class FrontHealth:
    """One per serving process. `condemn(sentence)` is called on the event loop when the running engine must end, or these
    ranks of it alone."""

    def __init__(self, config: Config, listener: Callable[[Incident], None]) -> None:
        self._config, self._listener = config, listener
        self._names = devices.names(config)
        self._known: dict[str, Device] = {}
        self._ranks: dict[int, Rank] = {}
        self._fence, self._verdicts = Fence(), Verdicts()
        self._current: _Start | None = None
        self._started = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._early: list[Incident] = []
        self._hearing = threading.Lock()
        self._condemn: Condemn = lambda sentence: None
        self._watching: Watching | None = None

    def prepare(self, tag: str, ranks: int) -> None:
        """Makes the files of the engine start `tag` before its processes look for them. Never raises.

        The first call starts the watching too and may block for a few driver calls' deadlines; call it before there is a loop."""
        self._release()
        self._started = time.monotonic()
        self._ranks.clear()
        if not self._config.health:
            return
        if self._watching is None:
            self._begin_watching()
        try:
            heartbeat.remove_stale(self._config.arena_dir)
            beats, socket = heartbeat.files(self._config.arena_dir, tag)
            native.load().make_heartbeat_file(beats, ranks)
            self._current = _Start(tag, ranks, Receiver(socket), beats, heartbeat.hold(beats))
        except Exception as error:
            _log.warning(
                "NOT WATCHED: hangs and readings of the engine's workers: %s: %s. Its death is noticed all the same",
                type(error).__name__,
                error,
            )

    def serve(self, condemn: Condemn) -> None:
        """The prepared engine serves from now on; call on the event loop. A device that was fenced meanwhile ends it at once."""
        self._condemn = condemn
        if not self._config.health:
            return
        with self._hearing:
            self._loop = asyncio.get_running_loop()
            early, self._early = self._early, []
        for incident in early:
            self._heard(incident)
        current = self._current
        if current is None or self._watching is None:
            return
        self._arrived()
        if not current.reading:
            self._loop.add_reader(current.receiver.fileno(), self._arrived)
            current.reading = True
        self._watching.add_heartbeats(current.beats, ranks=current.ranks)
        for rank in self._ranks.values():
            why = self._fence.against(rank.device) if rank.device.known else None
            if why is not None:
                what = f"shard {rank.shard} is on a device that must not be used: {why}"
                self._condemn(Sentence(what))
                return

    def expect(self, work: bool) -> None:
        """Whether requests are open, so that steps should be made."""
        if self._watching is not None:
            self._watching.expect(work)

    def choose(self, ranks: int) -> tuple[Choice, dict[str, str]]:
        """Devices of the next engine, and what its environment needs; both empty while nothing is fenced."""
        if not self._fence.reasons:
            return Choice(()), {}
        choice = choose(self._names, self._known, self._fence, count=ranks)
        return choice, devices.environment(choice.devices, self._config)

    def end(self) -> None:
        """Ends everything; safe to repeat, and from any thread once the loop is gone."""
        self._release()
        if self._watching is not None:
            self._watching.stop()
            self._watching = None

    def _begin_watching(self) -> None:
        try:
            self._watching = Watching(
                self._config,
                [],
                devices=[named_by(name) for name in self._names] or None,
                on_incident=self._heard_elsewhere,
            )
            self._watching.start()
            for gpu in self._watching.gpus():
                for name in self._names:
                    if named_by(name).same(gpu):
                        self._known[name] = gpu
        except Exception as error:
            self._watching = None
            _log.warning("NOT WATCHED: GPUs and driver: %s: %s", type(error).__name__, error)

    def _release(self) -> None:
        current, self._current = self._current, None
        if self._watching is not None:
            self._watching.remove_heartbeats()
        if current is None:
            return
        loop = self._loop if current.reading else None
        if loop is None or loop.is_closed():
            current.close()
        else:  # the loop must have let go of the socket before it is closed

            def close() -> None:
                loop.remove_reader(current.receiver.fileno())
                current.close()

            loop.call_soon_threadsafe(close)

    def _arrived(self) -> None:
        """Messages of the workers: who they are, and what they see."""
        if self._current is None or self._watching is None:
            return
        for message in self._current.receiver.take():
            if isinstance(message, Hello):
                self._ranks[message.rank.shard] = message.rank
                self._watching.set_ranks(list(self._ranks.values()))
                local = message.rank.shard
                if local < len(self._names) and message.rank.device.known:
                    name = self._names[local]
                    if (
                        not self._fence.reasons
                    ):  # ranks take the names in order only while none is left out
                        known = self._known.get(name, named_by(name))
                        self._known[name] = known.merged(message.rank.device)
            else:
                if message.lost:
                    metrics().add("health_lost_total", message.lost, source="wire")
                self._watching.add(message.reading)

    def _heard_elsewhere(self, incident: Incident) -> None:
        """On the monitor's thread. What comes before the first engine serves waits for it, the newest thousand."""
        with self._hearing:
            if self._loop is None:
                self._early = [*self._early[-999:], incident]
            elif not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._heard, incident)

    def _heard(self, incident: Incident) -> None:
        self._listener(incident)
        if incident.cleared:
            self._fence.clear(incident.id)
        sentence = self._verdicts.weigh(incident, started=self._started)
        if sentence is None:
            return
        for device in sentence.fence:
            self._fence.add(incident.id, device, f"{incident.name}: {incident.verdict.reason}")
        if self._config.health_act:
            self._condemn(sentence)
        else:
            _log.warning("not acted upon (health_act is off): %s", sentence.reason)
