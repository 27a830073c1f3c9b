"""`TcpStore` and the small server behind it, which no member of any engine hosts: `python -m dynamo_gpu_ft.recovery.membership.tcp`.

For engines whose ranks share no file system. The server keeps memberships in memory, or with --folder in files that outlive it. One
request is one line of JSON on a connection of its own; every wait of both sides has an end.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from dynamo_gpu_ft.errors import GpuFtError, StoreUnavailable
from dynamo_gpu_ft.recovery.membership.base import Membership, MembershipStore
from dynamo_gpu_ft.recovery.membership.file import FileStore
from dynamo_gpu_ft.recovery.membership.memory import MemoryStore
from dynamo_gpu_ft.recovery.membership.wire import MAX_BYTES, checked, checked_name

REQUEST_S = 5.0  # in which a client has to send its line
LONGEST_WAIT_S = 3600.0
CLIENTS = 512


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    do: Literal["read", "publish", "wait"]
    engine: str = ""
    membership: Membership | None = None
    epoch: int = 0
    timeout_s: float = 0.0


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    membership: Membership | None = None
    won: bool = False
    error: str = ""


class TcpStore:
    """`deadline_s` is the longest read and publish, connecting included. Each call has a connection of its own: threads and forks may
    share a handle, and a server that was restarted is found again."""

    def __init__(self, host: str, port: int, *, deadline_s: float = 5.0) -> None:
        self.address, self.deadline_s = (host, port), deadline_s

    def read(self, engine: str) -> Membership | None:
        return self._ask(Request(do="read", engine=checked_name(engine))).membership

    def publish(self, membership: Membership) -> bool:
        checked_name(membership.engine)
        checked(membership)
        return self._ask(Request(do="publish", membership=membership)).won

    def wait_past(self, engine: str, epoch: int, timeout_s: float) -> Membership | None:
        request = Request(
            do="wait", engine=checked_name(engine), epoch=epoch, timeout_s=max(0.0, timeout_s)
        )
        return self._ask(request, timeout_s).membership

    def close(self) -> None:
        """Nothing is held between calls."""

    def _ask(self, request: Request, more_s: float = 0.0) -> Reply:
        end = time.monotonic() + self.deadline_s + more_s
        try:
            with socket.create_connection(self.address, self.deadline_s) as connection:
                connection.settimeout(max(0.001, end - time.monotonic()))
                connection.sendall(msgspec.json.encode(request) + b"\n")
                line = _line(connection, end)
            reply = msgspec.json.decode(line, type=Reply)
        except (OSError, msgspec.DecodeError) as error:
            raise self._unavailable(f"{type(error).__name__}: {error}") from None
        if reply.error:
            raise self._unavailable(reply.error)
        return reply

    def _unavailable(self, why: str) -> StoreUnavailable:
        return StoreUnavailable(
            "the membership server does not answer as it should",
            where="{}:{}".format(*self.address),
            value=why,
            rule=f"an answer within {self.deadline_s:g} s",
            remedy="python -m dynamo_gpu_ft.recovery.membership.tcp on that machine",
        )


def _line(connection: socket.socket, end: float) -> bytes:
    """One line; OSError (TimeoutError) past `end`, for an end in mid-line, and for a line that is too long."""
    data = b""
    while not data.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("no whole line in time")
        connection.settimeout(left)
        part = connection.recv(65536)
        if not part:
            raise ConnectionError("the connection ended in mid-line")
        data += part
        if len(data) > MAX_BYTES:
            raise ConnectionError(f"a line of more than {MAX_BYTES} bytes")
    return data


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server: Any = self.server
        if not server.room.acquire(blocking=False):
            return  # the client sees its connection end and says so
        try:
            with contextlib.suppress(OSError):
                reply = self._reply(server.store)
                self.request.settimeout(REQUEST_S)
                self.request.sendall(msgspec.json.encode(reply) + b"\n")
        finally:
            server.room.release()

    def _reply(self, store: MembershipStore) -> Reply:
        line = _line(self.request, time.monotonic() + REQUEST_S)
        try:
            asked = msgspec.json.decode(line, type=Request)
            if asked.do == "publish" and asked.membership is not None:
                checked_name(asked.membership.engine)
                checked(asked.membership)
                return Reply(won=store.publish(asked.membership))
            engine = checked_name(asked.engine)
            if asked.do == "read":
                return Reply(membership=store.read(engine))
            if asked.do == "wait" and 0 <= asked.timeout_s <= LONGEST_WAIT_S:
                return Reply(membership=store.wait_past(engine, asked.epoch, asked.timeout_s))
            return Reply(error=f"no such request: {asked.do}")
        except (GpuFtError, ValueError) as error:  # msgspec's errors are ValueErrors
            return Reply(error=str(error)[:1000])


class Server(socketserver.ThreadingTCPServer):
    """Serves until `shutdown`. Port 0 takes a free one: see `server_address`."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, store: MembershipStore | None = None) -> None:
        self.store: MembershipStore = store or MemoryStore()
        self.room = threading.Semaphore(CLIENTS)
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that broke off is its own affair."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dynamo_gpu_ft.recovery.membership.tcp", description=__doc__
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port (default: a free one)")
    parser.add_argument("--folder", help="keep memberships in files there (default: in memory)")
    args = parser.parse_args(argv)
    try:
        server = Server(args.host, args.port, FileStore(args.folder) if args.folder else None)
    except (OSError, OverflowError, GpuFtError) as error:
        print(f"membership server on {args.host}:{args.port}: {error}", file=sys.stderr)
        return 2
    print("tcp:{}:{}".format(*server.server_address[:2]), flush=True)
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
