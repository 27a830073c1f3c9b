"""The membership server among clients that lie, hang and break off, and across its own death."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamo_gpu_ft.errors import StoreUnavailable
from dynamo_gpu_ft.recovery.membership import tcp
from dynamo_gpu_ft.recovery.membership.base import Membership
from dynamo_gpu_ft.recovery.membership.file import FileStore
from dynamo_gpu_ft.recovery.membership.tcp import Server, TcpStore
from tests.contracts.membership_world import membership, server


@pytest.fixture
def serving() -> Iterator[Server]:
    made = Server("127.0.0.1", 0)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join(10)


def client(serving: Server, deadline_s: float = 5.0) -> TcpStore:
    host, port = serving.server_address[:2]
    return TcpStore(str(host), port, deadline_s=deadline_s)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\x00\n",
        b'{"do":"drop"}\n',
        b'{"do":"read","engine":"../../etc/passwd"}\n',
        b'{"do":"publish"}\n',
        b'{"do":"wait","engine":"e","timeout_s":1e99}\n',
        b'{"do":"wait","engine":"e","timeout_s":-1}\n',
        b'{"do":"publish","membership":{"engine":"e","epoch":1,"shards":1,"members":[{"shard":9,"rank":0,"pid":1}]}}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_request_that_is_none_is_answered_with_an_error_and_the_server_serves_on(
    serving: Server, line: bytes
) -> None:
    with socket.create_connection(serving.server_address[:2], 5.0) as connection:
        connection.sendall(line)
        assert b'"error"' in connection.recv(65536)
    store = client(serving)
    assert store.read("e") is None
    assert store.publish(membership(1))


def test_clients_that_send_nothing_or_too_much_are_left_alone_and_hold_nobody_up(
    serving: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "REQUEST_S", 0.3)
    silent = [socket.create_connection(serving.server_address[:2], 5.0) for _ in range(20)]
    greedy = socket.create_connection(serving.server_address[:2], 5.0)
    with greedy, pytest.raises(OSError):  # reset or broken pipe, as the moment has it
        for _ in range(64):
            greedy.sendall(b"x" * (1 << 20))
        greedy.recv(1)
        raise ConnectionResetError
    began = time.monotonic()
    assert client(serving).publish(membership(1))
    assert time.monotonic() - began < 2.0
    for each in silent:
        assert each.recv(1) == b"", "ended by the server"
        each.close()


def test_more_clients_than_there_is_room_for_are_refused_and_let_in_again_later(
    monkeypatch: pytest.MonkeyPatch, serving: Server
) -> None:
    serving.room = threading.Semaphore(2)
    store, inside, wait = client(serving, 0.5), threading.Semaphore(0), serving.store.wait_past

    def told(engine: str, epoch: int, timeout_s: float) -> Membership | None:
        inside.release()
        return wait(engine, epoch, timeout_s)

    monkeypatch.setattr(serving.store, "wait_past", told)
    waiting = [
        threading.Thread(target=client(serving).wait_past, args=("e", 0, 30.0)) for _ in range(2)
    ]
    for each in waiting:
        each.start()
    assert all(inside.acquire(timeout=10) for _ in waiting)
    with pytest.raises(StoreUnavailable):
        store.read("e")
    serving.store.publish(membership(1))
    for each in waiting:
        each.join(10)
    assert store.read("e") == membership(1)


@pytest.mark.parametrize(
    "answer", [b"", b"no json\n", b'{"membership":{"engine":1}}\n', b'{"won":tru'], ids=str
)
def test_a_server_that_lies_is_an_error(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def lie() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=lie)
        thread.start()
        host, port = listening.getsockname()
        with pytest.raises(StoreUnavailable, match="does not answer as it should"):
            TcpStore(host, port, deadline_s=2.0).publish(membership(1))
        thread.join(10)


def test_a_server_that_drips_its_answer_is_cut_at_the_deadline() -> None:
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        host, port = listening.getsockname()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="TimeoutError"):
            TcpStore(host, port, deadline_s=0.4).read("e")
        assert time.monotonic() - began < 2.0
        stop.set()
        thread.join(10)


def test_with_a_folder_what_was_published_outlives_the_server(tmp_path: Path) -> None:
    for epoch in (1, 2):
        with server("tcp+folder", tmp_path) as (url, _):
            host, port = url.removeprefix("tcp:").rsplit(":", 1)
            store = TcpStore(host, int(port))
            newest = store.read("e")
            assert (newest.epoch if newest else 0) == epoch - 1
            assert store.publish(membership(epoch))
    assert FileStore(tmp_path / "kept").read("e") == membership(2)


def test_a_port_or_a_folder_that_cannot_be_had_is_said_with_exit_status_2(
    serving: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tcp.main(["--port", str(serving.server_address[1])]) == 2
    (tmp_path / "file").touch()
    assert tcp.main(["--folder", str(tmp_path / "file")]) == 2
    assert "membership server on 127.0.0.1" in capsys.readouterr().err
