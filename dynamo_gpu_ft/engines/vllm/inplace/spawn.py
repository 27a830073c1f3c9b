"""Processes that take a lost shard's place: starting one, and following it to the door, into the group and to READY.

Used by the group's adapter, on the coordinator's thread, which lives as long as EngineCore: replacements are tied to it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from dynamo_gpu_ft.engines.vllm.inplace.orders import Go, Line, Switchboard, Take
from dynamo_gpu_ft.recovery.group.base import Deadline, StandbyLost
from dynamo_gpu_ft.recovery.nursery import NurseryProcess


@dataclass
class Replacement:
    """One process on its way. `handle` is vLLM's of a worker that is not ready."""

    rank: int
    handle: Any
    line: Line | None = None
    at_door: bool = False
    rehearsed: bool = False
    assigned: bool = False
    began: float = field(default_factory=time.monotonic)
    kept: Any = None  # its lock: the semaphore is gone with the parent's object, and the child opens it late

    @property
    def process(self) -> Any:
        return self.handle.proc

    @property
    def age_s(self) -> float:
        """Since its start, or since it was given its place."""
        return time.monotonic() - self.began

    @property
    def how(self) -> str:
        """Where it comes from."""
        if self.assigned:
            return "standby"
        return "forked" if isinstance(self.process, NurseryProcess) else "fresh"

    def look(self, switchboard: Switchboard, deadline: Deadline) -> None:
        """Takes note of how far it is. Raises StandbyLost when it is gone, or not at the door by the deadline."""
        if not self.process.is_alive():
            raise StandbyLost(
                f"the replacement of shard {self.rank} (pid {self.process.pid}) ended with {self.process.exitcode}"
            )
        if self.line is None:
            self.line = switchboard.line(self.process.pid)
        if self.line is not None:
            for answer in self.line.answers():
                self.at_door |= answer.kind == "at_door"
                self.rehearsed |= answer.kind == "rehearsed"
        if not self.at_door and not deadline.left_s:
            raise StandbyLost(
                f"the replacement of shard {self.rank} was not ready to join after {self.age_s:.1f} s"
            )

    def assign(self, take: Take) -> None:
        """A standby becomes the replacement of a rank."""
        self.rank, self.assigned = take.rank, True
        self.handle.rank = take.rank
        self.began = time.monotonic()
        if self.line is None or not self.line.send(take):
            raise StandbyLost(f"the standby for shard {take.rank} (pid {self.process.pid}) is gone")

    def enter(self) -> None:
        if self.line is None or not self.line.send(Go()):
            raise StandbyLost(f"the replacement of shard {self.rank} does not listen")

    def ready(self) -> Any | None:
        """vLLM's handle of the ready worker, None while it is not. Raises StandbyLost when it will never be."""
        from vllm.v1.executor.multiproc_executor import WorkerProc

        if not wait([self.handle.ready_pipe], timeout=0):
            return None
        try:
            response = self.handle.ready_pipe.recv()
        except EOFError:
            response = {"status": "gone"}
        if response.get("status") != WorkerProc.READY_STR:
            raise StandbyLost(f"the replacement of shard {self.rank} failed to start: see its log")
        self.handle.ready_pipe.close()
        return WorkerProc.wait_for_response_handle_ready(response, self.handle)

    def end(self, switchboard: Switchboard) -> None:
        end_process(self.process, self.handle, switchboard)
        with contextlib.suppress(OSError):
            self.handle.ready_pipe.close()


def start(
    executor: Any,
    rank: int,
    environment: Mapping[str, str],
    *,
    init_method: str = "",
    queue: Any = None,
    standby: Mapping[str, Any] | None = None,
) -> Replacement:
    """A process that becomes `rank`, with `environment` too, as vLLM's own are made; with `standby`, the arguments of `standby_main`, one
    that rehearses being it and then waits for a place. Raises OSError."""
    from vllm.utils.system_utils import get_mp_context
    from vllm.v1.executor.multiproc_executor import UnreadyWorkerProcHandle, WorkerProc

    context = get_mp_context()
    ready_reader, ready_writer = context.Pipe(duplex=False)
    death_reader, death_writer = context.Pipe(duplex=False)
    lock = context.Lock()
    worker = {
        "vllm_config": executor.vllm_config,
        "local_rank": rank,
        "rank": rank,
        "distributed_init_method": init_method,
        "input_shm_handle": queue,
        "ready_pipe": ready_writer,
        "death_pipe": death_reader,
        "shared_worker_lock": lock,
        "is_driver_worker": executor._is_driver_worker(rank),
        "inherited_fds": [],
    }
    if standby is None:
        executor.switchboard.expect([rank])
        target, arguments, name = WorkerProc.worker_main, worker, f"VllmWorker-{rank}"
    else:
        from dynamo_gpu_ft.engines.vllm.inplace.rehearsal import standby_main

        target, arguments, name = standby_main, {**standby, "worker": worker}, f"VllmStandby-{rank}"
    process = executor.births.start(rank, target, arguments, name, environment)
    ready_writer.close()
    death_reader.close()
    handle = UnreadyWorkerProcHandle(process, rank, ready_reader, death_writer)
    return Replacement(rank, handle, kept=lock)


def end_process(process: Any, handle: Any, switchboard: Switchboard, wait_s: float = 5.0) -> bool:
    """SIGKILL, whatever state it is in, a stopped one included; whether it is gone. Its line and pipes are closed."""
    if process.is_alive():
        process.kill()
    process.join(wait_s)
    switchboard.drop(process.pid)
    if handle.death_writer is not None:
        with contextlib.suppress(OSError):
            handle.death_writer.close()
        handle.death_writer = None
    return not process.is_alive()
