"""The communicators of a process that must come free when a rank is lost: ours by their own `revoke`, torch's gloo by its sockets.

Filled by the engine where it makes them, used by `Abort` on NVRx's monitor thread while the main thread is stuck in one of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from dynamo_gpu_ft.recovery.comm.sockets import Connections, open_inodes, tcp_sockets


class Revocable(Protocol):
    """`recovery.comm.base.Comm`, as far as it is needed."""

    def revoke(self) -> None: ...


class Communicators:
    """Thread-safe. After `revoke` it is empty: what the next turn of the function makes is added anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ours: list[Revocable] = []
        self._connections: list[Connections] = []

    def add(self, comm: Revocable) -> None:
        with self._lock:
            self._ours.append(comm)

    @contextlib.contextmanager
    def opening(self, *besides: int) -> Iterator[None]:
        """Around code of an engine that makes groups with `torch.distributed`: the connections opened inside are theirs.

        `besides`: further ports of stores, whose connections have to live on; MASTER_PORT is one always.

        NOTE: gloo has no abort (pytorch#130345); its connections, shut down, are what frees a call that is stuck."""
        stores = {*besides, int(os.environ.get("MASTER_PORT") or 0)}
        before = open_inodes()
        yield
        made = [
            each
            for each in tcp_sockets(before)
            if not each.listens and not {each.local_port, each.remote_port} & stores
        ]
        with self._lock:
            self._connections.append(Connections.of(made))

    def revoke(self) -> int:
        """Frees all of them; how many there were. Returns before the stuck calls have raised. Never raises."""
        with self._lock:
            ours, self._ours = self._ours, []
            connections, self._connections = self._connections, []
        for comm in ours:
            with contextlib.suppress(Exception):
                comm.revoke()
        for each in connections:
            each.shut_down()
        return len(ours) + len(connections)


def abort_nccl() -> None:
    """Aborts every NCCL group of torch.distributed. Does nothing without torch or without such a group; never raises."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    with contextlib.suppress(Exception):
        import torch

        device = torch.device("cuda")
        for group in list(distributed.distributed_c10d._world.pg_names):
            with contextlib.suppress(Exception):
                back_end = group._get_backend(device)
                if "NCCL" in type(back_end).__name__:
                    back_end.abort()


def destroy_default_group() -> None:
    """Ends torch.distributed's default group, if there is one, so that the next turn can make its own. Never raises.

    For the main thread, which has come out of every call."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        with contextlib.suppress(Exception):
            distributed.destroy_process_group()
