"""The health endpoint: GET /health/gpu as JSON, GET /health/gpu/events as a stream of one JSON line per incident.

Hangs on a monitor; a listening socket of its own, loopback by default. A slow or silent client costs a thread of this server and
nothing else; the number of streams is bounded.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from dynamo_gpu_ft import __version__
from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.health import nvsentinel, report
from dynamo_gpu_ft.health.incidents import Incident
from dynamo_gpu_ft.health.monitor import Monitor
from dynamo_gpu_ft.metrics import port_of
from dynamo_gpu_ft.metrics.table import Process

_log = logging.getLogger("dynamo_gpu_ft.health")

STATE, EVENTS = "/health/gpu", "/health/gpu/events"
MAX_STREAMS = 16
MAX_CLIENTS = 64
_BEHIND = 1000  # incidents a stream may be behind
_ALIVE_S = 15.0  # an empty line this often, so that a client that has gone is noticed
_TIMEOUT_S = 10.0


class Endpoint:
    """`heartbeat` gives plain data about this process's steps, or raises."""

    def __init__(self, monitor: Monitor, heartbeat: Callable[[], Any] | None = None) -> None:
        self.monitor = monitor
        self.port: int | None = None  # the port really listened on
        self._heartbeat = heartbeat
        self._server: _Server | None = None

    def start(self, port: int, host: str = "127.0.0.1") -> int | None:
        """Listens; 0 picks a free port. Returns the port, None when it cannot: logged, the engine goes on without. Once."""
        if self._server is not None:
            return self.port
        try:
            server = _Server((host, port), _Handler)
        except (OSError, OverflowError) as error:
            _log.warning("GPU health is not served on %s:%d: %s", host, port, error)
            return None
        server.endpoint = self
        self._server, self.port = server, int(server.server_address[1])
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="gpu-ft-health-http", daemon=True
        ).start()  # fmt: skip
        return self.port

    def stop(self) -> None:
        """Ends listening and all streams; safe to repeat."""
        server, self._server = self._server, None
        if server is not None:
            server.over.set()
            server.shutdown()
            server.server_close()

    def state(self) -> tuple[bool, dict[str, Any]]:
        monitor, beat = self.monitor, None
        if self._heartbeat is not None:
            try:
                beat = self._heartbeat()
            except Exception as error:
                beat = {"error": f"{type(error).__name__}: {error}"}
        return report.state(
            monitor.open(),
            monitor.snapshot(),
            monitor.sources(),
            ranks_known=monitor.ranks_known,
            running=monitor.running,
            heartbeat=beat,
        )


def serve(
    monitor: Monitor,
    config: Config,
    *,
    rank: int | None = None,
    heartbeat: Callable[[], Any] | None = None,
) -> Endpoint:
    """The endpoint as configured (`health_port`, `health_host`): of the serving process, or of the worker of global `rank`."""
    endpoint = Endpoint(monitor, heartbeat)
    process: Process = "front" if rank is None else "worker"
    port = port_of(process, config.health_port, rank=rank or 0)
    if port > 0:
        endpoint.start(port, config.health_host)
    return endpoint


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    endpoint: Endpoint

    def __init__(self, *args: Any) -> None:
        self.over = threading.Event()
        self.streams = threading.BoundedSemaphore(MAX_STREAMS)
        self.clients = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A client beyond the limit is refused by closing: a thread each would be a way to hurt the engine."""
        if not self.clients.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.clients.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a health request failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = f"dynamo-gpu-ft/{__version__}"
    sys_version = ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == STATE:
            usable, state = self.server.endpoint.state()
            self._answer(200 if usable else 503, state)
        elif url.path == EVENTS:
            shape = parse_qs(url.query).get("shape", ["incident"])[-1]
            if shape not in ("incident", "nvsentinel"):
                self._answer(400, {"error": f"shape {shape[:40]!r} is not known", "shapes": ["incident", "nvsentinel"]})  # fmt: skip
            elif not self.server.streams.acquire(blocking=False):
                self._answer(503, {"error": f"{MAX_STREAMS} streams are open already"})
            else:
                try:
                    self._stream(shape)
                finally:
                    self.server.streams.release()
        else:
            self._answer(404, {"error": "not found", "paths": [STATE, EVENTS]})

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug("health endpoint: " + format, *args)

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, shape: str) -> None:
        """Open incidents first, then every new or revised one, until the client goes or the endpoint stops."""
        waiting: deque[Incident] = deque()
        arrived = threading.Condition()
        lost = 0

        def listener(incident: Incident) -> None:
            nonlocal lost
            with arrived:
                if len(waiting) >= _BEHIND:
                    lost += 1
                else:
                    waiting.append(incident)
                arrived.notify()

        end = self.server.endpoint.monitor.listen(listener)
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            told = {}  # what is open already may be on its way to the listener as well
            for incident in self.server.endpoint.monitor.open():
                told[incident.id] = incident.version
                self._line(incident, shape)
            self.wfile.flush()
            last = time.monotonic()
            while not self.server.over.is_set():
                with arrived:
                    if not waiting:
                        arrived.wait(0.5)
                    news, gone = list(waiting), lost
                    waiting.clear()
                    lost = 0
                for incident in news:
                    if incident.version > told.get(incident.id, 0):
                        self._line(incident, shape)
                if gone:
                    self.wfile.write(json.dumps({"lost": gone}).encode() + b"\n")
                if not news and time.monotonic() - last > _ALIVE_S:
                    self.wfile.write(b"\n")
                if news or time.monotonic() - last > _ALIVE_S:
                    last = time.monotonic()
        except OSError:
            pass  # the client has gone, or does not read
        finally:
            end()
            self.close_connection = True

    def _line(self, incident: Incident, shape: str) -> None:
        if shape == "nvsentinel":
            line = json.dumps(nvsentinel.health_event(incident)).encode()
        else:
            line = msgspec.json.encode(incident)
        self.wfile.write(line + b"\n")
