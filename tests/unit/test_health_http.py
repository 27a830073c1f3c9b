"""The health endpoint, over real sockets: what it answers, its stream, its limits, and that clients cannot hurt it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.health import http as endpoint_module
from dynamo_gpu_ft.health.http import EVENTS, MAX_STREAMS, STATE, Endpoint, serve
from dynamo_gpu_ft.health.monitor import Monitor
from tests.unit.fusion_world import RANKS
from tests.unit.test_health_monitor import Heard, now

WAIT_S = 20.0


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    made = Monitor(ranks=RANKS[:2])
    made.start()
    yield made
    made.stop()


@pytest.fixture
def endpoint(monitor: Monitor) -> Iterator[Endpoint]:
    made = Endpoint(monitor, lambda: {"steps": 7})
    assert made.start(0)
    yield made
    made.stop()
    made.stop()


def get(endpoint: Endpoint, path: str) -> http.client.HTTPResponse:
    assert endpoint.port is not None
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=WAIT_S)
    connection.request("GET", path)
    return connection.getresponse()


def added(monitor: Monitor, code: int, gpu: int) -> None:
    heard = Heard()
    end = monitor.listen(heard)
    monitor.add(now(code, gpu))
    heard.wait(len)
    end()


def test_it_says_200_while_nothing_of_ours_is_unusable_and_503_then(
    endpoint: Endpoint, monitor: Monitor
) -> None:
    monitor.unavailable("tracepoint", "tracefs cannot be read here")
    answer = get(endpoint, STATE)
    state = json.load(answer)
    assert (answer.status, state["usable"], state["incidents"]) == (200, True, [])
    assert state["sources"]["tracepoint"] == {"active": False, "reason": "tracefs cannot be read here"}  # fmt: skip
    assert state["heartbeat"] == {"steps": 7}
    added(monitor, 63, 0)
    assert get(endpoint, STATE).status == 200, "degraded is not unusable"
    added(monitor, 79, 5)
    assert get(endpoint, STATE).status == 200, "nobody of ours is on that GPU"
    added(monitor, 79, 1)
    answer = get(endpoint, STATE)
    state = json.load(answer)
    assert (answer.status, state["worst"]) == (503, "gpu")
    assert {i["name"]: i["shards"] for i in state["incidents"]}["xid 79"] is not None
    assert "0000:11:00" in {device["bdf"] for device in state["devices"]}


def test_the_stream_begins_with_what_is_open_and_goes_on_with_news(
    endpoint: Endpoint, monitor: Monitor
) -> None:
    added(monitor, 48, 0)
    answer = get(endpoint, EVENTS)
    first = json.loads(answer.readline())
    assert (first["name"], first["version"]) == ("xid 48", 1)
    added(monitor, 79, 1)
    assert json.loads(answer.readline())["name"] == "xid 79"
    answer.close()


def test_the_stream_may_be_in_nvsentinels_shape(endpoint: Endpoint, monitor: Monitor) -> None:
    added(monitor, 79, 0)
    event = json.loads(get(endpoint, EVENTS + "?shape=nvsentinel").readline())
    assert (event["errorCode"], event["isFatal"]) == (["79"], True)


@pytest.mark.parametrize(
    ("path", "status"), [("/", 404), ("/health", 404), (EVENTS + "?shape=x", 400)]
)
def test_what_it_does_not_know_it_refuses_with_what_there_is(
    endpoint: Endpoint, path: str, status: int
) -> None:
    answer = get(endpoint, path)
    assert answer.status == status
    assert "error" in json.load(answer)


def test_other_methods_and_garbage_are_refused_and_it_goes_on(endpoint: Endpoint) -> None:
    assert endpoint.port is not None
    for words in (b"POST /health/gpu HTTP/1.1\r\n\r\n", b"\x16\x03\x01garbage\r\n\r\n", b"GET " + b"/" * 70_000):  # fmt: skip
        with socket.create_connection(("127.0.0.1", endpoint.port), timeout=WAIT_S) as client:
            client.sendall(words)
            client.shutdown(socket.SHUT_WR)
            try:
                assert b" 200 " not in client.recv(4096)
            except ConnectionResetError:
                pass
    assert get(endpoint, STATE).status == 200


def test_streams_are_limited_and_free_again_when_clients_go(
    endpoint: Endpoint, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "_ALIVE_S", 0.05)
    streams = [get(endpoint, EVENTS) for _ in range(MAX_STREAMS)]
    assert [s.status for s in streams] == [200] * MAX_STREAMS
    assert get(endpoint, EVENTS).status == 503
    for stream in streams:
        stream.close()
    assert endpoint._server is not None
    assert endpoint._server.streams.acquire(timeout=WAIT_S), "a place is free again"


def test_stopping_ends_the_streams(endpoint: Endpoint) -> None:
    stream = get(endpoint, EVENTS)
    ended = threading.Event()
    threading.Thread(target=lambda: (stream.read(), ended.set()), daemon=True).start()
    endpoint.stop()
    assert ended.wait(WAIT_S)


def test_a_heartbeat_that_raises_is_told_in_its_place(monitor: Monitor) -> None:
    def broken() -> None:
        raise RuntimeError("no beats here")

    _, state = Endpoint(monitor, broken).state()
    assert state["heartbeat"] == {"error": "RuntimeError: no beats here"}


def test_a_port_in_use_is_told_and_the_engine_goes_on(
    monitor: Monitor, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config.load({"health_port": endpoint.port})
    other = serve(monitor, config)
    assert other.port is None
    assert "not served" in caplog.text
    off = serve(monitor, Config.load({}), rank=3)
    assert off.port is None


def test_a_worker_of_rank_r_listens_on_its_own_port(monitor: Monitor) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    served = serve(monitor, Config.load({"health_port": free - 3}), rank=2)
    try:
        assert served.port == free
    finally:
        served.stop()
