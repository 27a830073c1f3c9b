"""Readings on their way from a worker to the process that serves its requests: datagrams on a Unix socket of one engine start.

The receiver makes the socket (mode 0600) before the workers start; a sender never waits for it. What cannot be sent is counted and
told by the next message that can, so that nothing is lost silently.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from typing import Union

import msgspec

from dynamo_gpu_ft.errors import HealthError
from dynamo_gpu_ft.health.readings import Reading
from dynamo_gpu_ft.topology import Rank

#: Longest message; a reading with a long text is cut to it.
MAX_BYTES = 32 << 10
#: The kernel's limit on the path of a Unix socket, with its closing zero.
MAX_PATH = 107


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """A worker is there: which rank it is, its process and its device."""

    rank: Rank


class Seen(msgspec.Struct, frozen=True, kw_only=True, tag="seen"):
    """One reading of the worker of `shard`; `lost` readings before it could not be sent."""

    shard: int
    reading: Reading
    lost: int = 0


Message = Union[Hello, Seen]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class Sender:
    """The worker's end. Thread-safe; never blocks, never raises after construction."""

    def __init__(self, path: str, rank: Rank) -> None:
        """Does not need the receiver to be there: a worker outlives it. Raises `HealthError` for a path that is too long."""
        _check(path)
        self._path, self._rank = path, rank
        self._lock = threading.Lock()
        self._lost = 0
        self._pid = os.getpid()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def hello(self) -> bool:
        """Whether somebody listens."""
        return self._send(Hello(rank=self._rank))

    def send(self, reading: Reading) -> bool:
        """Whether it was sent. False also in a forked child."""
        with self._lock:
            sent = self._send(
                Seen(shard=self._rank.shard, reading=_short(reading), lost=self._lost)
            )
            self._lost = 0 if sent else self._lost + 1
        return sent

    def close(self) -> None:
        self._socket.close()

    def _send(self, message: Message) -> bool:
        if os.getpid() != self._pid:
            return False
        try:
            self._socket.sendto(_encode(message), self._path)
        except OSError:
            return False  # nobody listens, its queue is full, or we are closed
        return True


class Receiver:
    """The serving process's end. `fileno` is readable when there is something to `take`."""

    def __init__(self, path: str) -> None:
        """Makes the socket. Raises `HealthError` if the path is too long, in use or cannot be made."""
        _check(path)
        self.path = path
        self.malformed = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            before = os.umask(0o177)
            try:
                self._socket.bind(path)
            finally:
                os.umask(before)
        except OSError as error:
            self._socket.close()
            raise HealthError(
                "the socket for the workers' readings cannot be made",
                where=path,
                value=os.strerror(error.errno or 0),
                rule="a path in a writable folder that nobody uses",
                remedy="set DYN_GPU_FT_ARENA_DIR to a writable folder with room",
            ) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def take(self, limit: int = 1000) -> list[Message]:
        """Messages that have arrived, at most `limit`. Malformed ones are counted and passed over."""
        taken: list[Message] = []
        for _ in range(limit):
            try:
                data = self._socket.recv(MAX_BYTES + 1)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EBADF):
                    break
                continue
            try:
                taken.append(_decode(data))
            except (msgspec.DecodeError, UnicodeDecodeError):  # ValidationError is a DecodeError
                self.malformed += 1
        return taken

    def close(self) -> None:
        """Closes and removes the socket; safe to repeat."""
        if self._socket.fileno() < 0:
            return
        self._socket.close()
        try:
            if stat.S_ISSOCK(os.lstat(self.path).st_mode):
                os.unlink(self.path)
        except OSError:
            pass  # somebody removed it already


def _check(path: str) -> None:
    if len(os.fsencode(path)) > MAX_PATH:
        raise HealthError(
            "the path of the socket for the workers' readings is too long",
            where=path,
            value=len(os.fsencode(path)),
            rule=f"at most {MAX_PATH} bytes",
            remedy="set DYN_GPU_FT_ARENA_DIR to a shorter folder",
        )


def _short(reading: Reading) -> Reading:
    size = len(reading.text) + sum(len(k) + len(v) for k, v in reading.facts.items())
    if size <= 4096:
        return reading
    facts = {k[:64]: v[:256] for k, v in list(reading.facts.items())[:16]}
    return msgspec.structs.replace(reading, text=reading.text[:2048], facts=facts)
