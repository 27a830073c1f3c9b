"""Takes measurements from every room: free until started, then a prometheus registry of our own behind a port of our own.

Last stop of everything worth counting. The registry is never the engine's: worker processes are not behind the engine's
`/metrics`, and what is written there from a worker is lost. Nothing here can fail its caller.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from dynamo_gpu_ft import __version__
from dynamo_gpu_ft.metrics.table import PREFIX, TABLE, Counter, Gauge, Histogram, Process

_log = logging.getLogger("dynamo_gpu_ft.metrics")


class Recorder:
    """Names are checked by the type checker, labels by prometheus_client at the first use.

    Calls cost one attribute look-up before `start` and never raise; a call that prometheus_client refuses is logged once.
    """

    def __init__(self) -> None:
        self._families: dict[str, Any] | None = None
        self._server: Any = None
        self._pid = 0
        self._refused: set[str] = set()
        self._lock = threading.Lock()
        self.registry: Any = None  # prometheus_client.CollectorRegistry once started
        self.port: int | None = None  # the port really listened on

    def add(self, name: Counter, amount: float = 1, **labels: str) -> None:
        """Adds to a counter."""
        self._apply(name, "inc", amount, labels)

    def set(self, name: Gauge, value: float, **labels: str) -> None:
        """Sets a gauge."""
        self._apply(name, "set", value, labels)

    def observe(self, name: Histogram, value: float, **labels: str) -> None:
        """Adds one observation to a histogram."""
        self._apply(name, "observe", value, labels)

    def start(
        self, process: Process, *, port: int, host: str = "127.0.0.1", digest: str = ""
    ) -> int | None:
        """Begins to record and, with a `port` above 0, to listen; returns the port listened on, None if none.

        `digest` names the core's payload digest, for the build info. May be called again: the first call of a process wins, and a forked child starts afresh. Never raises: a port in
        use or a missing prometheus_client is logged once and the engine goes on.
        """
        with self._lock:
            if self._pid == os.getpid():
                return self.port
            self._pid, self.port, self._server = os.getpid(), None, None
            if port <= 0:
                self._families = None
                return None
            try:
                self._families = self._build(process)
                self.set("info", 1, version=__version__, digest=digest)
                self.port = self._listen(port, host)
            except (
                Exception
            ) as error:  # ImportError, OSError (port in use), OverflowError (port range)
                _log.warning(
                    "metrics of the %s not served on %s:%d: %s", process, host, port, error
                )
            return self.port

    def stop(self) -> None:
        """Stops listening and forgets everything recorded; `start` may follow. Blocks for the server's last request."""
        with self._lock:
            server, self._server = self._server, None
            self._families, self.registry, self.port, self._pid = None, None, None, 0
            self._refused.clear()
        if server is not None:
            server.shutdown()
            server.server_close()

    def _build(self, process: Process) -> dict[str, Any]:
        import prometheus_client as prometheus

        self.registry = prometheus.CollectorRegistry()
        kinds = {
            "counter": prometheus.Counter,
            "gauge": prometheus.Gauge,
            "histogram": prometheus.Histogram,
        }
        families: dict[str, Any] = {}
        for row in TABLE:
            if process in row.processes:
                options = {"buckets": row.buckets} if row.buckets else {}
                families[row.name] = kinds[row.kind](
                    row.full_name, row.help, row.labels, registry=self.registry, **options
                )
        return families

    def _listen(self, port: int, host: str) -> int:
        import prometheus_client as prometheus

        self._server, _thread = prometheus.start_http_server(port, host, self.registry)
        return int(self._server.server_port)

    def _apply(self, name: str, method: str, value: float, labels: dict[str, str]) -> None:
        families = self._families
        if families is None:
            return
        try:
            family = families[name]
            getattr(family.labels(**labels) if labels else family, method)(value)
        except Exception as error:
            if name not in self._refused:
                self._refused.add(name)
                _log.warning("metric %s%s not recorded: %r", PREFIX, name, error)


def port_of(process: Process, base: int, *, rank: int = 0, standalone: bool = False) -> int:
    """Which port a process of one engine uses when the front's is `base`; 0 means none.

    front, driver: base. worker of global rank r: base + 1 + r. scheduler: none, except `standalone` (the connector without our front,
    so that nobody else has the base port).
    """
    if base <= 0:
        return 0
    if process == "worker":
        return base + 1 + rank
    if process == "scheduler":
        return base if standalone else 0
    return base


_RECORDER = Recorder()


def metrics() -> Recorder:
    """The recorder of this process."""
    return _RECORDER
