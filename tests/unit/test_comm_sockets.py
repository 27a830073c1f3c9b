"""Which sockets are shut down for a communicator: its own by inode, never another thread's, never another one on the same descriptor."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from dynamo_gpu_ft.recovery.comm.base import CommError, Seat
from dynamo_gpu_ft.recovery.comm.gloo import own_connections
from dynamo_gpu_ft.recovery.comm.sockets import (
    Connections,
    listening_ports,
    open_inodes,
    tcp_sockets,
)
from dynamo_gpu_ft.recovery.group.base import Deadline

Pair = tuple[socket.socket, socket.socket]


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def connected(to: socket.socket) -> Pair:
    ours = socket.create_connection(to.getsockname())
    theirs, _ = to.accept()
    return ours, theirs


def open_still(end: socket.socket) -> bool:
    end.setblocking(False)
    try:
        return end.recv(1) != b""
    except BlockingIOError:
        return True


class Store(dict[str, bytes]):
    """As much of torch's store as is used."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def wait(self, keys: list[str], timeout: object) -> None:
        assert set(keys) <= self.keys()


def test_new_tcp_sockets_are_found_and_others_are_not() -> None:
    with listener() as old:
        before = open_inodes()
        one, two = socket.socketpair()
        with listener() as new, one, two, socket.socket(type=socket.SOCK_DGRAM):
            ours, theirs = connected(new)
            with ours, theirs:
                found = tcp_sockets(before)
                assert {each.fd for each in found} == {new.fileno(), ours.fileno(), theirs.fileno()}
                assert listening_ports(found) == (new.getsockname()[1],)
                assert old.getsockname()[1] not in listening_ports(found)


def test_a_descriptor_that_means_another_socket_by_now_is_left_alone() -> None:
    with listener() as server:
        first, its_peer = connected(server)
        found = [each for each in tcp_sockets(set()) if each.fd == first.fileno()]
        connections = Connections.of(found)
        number = first.fileno()
        second, other_peer = connected(server)
        os.dup2(second.fileno(), number)  # the old one is closed by that
        connections.shut_down()
        assert not open_still(its_peer)
        assert open_still(other_peer)
        for each in (first, second, its_peer, other_peer):
            each.close()
        connections.shut_down()  # nothing is there any more, and nothing happens


def test_another_threads_connections_of_the_same_moment_are_told_apart_by_their_ports(
    tmp_path: Path,
) -> None:
    seat, store = Seat("tp", 1, 0, 2, "1.1"), Store()
    with listener() as elsewhere, listener() as peers:
        store.set("ports/1", str(peers.getsockname()[1]))
        before = open_inodes()
        with listener():
            group, its_peer = connected(peers)
            foreign, its_other = connected(elsewhere)
            found = own_connections(store, seat, before | {inode(its_peer)}, Deadline.after(5))
            found.shut_down()
            assert not open_still(its_peer)
            assert open_still(its_other)
            for each in (group, its_peer, foreign, its_other):
                each.close()


def test_a_group_whose_connections_cannot_be_found_is_refused_at_once() -> None:
    with pytest.raises(CommError, match="0 connections found for 2 peers"):
        own_connections(Store(), Seat("tp", 1, 0, 3, "1.1"), open_inodes(), Deadline.after(5))


def inode(of: socket.socket) -> int:
    return os.fstat(of.fileno()).st_ino
