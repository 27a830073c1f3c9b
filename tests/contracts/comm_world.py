"""Rank processes for tests of communicators: each does one order at a time on a thread, and can be revoked, stopped or killed in it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from dynamo_gpu_ft.recovery.comm.base import CommBackend, Seat
from dynamo_gpu_ft.recovery.comm.rendezvous import Rendezvous
from dynamo_gpu_ft.recovery.group.base import Deadline
from dynamo_gpu_ft.recovery.processes import this_process

LONG_S = 60.0


def backend_of(name: str, folder: str, timeout_s: float) -> CommBackend:
    """The back end `name` in this process. "simulated:PATH" is NCCL over the simulated library at PATH, "old:PATH" without what came after
    2.18."""
    from dynamo_gpu_ft.recovery.comm.gloo import GlooBackend
    from dynamo_gpu_ft.recovery.comm.torch_groups import TorchGroupBackend

    rendezvous = Rendezvous(f"file:{folder}", "test")
    kind, _, path = name.partition(":")
    if path:
        from dynamo_gpu_ft.recovery.comm.nccl import NcclBackend
        from dynamo_gpu_ft.recovery.comm.nccl_library import NcclLibrary
        from dynamo_gpu_ft.recovery.comm.nccl_streams import HostStream

        library = NcclLibrary(path)
        if kind == "old":
            library.features = frozenset()
        stream = HostStream(library)
        return NcclBackend(rendezvous, timeout_s=timeout_s, library=library, stream=stream)
    if name == "nccl":
        from dynamo_gpu_ft.recovery.comm.nccl import NcclBackend

        return NcclBackend(rendezvous, timeout_s=timeout_s)
    if name == "gloo":
        return GlooBackend(rendezvous, timeout_s=timeout_s)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    return TorchGroupBackend(rendezvous, timeout_s=timeout_s)


def serve(pipe: Connection, name: str, folder: str, timeout_s: float) -> None:
    """The child: answers every order with (order, result or error, seconds)."""
    import torch

    torch.set_num_threads(1)
    child = Child(backend_of(name, folder, timeout_s), pipe, "cuda" if name == "nccl" else "cpu")
    pipe.send(("ready", os.getpid(), 0.0))
    while True:
        order, *args = pipe.recv()
        if order == "end":
            child.abort()
            os._exit(0)  # gloo's threads must not meet the interpreter's end
        if order == "revoke":
            child.comm.revoke()  # from this thread, while the other one is inside a call
        else:
            threading.Thread(target=child.do, args=(order, args), daemon=True).start()


class Child:
    def __init__(self, backend: CommBackend, pipe: Connection, device: str) -> None:
        self.backend, self.pipe, self.device = backend, pipe, device
        self.comm: Any = None
        self.owner = "{0.pid}.{0.started}".format(this_process())

    def do(self, order: str, args: list[Any]) -> None:
        import torch

        torch.set_default_device(self.device)  # each thread has its own
        began = time.monotonic()
        try:
            result = getattr(self, order)(*args)
        except Exception as error:
            result = error if error.__cause__ is None else type(error)(str(error))
        self.pipe.send((order, result, time.monotonic() - began))

    def make(self, epoch: int, rank: int, size: int, within_s: float = LONG_S) -> None:
        seat = Seat("tp", epoch, rank, size, self.owner)
        self.comm = self.backend.make(seat, Deadline.after(within_s))

    def shrink(self, keep: list[int], epoch: int, rank: int) -> None:
        seat = Seat("tp", epoch, rank, len(keep), self.owner)
        self.comm = self.backend.shrink(self.comm, keep, seat, Deadline.after(LONG_S))

    def grow(self, epoch: int, rank: int, size: int) -> None:
        seat = Seat("tp", epoch, rank, size, self.owner)
        self.comm = self.backend.grow(self.comm, seat, Deadline.after(LONG_S))

    def give_up_making(self, epoch: int, rank: int, size: int, after_s: float) -> None:
        end = time.monotonic() + after_s
        seat = Seat("tp", epoch, rank, size, self.owner)
        self.backend.make(seat, Deadline.after(LONG_S), lambda: time.monotonic() > end)

    def reduce(self, value: float, op: str = "sum", count: int = 1 << 20) -> list[float]:
        import torch

        tensor = torch.full((count,), value)
        self.comm.all_reduce(tensor, op)
        return [float(tensor.min()), float(tensor.max())]

    def reduce_for_ever(self) -> None:
        import torch

        tensor = torch.ones(1 << 20)
        self.pipe.send(("inside", None, 0.0))
        while True:
            self.comm.all_reduce(tensor)

    def collectives(self) -> dict[str, Any]:
        import torch

        comm, rank, size = self.comm, self.comm.seat.rank, self.comm.seat.size
        told = torch.tensor([float(rank), 7.0])
        comm.broadcast(told, size - 1)
        mixed, parts = torch.zeros(size), torch.arange(size) + 10.0 * rank
        comm.all_to_all(mixed, parts)
        ring = torch.tensor([-1.0])
        if rank == 0:
            comm.send(torch.tensor([0.5]), 1 % size) if size > 1 else None
        elif rank == 1:
            comm.recv(ring, 0)
        comm.barrier()
        gathered = comm.all_gather(torch.tensor([float(rank)] * 2))
        return {
            "broadcast": told.tolist(),
            "all_to_all": mixed.tolist(),
            "recv": ring.tolist(),
            "all_gather": [each.tolist() for each in gathered],
        }

    def each(self, name: str) -> None:
        """One call by name, with arguments that fit."""
        import torch

        one, size = torch.ones(self.comm.seat.size), self.comm.seat.size
        arguments: dict[str, tuple[Any, ...]] = {
            "all_reduce": (one,),
            "all_gather": (one,),
            "all_to_all": (one.clone(), one),
            "broadcast": (one, size - 1),
            "recv": (one, size - 1),
            "barrier": (),
        }
        getattr(self.comm, name)(*arguments[name])

    def abort(self) -> None:
        if self.comm is not None:
            self.comm.abort()
            self.comm = None


class Ranks:
    """`count` rank processes. `tell` gives an order, `hear` waits for what came of it."""

    def __init__(self, name: str, folder: str, count: int, timeout_s: float = LONG_S) -> None:
        self._start = (name, folder, timeout_s)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["torch.distributed"])
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        for _ in range(count):
            self.add()

    def add(self) -> int:
        pipe, theirs = self.context.Pipe()
        process = self.context.Process(target=serve, args=(theirs, *self._start), daemon=True)
        process.start()
        theirs.close()
        self.pipes.append(pipe)
        self.processes.append(process)
        assert self.hear(len(self.pipes) - 1)[0] == process.pid
        return len(self.pipes) - 1

    def tell(self, index: int, order: str, *args: Any) -> None:
        self.pipes[index].send((order, *args))

    def hear(self, index: int, within_s: float = LONG_S) -> tuple[Any, float]:
        """(result or exception, seconds it took in the child)."""
        if not self.pipes[index].poll(within_s):
            raise AssertionError(f"rank process {index} did not answer within {within_s} s")
        _, result, seconds = self.pipes[index].recv()
        return result, seconds

    def all(self, order: str, *args: Any, of: range | list[int] | None = None) -> list[Any]:
        """The same order to several, with the index put before `args` as {}."""
        chosen = list(range(len(self.pipes)) if of is None else of)
        for place, index in enumerate(chosen):
            self.tell(index, order, *(place if arg == "{}" else arg for arg in args))
        return [self.hear(index)[0] for index in chosen]

    def make(self, epoch: int, of: list[int] | None = None) -> list[Any]:
        chosen = list(range(len(self.pipes))) if of is None else of
        return self.all("make", epoch, "{}", len(chosen), of=chosen)

    def signal(self, index: int, number: signal.Signals) -> None:
        os.kill(self.processes[index].pid, number)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join(10)
        for pipe in self.pipes:
            pipe.close()
