"""`GroupComm`: the contract's collectives on one c10d process group, with its errors told apart.

Shared by `gloo.py` (a raw group) and `torch_groups.py` (torch.distributed's own); torch is imported where a group exists.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import threading
from collections.abc import Callable, Iterator
from typing import Any

from dynamo_gpu_ft.recovery.comm.base import CommError, CommRevoked, CommTimeout, Op, Seat
from dynamo_gpu_ft.recovery.comm.sockets import Connections

_TIMEOUTS = ("timed out", "timeout")
_TAG = 7
SLICE_S = 0.02
"""How long a call waits before it looks whether it was revoked. NOTE: gloo (torch 2.13) sometimes loses the error of a connection that
is shut down while data is on its way (a few in a hundred when all ranks revoke at once), and its own thread then waits until its timeout; the
caller leaves it there, with the threads and the memory of that group, and goes on."""


class GroupComm:
    """`group` has c10d's methods, made over `store`; `let_go` ends it once nobody is inside a call: it gets the only reference, in a list.
    `free` frees calls beside what `connections` do."""

    def __init__(
        self,
        seat: Seat,
        group: Any,
        connections: Connections,
        timeout_s: float,
        let_go: Callable[[list[Any]], None],
        free: Callable[[Any], None] = lambda group: None,
        *,
        store: Any = None,
    ) -> None:
        self.seat, self._group, self._connections, self._store = seat, group, connections, store
        self._timeout = datetime.timedelta(seconds=timeout_s)
        self._let_go, self._free = let_go, free
        self._broken: CommError | None = None
        self._revoked = False
        self._stuck = False  # a thread of the group is left inside a call

    def all_reduce(self, tensor: Any, op: Op = "sum") -> None:
        with self._call("all_reduce") as (group, dist):
            options = dist.AllreduceOptions()
            options.reduceOp = getattr(dist.ReduceOp, op.upper())
            options.timeout = self._timeout
            self._wait(group.allreduce([tensor], options))

    def all_gather(self, tensor: Any) -> list[Any]:
        with self._call("all_gather") as (group, dist):
            options = dist.AllgatherOptions()
            options.timeout = self._timeout
            out = [tensor.new_empty(tensor.shape) for _ in range(self.seat.size)]
            self._wait(group.allgather([out], [tensor], options))
            return out

    def all_to_all(self, out: Any, tensor: Any) -> None:
        with self._call("all_to_all") as (group, dist):
            options = dist.AllToAllOptions()
            options.timeout = self._timeout
            self._wait(group.alltoall_base(out, tensor, [], [], options))

    def broadcast(self, tensor: Any, root: int) -> None:
        with self._call("broadcast") as (group, dist):
            options = dist.BroadcastOptions()
            options.rootRank, options.rootTensor = root, 0
            options.timeout = self._timeout
            self._wait(group.broadcast([tensor], options))

    def send(self, tensor: Any, to: int) -> None:
        with self._call("send") as (group, _):
            self._wait_aside(group.send([tensor], to, _TAG).wait)

    def recv(self, tensor: Any, source: int) -> None:
        with self._call("recv") as (group, _):
            self._wait_aside(group.recv([tensor], source, _TAG).wait)

    def barrier(self) -> None:
        with self._call("barrier") as (group, dist):
            options = dist.BarrierOptions()
            options.timeout = self._timeout
            self._wait(group.barrier(options))

    def revoke(self) -> None:
        self._revoked = True
        self._connections.shut_down()
        with contextlib.suppress(Exception):
            self._free(self._group)

    def abort(self) -> None:
        self.revoke()
        held, self._group = [self._group], None
        if held[0] is None:
            return
        if self._stuck:
            # Its end would wait for the thread inside the call: leave both to that call's own timeout.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held[0]))
        with contextlib.suppress(Exception):
            self._let_go(held)

    def _wait(self, work: Any) -> None:
        """Waits for a collective, which a thread of the group carries out."""
        part = datetime.timedelta(seconds=SLICE_S)
        while not work.is_completed():
            # Raises what the call ended with, and also when it has not ended: told apart below.
            with contextlib.suppress(RuntimeError):
                work.wait(part)
            if self._revoked and not work.is_completed():
                self._leave()
        work.wait()

    def _wait_aside(self, wait: Callable[[], Any]) -> None:
        """Waits for a send or a receive, which the thread that waits carries out: not ours, for it may not come back."""
        done, raised = threading.Event(), []

        def work() -> None:
            try:
                wait()
            except RuntimeError as error:
                raised.append(error)
            done.set()

        threading.Thread(target=work, name="comm-p2p", daemon=True).start()
        while not done.wait(SLICE_S):
            if self._revoked and not done.wait(SLICE_S):
                self._leave()
        if raised:
            raise raised[0]

    def _leave(self) -> None:
        self._stuck = True
        raise CommRevoked(f"revoked in epoch {self.seat.epoch}; a thread of the group is left")

    @contextlib.contextmanager
    def _call(self, name: str) -> Iterator[tuple[Any, Any]]:
        import torch.distributed.distributed_c10d as dist  # where every options class is

        group = self._group
        if self._revoked or group is None:
            raise CommRevoked(f"{name}: the communicator of epoch {self.seat.epoch} is revoked")
        if self._broken is not None:
            raise type(self._broken)(f"{name}: broken by an earlier call: {self._broken}")
        try:
            yield group, dist
        except CommError as error:
            self._broken = error
            raise
        except RuntimeError as error:
            self._broken = self._told(name, error)
            # A peer may wait for us who hears nothing of whom we lost: pass it on, the communicator is of no use any more.
            self._connections.shut_down()
            raise self._broken from error

    def _told(self, name: str, error: RuntimeError) -> CommError:
        text = f"{name} in epoch {self.seat.epoch}: {str(error).splitlines()[0]}"
        if self._revoked:
            return CommRevoked(text)
        if any(word in text.lower() for word in _TIMEOUTS):
            return CommTimeout(text)
        return CommError(text)
