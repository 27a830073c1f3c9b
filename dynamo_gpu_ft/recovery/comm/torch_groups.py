"""`TorchGroupBackend`: torch.distributed's default group, ended and made anew in the same process for each epoch.

For engines whose code calls `torch.distributed` itself. Everything is a rebuild; there is one such communicator in a process at a time.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable
from typing import Any

from dynamo_gpu_ft.recovery.comm.base import Comm, CommError, Rebuilds, Seat, never
from dynamo_gpu_ft.recovery.comm.c10d import GroupComm
from dynamo_gpu_ft.recovery.comm.gloo import MESH_S, mesh_error, own_connections
from dynamo_gpu_ft.recovery.comm.rendezvous import Rendezvous, all_there, take
from dynamo_gpu_ft.recovery.comm.sockets import Connections, open_inodes
from dynamo_gpu_ft.recovery.group.base import Deadline


class TorchGroupBackend(Rebuilds):
    """`backend` is "gloo" or "nccl". gloo's calls are freed by shutting its connections down, NCCL's by its own abort.

    gloo connects through the interface that the environment names (GLOO_SOCKET_IFNAME), as always with torch."""

    name = "torch"

    def __init__(
        self, rendezvous: Rendezvous, *, backend: str = "gloo", timeout_s: float = 30.0
    ) -> None:
        if backend not in ("gloo", "nccl"):
            raise ValueError(f"no back end of torch.distributed that can be revoked: {backend!r}")
        self._rendezvous, self._backend, self._timeout_s = rendezvous, backend, timeout_s
        self.on_device = backend == "nccl"

    def make(self, seat: Seat, deadline: Deadline, give_up: Callable[[], bool] = never) -> Comm:
        import torch.distributed as dist

        if dist.is_initialized():
            raise CommError("torch.distributed has a default group already; abort it first")
        store = self._rendezvous.store(seat, deadline)
        take(store, seat)
        all_there(store, seat, deadline, give_up)
        before = open_inodes()
        connections = Connections()
        try:
            dist.init_process_group(
                self._backend,
                store=dist.PrefixStore("torch", store),
                rank=seat.rank,
                world_size=seat.size,
                timeout=datetime.timedelta(seconds=max(0.001, min(MESH_S, deadline.left_s))),
            )
            group: Any = dist.group.WORLD
            if self._backend == "gloo":
                connections = own_connections(store, seat, before, deadline)
                _gloo_of(group).set_timeout(datetime.timedelta(seconds=self._timeout_s))
        except (RuntimeError, CommError) as error:
            with contextlib.suppress(Exception):
                dist.destroy_process_group()
            raise (error if isinstance(error, CommError) else mesh_error(seat, error)) from error
        if seat.rank == 0:
            self._rendezvous.forget_before(seat)
        free = _abort_nccl if self._backend == "nccl" else _nothing
        return GroupComm(seat, group, connections, self._timeout_s, _destroy, free, store=store)


def _gloo_of(group: Any) -> Any:
    import torch

    return group._get_backend(torch.device("cpu"))


def _abort_nccl(group: Any) -> None:
    import torch

    group._get_backend(torch.device("cuda")).abort()


def _nothing(group: Any) -> None:
    """gloo's abort has no effect on a call that is stuck."""


def _destroy(held: list[Any]) -> None:
    import torch.distributed as dist

    dist.destroy_process_group(held.pop())
