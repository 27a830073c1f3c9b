"""`GlooBackend`: raw gloo groups, one for each epoch, in which a stuck call is freed in a millisecond or two, 40 at most.

For the ranks of engines on CPUs and for the control of those on GPUs. Everything is a rebuild (a few milliseconds on one machine).
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable
from typing import Any

from dynamo_gpu_ft.recovery.comm.base import Comm, CommError, CommTimeout, Rebuilds, Seat, never
from dynamo_gpu_ft.recovery.comm.c10d import GroupComm
from dynamo_gpu_ft.recovery.comm.rendezvous import Rendezvous, all_there, take
from dynamo_gpu_ft.recovery.comm.sockets import (
    Connections,
    listening_ports,
    open_inodes,
    tcp_sockets,
)
from dynamo_gpu_ft.recovery.group.base import Deadline

MESH_S = (
    10.0  # all ranks are there when it begins, so a mesh that takes longer has lost one of them
)


class GlooBackend(Rebuilds):
    """`timeout_s` is the longest collective, `host` the address (or name) whose interface connects the ranks, `threads` how many
    collectives of one communicator run at a time."""

    name = "gloo"

    def __init__(
        self,
        rendezvous: Rendezvous,
        *,
        timeout_s: float = 30.0,
        host: str = "127.0.0.1",
        threads: int = 2,
    ) -> None:
        self._rendezvous, self._timeout_s = rendezvous, timeout_s
        self._host, self._threads = host, threads

    def make(self, seat: Seat, deadline: Deadline, give_up: Callable[[], bool] = never) -> Comm:
        import torch.distributed as dist

        store = self._rendezvous.store(seat, deadline)
        take(store, seat)
        all_there(store, seat, deadline, give_up)
        options = dist.ProcessGroupGloo._Options()
        mesh_s = max(0.001, min(MESH_S, deadline.left_s))
        options._timeout = datetime.timedelta(seconds=mesh_s)
        options._threads = self._threads
        before = open_inodes()
        try:
            options._devices = [dist.ProcessGroupGloo.create_device(hostname=self._host)]
            group = dist.ProcessGroupGloo(
                dist.PrefixStore("gloo", store), seat.rank, seat.size, options
            )
            connections = own_connections(store, seat, before, deadline)
        except RuntimeError as error:
            raise mesh_error(seat, error) from error
        group.set_timeout(datetime.timedelta(seconds=self._timeout_s))
        if seat.rank == 0:
            self._rendezvous.forget_before(seat)
        return GroupComm(seat, group, connections, self._timeout_s, _drop_aside, store=store)


def _drop_aside(held: list[Any]) -> None:
    """Ends the group on a thread of its own: gloo waits up to 10 ms for each of its connections, in which the next epoch can begin."""
    threading.Thread(target=held.clear, name="comm-end").start()


def own_connections(store: Any, seat: Seat, before: set[int], deadline: Deadline) -> Connections:
    """The connections of a gloo group that was just made: one for each peer, among the sockets that were not there before it.

    When they are as many as there are peers they are gloo's. Else another thread opened some in the same moment, and those are chosen
    that lead to a port on which we or a peer listen: for that every rank tells its ports."""
    new = tcp_sockets(before)
    own, peers = listening_ports(new), seat.size - 1
    store.set(f"ports/{seat.rank}", ",".join(map(str, own)))
    connected = [each for each in new if not each.listens]
    if len(connected) > peers:
        theirs = _ports_of_peers(store, seat, deadline)
        connected = [e for e in connected if e.local_port in own or e.remote_port in theirs]
    if len(connected) != peers:
        # NOTE: with another number a stuck call could not be freed; better to know now than in a fault.
        raise CommError(
            f"{len(connected)} connections found for {peers} peers in epoch {seat.epoch}: this gloo cannot be revoked"
        )
    return Connections.of(connected)


def _ports_of_peers(store: Any, seat: Seat, deadline: Deadline) -> set[int]:
    others = [f"ports/{rank}" for rank in range(seat.size) if rank != seat.rank]
    limit = max(0.001, min(MESH_S, deadline.left_s))
    store.wait(others, datetime.timedelta(seconds=limit))
    told = ",".join(store.get(key).decode() for key in others)
    return {int(port) for port in told.split(",") if port}


def mesh_error(seat: Seat, error: RuntimeError) -> CommError:
    text = f"rank {seat.rank} of epoch {seat.epoch}: {str(error).splitlines()[0]}"
    slow = any(word in text.lower() for word in ("timeout", "timed out"))
    return CommTimeout(text) if slow else CommError(text)
