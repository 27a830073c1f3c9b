"""Finds the TCP connections that a library opened for one communicator, and shuts them down: what frees its stuck calls.

gloo has no other way: its abort and shutdown return and leave the call where it is. Linux only (/proc).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_INODE = re.compile(r"socket:\[(\d+)\]")
_STREAM = socket.SOCK_STREAM


@dataclass(frozen=True, slots=True)
class Socket:
    fd: int
    inode: int
    local_port: int
    remote_port: int
    listens: bool


def open_inodes() -> set[int]:
    """Inodes of all sockets that this process has open now."""
    return set(_descriptors())


def tcp_sockets(besides: set[int]) -> list[Socket]:
    """This process's TCP sockets, listening or connected, that are not among `besides`, by inode: a number that no other socket has
    while it is open. Those in between, and those closed meanwhile, are left out."""
    found = []
    for inode, fd in _descriptors().items():
        if inode in besides:
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as held:
            if held.family not in (socket.AF_INET, socket.AF_INET6) or held.type != _STREAM:
                continue
            if os.fstat(held.fileno()).st_ino != inode:
                continue
            listens = bool(held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            remote = 0 if listens else held.getpeername()[1]
            found.append(Socket(fd, inode, held.getsockname()[1], remote, listens))
    return found


def listening_ports(sockets: Iterable[Socket]) -> tuple[int, ...]:
    return tuple(sorted(s.local_port for s in sockets if s.listens))


@dataclass(frozen=True)
class Connections:
    """A communicator's connected sockets, by descriptor and inode: a descriptor that means another socket by now is left alone.

    NOTE: no duplicates are kept. They would keep a connection in the library's epoll set after the library has closed its own."""

    known: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, sockets: Iterable[Socket]) -> Connections:
        return cls(tuple((each.fd, each.inode) for each in sockets))

    def shut_down(self) -> None:
        """Ends every connection in both directions; whoever waits on one gets an error. Never raises; can be repeated."""
        for fd, inode in self.known:
            # What was closed meanwhile needs no freeing, and what is not connected any more none either.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as held:
                if os.fstat(held.fileno()).st_ino == inode:
                    held.shutdown(socket.SHUT_RDWR)


def _descriptors() -> dict[int, int]:
    """Socket inode -> descriptor."""
    return dict(_read_links())


def _read_links() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc/self/fd"):
        try:
            found = _INODE.fullmatch(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # closed meanwhile
        if found:
            yield int(found[1]), int(name)
