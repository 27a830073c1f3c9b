"""The monitor: takes readings from every thread and queue, fuses them on one thread of its own, hands incidents to listeners.

The effectful part of the health room; one per process. Nothing here raises into the engine, blocks it or grows without bound.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dynamo_gpu_ft.health.fusion import Fusion, Snapshot
from dynamo_gpu_ft.health.incidents import Incident
from dynamo_gpu_ft.health.readings import Reading
from dynamo_gpu_ft.health.settings import Settings
from dynamo_gpu_ft.health.sources import SourceOfReadings
from dynamo_gpu_ft.metrics import metrics
from dynamo_gpu_ft.topology import Rank

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

_log = logging.getLogger("dynamo_gpu_ft.health")

Listener = Callable[[Incident], None]
Translate = Callable[[Any], "Reading | None"]  # a native WatchRecord -> a reading
_LONGEST_WAIT_S = 5.0
_CLOSED_KEPT = 256


class Monitor:
    """Thread-safe. `add` may be called before `start`; what is added after `stop` is dropped.

    queue      of native sources; drained by the monitor's thread through `translate`
    room       readings that may wait for that thread; more are counted as lost and told
    driver, settings  as for `Fusion`
    clock      CLOCK_MONOTONIC in seconds; tests hand in their own
    In a forked child everything is without effect: the child may make a monitor of its own.
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        driver: str = "",
        ranks: Sequence[Rank] = (),
        queue: _core.WatchQueue | None = None,
        translate: Translate | None = None,
        sources: Iterable[SourceOfReadings] = (),
        room: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._fusion = Fusion(settings, driver, ranks, attached=clock())
        self._queue, self._translate = queue, translate
        self._sources = list(sources)
        self._active: dict[str, SourceOfReadings] = {}
        self._unavailable: dict[str, str] = {}
        self._waiting: deque[Reading] = deque()
        self._room = room
        self._lost = 0
        self._lock = threading.Lock()  # guards what waits, listeners and sources
        self._fusing = threading.Lock()  # guards the fusion and what it told
        self._listeners: dict[int, Listener] = {}
        self._reported: set[int] = set()
        self._next_listener = 0
        self._closed: deque[Incident] = deque(maxlen=_CLOSED_KEPT)
        self._thread: threading.Thread | None = None
        self._over = False
        self._wake = -1
        self._new_ranks: Sequence[Rank] | None = None
        self._pid = os.getpid()
        self._broken = False

    # --- life ---

    def start(self) -> None:
        """Starts the thread and the sources; blocks for their start. A source that cannot start is told by `sources`. Never raises."""
        with self._lock:
            if self._thread is not None or self._over or not self._mine():
                return
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._thread = threading.Thread(target=self._run, name="gpu-ft-monitor", daemon=True)
            self._thread.start()
        for source in self._sources:
            self.add_source(source)

    def stop(self, deadline_s: float = 10.0) -> None:
        """Stops sources and thread; waits at most `deadline_s` for the latter. Safe to repeat, and from a listener."""
        if not self._mine():
            return
        with self._lock:
            if self._over:
                return
            self._over = True
            active, self._active = dict(self._active), {}
        for source in active.values():
            self._stop_source(source)
        with self._lock:
            self._signal()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(deadline_s)

    def add_source(self, source: SourceOfReadings) -> bool:
        """Starts one more source; whether it is active. Never raises."""
        try:
            source.start(self.add)
        except Exception as error:
            why = str(error) or type(error).__name__
            self.unavailable(source.name, why)
            return False
        with self._lock:
            late = self._over
            if not late:
                self._active[source.name] = source
                self._unavailable.pop(source.name, None)
        if late:
            self._stop_source(source)
        return not late

    def unavailable(self, name: str, why: str) -> None:
        """Notes that a source cannot be used here, and why; told once in the log."""
        with self._lock:
            new = self._unavailable.get(name) != why
            self._unavailable[name] = why
        if new:
            _log.info("source %s is not available: %s", name, why)

    def set_ranks(self, ranks: Sequence[Rank]) -> None:
        """The engine's ranks are these from now on; what changes by it is told like any news."""
        if not self._mine():
            return
        with self._lock:
            self._new_ranks = tuple(ranks)
            self._signal()

    # --- in ---

    def add(self, reading: Reading) -> None:
        """Hands one reading over. From any thread; never blocks on the fusion, never raises."""
        if self._over or not self._mine():
            return
        with self._lock:
            fits = len(self._waiting) < self._room
            if fits:
                self._waiting.append(reading)
            else:
                self._lost += 1
            self._signal()

    # --- out ---

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with every incident, new or revised, on the monitor's thread; returns what ends that.

        A listener that raises is reported once and keeps being called. It must not block for long."""
        with self._lock:
            number = self._next_listener
            self._next_listener += 1
            self._listeners[number] = listener

        def end() -> None:
            with self._lock:
                self._listeners.pop(number, None)

        return end

    async def incidents(self, room: int = 1000) -> AsyncIterator[Incident]:
        """Every incident from now on, for the running event loop; a consumer that is `room` behind loses the oldest ones, counted."""
        loop = asyncio.get_running_loop()
        waiting: deque[Incident] = deque(maxlen=room)
        arrived = asyncio.Event()

        def arrive(incident: Incident) -> None:
            if len(waiting) == room:
                metrics().add("health_lost_total", source="listener")
            waiting.append(incident)
            arrived.set()

        def hand_over(incident: Incident) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(arrive, incident)

        end = self.listen(hand_over)
        try:
            while True:
                await arrived.wait()
                arrived.clear()
                while waiting:
                    yield waiting.popleft()
        finally:
            end()

    def open(self) -> list[Incident]:
        """Incidents that are not over, as of the last reading taken in."""
        if not self._mine():
            return []
        with self._fusing:
            return self._fusion.open()

    def closed(self) -> list[Incident]:
        """The last incidents that are over, oldest first, at most 256."""
        if not self._mine():
            return []
        with self._fusing:
            return list(self._closed)

    def snapshot(self) -> Snapshot:
        """Devices, states and counts; empty in a forked child."""
        if not self._mine():
            return Fusion().snapshot()
        with self._fusing:
            return self._fusion.snapshot()

    def sources(self) -> dict[str, str]:
        """Name -> "" for an active source, else why it is not available."""
        if not self._mine():
            return {}
        with self._lock:
            return {**self._unavailable, **dict.fromkeys(self._active, "")}

    @property
    def ranks_known(self) -> bool:
        """Whether it is known which ranks there are; if not, every fault may be the engine's."""
        return self._fusion.ranks_known

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and self._mine()

    # --- the thread ---

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._queue is not None and self._queue.fileno() >= 0:
            poll.register(self._queue.fileno(), select.POLLIN)
        wait = 0.0
        while not self._over:
            poll.poll(wait * 1000)
            try:
                os.eventfd_read(self._wake)
            except BlockingIOError:
                pass
            wait = self._turn_safely()
        self._turn_safely()  # what the sources handed over before they stopped
        with self._lock:
            os.close(self._wake)
            self._wake = -1

    def _turn_safely(self) -> float:
        try:
            return self._turn()
        except Exception:
            if not self._broken:
                self._broken = True
                _log.exception("the monitor failed on some readings and goes on; later failures are not repeated")  # fmt: skip
            return _LONGEST_WAIT_S

    def _turn(self) -> float:
        """One look at what waits; seconds until the next one is due."""
        readings, lost, ranks = self._gather()
        now = self._clock()
        with self._fusing:
            before = self._fusion.lost
            told = [] if ranks is None else self._fusion.set_ranks(ranks)
            told += self._fusion.add_all(readings, now=now)
            told += self._fusion.tick(now)
            self._fusion.lose(lost)
            gone = self._fusion.lost - before
            due = self._fusion.deadline()
        self._count(readings, gone)
        self._tell(told)
        return (
            _LONGEST_WAIT_S if due is None else min(max(due - self._clock(), 0.0), _LONGEST_WAIT_S)
        )

    def _gather(self) -> tuple[list[Reading], int, Sequence[Rank] | None]:
        """What waits: readings, how many could not wait, and the engine's ranks if they are new."""
        with self._lock:
            readings, lost, ranks = list(self._waiting), self._lost, self._new_ranks
            self._waiting.clear()
            self._lost, self._new_ranks = 0, None
        if self._queue is None or self._translate is None:
            return readings, lost, ranks
        for record in self._queue.take(self._room):
            try:
                reading = self._translate(record)
            except Exception:
                lost += 1
                continue
            if reading is not None:
                readings.append(reading)
        return readings, lost, ranks

    def _count(self, readings: Sequence[Reading], lost: int) -> None:
        for source, n in Counter(reading.source.value for reading in readings).items():
            metrics().add("health_readings_total", n, source=source)
        if lost:
            metrics().add("health_lost_total", lost, source="monitor")

    def _tell(self, told: Sequence[Incident]) -> None:
        if not told:
            return
        with self._lock:
            listeners = list(self._listeners.items())
        for incident in told:
            verdict = incident.verdict.unusable.value
            if incident.version == 1:
                metrics().add("health_incidents_total", verdict=verdict)
            if incident.cleared:
                with self._fusing:
                    self._closed.append(incident)
            for number, listener in listeners:
                try:
                    listener(incident)
                except Exception:
                    self._report(number, listener)
        counts = Counter(incident.verdict.unusable for incident in self.open())
        for unusable in type(told[0].verdict.unusable):
            metrics().set("health_open_incidents", counts[unusable], verdict=unusable.value)

    def _report(self, number: int, listener: Listener) -> None:
        if number not in self._reported:
            self._reported.add(number)
            _log.exception("incident listener %r failed; later failures are not repeated", listener)

    def _stop_source(self, source: SourceOfReadings) -> None:
        try:
            source.stop()
        except Exception:
            _log.exception("source %s could not be stopped", source.name)

    def _signal(self) -> None:
        """Wakes the thread. Only with the lock: the descriptor must not be somebody else's by now."""
        if self._wake < 0:
            return
        try:
            os.eventfd_write(self._wake, 1)
        except OSError:
            pass  # the counter is full: then it is awake anyway

    def _mine(self) -> bool:
        return os.getpid() == self._pid
