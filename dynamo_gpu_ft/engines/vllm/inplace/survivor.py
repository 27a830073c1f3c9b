"""A worker's side of a recovery: leaves a lost step, waits for orders with everything it holds, and joins the next group.

One `Survivor` per worker process. A thread listens to the executor beside vLLM's queues; the worker's main thread, whose loop
over its queue is replaced by `busy_loop`, pauses in between and carries the orders out.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
import traceback
from typing import Any

from dynamo_gpu_ft.engines.vllm.inplace import ghost, inside, orders
from dynamo_gpu_ft.engines.vllm.steps import lost_step

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")

#: How often a paused rank that waits for its new queue looks for other orders.
_LOOK_MS = 20

#: Innermost frames told in answer to `Where`.
_FRAMES = 12


class Survivor:
    """Made with the worker. `worker` is vLLM's worker object of this rank."""

    current: Survivor | None = None

    @classmethod
    def of(cls, worker: Any) -> Survivor:
        """This process's one; a standby that takes another shard makes another worker, and keeps its line."""
        if cls.current is None:
            cls.current = cls(worker)
        cls.current._worker = worker
        return cls.current

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._process: Any = None  # vLLM's WorkerProc, once its loop runs
        self._first: Any = None  # the queue this rank began with, once it has another
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._paused = threading.Event()
        self._asked = False
        self._group: ghost.Group | None = None
        self._main = threading.main_thread().ident
        address = os.environ[orders.ADDRESS_VARIABLE]
        self._connection, self._welcome = orders.call(address, int(worker.rank))
        self._answering = threading.Lock()
        threading.Thread(target=self._listen, daemon=True, name="gpu-ft-orders").start()

    # -- on the listening thread -----------------------------------------------------------------------------------

    def _listen(self) -> None:
        while True:
            try:
                order = self._connection.recv()
            except (EOFError, OSError):
                self._orders.put(None)
                self._cancel_queues()
                return
            if isinstance(order, orders.Where):
                self._answer("where", self._where())
                continue
            if isinstance(order, orders.Release):
                lost_step.set()
                self._asked = True
            self._orders.put(order)
            if isinstance(order, orders.Release) and not self._paused.is_set():
                self._cancel_reading()
                self._free_from_collective(order)

    def _cancel_reading(self) -> None:
        reading = getattr(self._process, "rpc_broadcast_mq", None)
        if reading is not None:
            reading.shutdown()

    def _cancel_queues(self) -> None:
        """The executor is gone: what vLLM's own watcher of its parent does, for the queues of now."""
        for name in ("rpc_broadcast_mq", "worker_response_mq"):
            waiting = getattr(self._process, name, None)
            if waiting is not None:
                waiting.shutdown()

    def _free_from_collective(self, order: orders.Release) -> None:
        """Starts a ghost of the gone ranks if collectives spin in shared memory; gloo's raise by themselves."""
        group = self._group
        if group is not None:
            threading.Thread(
                target=group.free,
                args=(order.gone, self._paused.is_set),
                daemon=True,
                name="gpu-ft-ghost",
            ).start()

    def _where(self) -> str:
        if self._paused.is_set():
            return "paused"
        frame = sys._current_frames().get(self._main or 0)
        stack = traceback.extract_stack(frame) if frame is not None else []
        return " < ".join(f"{f.name}:{f.filename}:{f.lineno}" for f in reversed(stack[-_FRAMES:]))

    # -- on the main thread ------------------------------------------------------------------------------------------

    def entered_group(self) -> None:
        """Called once this rank is in its group: takes hold of what a ghost will need."""
        found = inside.shared_memory_group()
        if found is not None:
            self._group = ghost.Group(found[0], int(self._worker.rank), found[1])

    def all_entered(self) -> None:
        """Called once every rank is: the group's files need no name any more."""
        if self._group is not None:
            self._group.hide()

    def wait_at_door(self) -> None:
        """A replacement waits here until the survivors come to meet it; returns at once in the first start."""
        if not self._welcome.at_door:
            return
        self._answer("at_door")
        order = self._orders.get()
        if not isinstance(order, orders.Go):
            raise SystemExit(f"rank {self._worker.rank} is not needed any more")

    def wait_for_place(self) -> orders.Take:
        """A standby that has rehearsed; returns when it is wanted."""
        self._answer("rehearsed")
        order = self._orders.get()
        if not isinstance(order, orders.Take):
            raise SystemExit("this standby is not needed any more")
        return order

    def stand_at_door(self) -> None:
        self._welcome = orders.Welcome(at_door=True)
        self.wait_at_door()

    def busy_loop(self, process: Any) -> None:
        """vLLM's loop over the orders of its queue, with pauses."""
        self._process = process
        while True:
            if self._asked:
                self._pause(process)
            try:
                request = process.rpc_broadcast_mq.dequeue(indefinite=True)
            except RuntimeError:  # cancelled
                if not self._asked:
                    raise
                continue
            process._execute_worker_rpc(request)

    def _pause(self, process: Any) -> None:
        """Until a new group is joined. The executor's end is this process's."""
        self._leave_groups()
        self._worker.forget_step()
        self._paused.set()
        while True:
            order = self._orders.get()
            if order is None:
                raise SystemExit("the executor is gone")
            if isinstance(order, orders.Release):
                self._answer("paused")
            elif isinstance(order, orders.Join) and self._join(process, order):
                break
        self._asked = False
        lost_step.clear()
        self._paused.clear()

    def _leave_groups(self) -> None:
        if self._group is not None:
            self._group.hide()  # if it was left before everybody had come
            self._group = None  # its mappings go with the last ghost
        try:
            inside.leave_groups()
        except Exception as error:  # of a peer that is gone
            _log.info("leaving the old group: %s: %s", type(error).__name__, error)

    def _join(self, process: Any, order: orders.Join) -> bool:
        """Whether the new group and queue are there. On failure, and on a later order, the rank is paused again."""
        try:
            self._worker.join_group(order.init_method, order.timeout_s)
            reading = inside.reader_of(order.queue, int(self._worker.rank))
        except Exception as error:
            self._leave_groups()
            self._answer("failed", f"{type(error).__name__}: {error}")
            return False
        self._answer("joined")
        give_up = time.monotonic() + order.timeout_s
        while not inside.reader_is_ready(reading, _LOOK_MS):
            if not self._orders.empty() or time.monotonic() > give_up:
                self._leave_groups()
                inside.retire(reading)
                return False
        former, process.rpc_broadcast_mq = process.rpc_broadcast_mq, reading
        if self._first is None:
            self._first = former  # vLLM's watcher of the parent cancels this one at the end
        else:
            inside.retire(former)
        self._answer("ready")
        return True

    def _answer(self, kind: str, detail: str = "") -> None:
        with self._answering:
            try:
                self._connection.send(orders.Answer(kind, detail))
            except OSError:
                pass  # the listening thread notices
