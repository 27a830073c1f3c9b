"""Brings survivors and replacements of one engine together: out of the old group, to the door, into the new group and queue.

The mechanics of the adapter's quiesce and rebuild; each function waits with an eye on everybody it needs, and on the deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dynamo_gpu_ft.engines.vllm.inplace import inside, spawn
from dynamo_gpu_ft.engines.vllm.inplace.orders import Answer, Join, Line, Release
from dynamo_gpu_ft.recovery.group.base import Deadline, MembersLost, StandbyLost

#: How often a step looks at everybody.
TICK_S = 0.005

#: A survivor that has not paused by then is freed again, from those that have paused meanwhile too.
AGAIN_S = 0.1


class Gathering:
    """`lost`: who of the current workers is gone. `replacements`: rank -> process on its way."""

    def __init__(self, executor: Any, lost: Callable[[], Mapping[int, str]]) -> None:
        self._executor, self._lost = executor, lost
        self._switchboard = executor.switchboard
        self.replacements: dict[int, spawn.Replacement] = {}
        self._writer: Any = None  # of an attempt that is not installed

    def end_attempt(self) -> None:
        """Ends the replacements of an attempt that came to nothing."""
        for rank in list(self.replacements):
            self.replacements.pop(rank).end(self._switchboard)
        writer, self._writer = self._writer, None
        if writer is not None:
            inside.retire(writer)

    def survivors(self, dead: frozenset[int]) -> dict[int, Line]:
        found = {}
        for worker in self._executor.workers:
            if worker.rank not in dead:
                line = self._switchboard.line(worker.proc.pid)
                if line is None or line.closed:
                    raise MembersLost({worker.rank: "does not listen to its executor"})
                found[worker.rank] = line
        return found

    def pause(self, survivors: dict[int, Line], dead: Iterable[int], deadline: Deadline) -> None:
        waiting, gone = dict(survivors), set(dead)
        for line in waiting.values():
            line.answers()
            line.send(Release(tuple(sorted(gone))))
        again = time.monotonic() + AGAIN_S
        while waiting:
            self._all_alive(survivors)
            for rank, line in list(waiting.items()):
                if any(answer.kind == "paused" for answer in line.answers()):
                    del waiting[rank]
                    gone.add(rank)
            if not deadline.left_s:
                raise MembersLost(dict.fromkeys(waiting, "did not leave its step"))
            if waiting and time.monotonic() > again:
                again = time.monotonic() + AGAIN_S
                for line in waiting.values():
                    line.send(Release(tuple(sorted(gone))))
            time.sleep(TICK_S)

    def drain(self, queue: Any) -> None:
        """Answers to calls that nobody waits for any more."""
        while True:
            try:
                queue.dequeue(timeout=0)
            except TimeoutError:
                return

    def meet(
        self, survivors: dict[int, Line], init_method: str, writer: Any, deadline: Deadline
    ) -> None:
        """Brings replacements to the door, then lets everybody into the new group at once."""
        self._writer = writer
        while not all(r.at_door for r in self.replacements.values()):
            self._all_alive(survivors)
            for replacement in self.replacements.values():
                replacement.look(self._switchboard, deadline)
            time.sleep(TICK_S)
        for line in survivors.values():
            line.answers()
            line.send(Join(init_method, writer.export_handle(), deadline.left_s))
        for replacement in self.replacements.values():
            replacement.enter()
        self._await(survivors, "joined", deadline)

    def _await(self, survivors: dict[int, Line], kind: str, deadline: Deadline) -> None:
        waiting = dict(survivors)
        while waiting:
            self._all_alive(survivors)
            for replacement in self.replacements.values():
                replacement.look(self._switchboard, deadline)
            for rank, line in list(waiting.items()):
                for answer in line.answers():
                    self._failed_join(rank, answer)
                    if answer.kind == kind:
                        del waiting[rank]
            if not deadline.left_s:
                raise TimeoutError(f"shards {sorted(waiting)} have not {kind}")
            time.sleep(TICK_S)

    @staticmethod
    def _failed_join(rank: int, answer: Answer) -> None:
        if answer.kind == "failed":
            raise StandbyLost(f"shard {rank} could not join the new group: {answer.detail}")

    def install(self, survivors: dict[int, Line], writer: Any, deadline: Deadline) -> None:
        """Replacements have their weights; everybody reads from the new queue."""
        executor, ready = self._executor, dict[int, Any]()
        left = executor.world_size
        while left or len(ready) < len(self.replacements):
            self._all_alive(survivors)
            for rank, replacement in self.replacements.items():
                replacement.look(self._switchboard, deadline)
                if rank not in ready and (handle := replacement.ready()) is not None:
                    ready[rank] = handle
            left -= left > 0 and inside.has_subscriber(writer, 0)
            if not deadline.left_s:
                raise StandbyLost(f"the replacements of {sorted(self.replacements)} are not ready")
            time.sleep(TICK_S)
        inside.open_writer(writer)
        for rank, handle in ready.items():
            while not inside.reader_is_ready(handle.worker_response_mq, int(TICK_S * 1000)):
                self.replacements[rank].look(self._switchboard, deadline)
                if not deadline.left_s:
                    raise StandbyLost(f"the replacement of shard {rank} does not answer")
        self._await(survivors, "ready", deadline)
        for rank, handle in ready.items():
            inside.retire(executor.response_mqs[rank])
            executor.workers[rank] = handle
            executor.response_mqs[rank] = handle.worker_response_mq
            del self.replacements[rank]
        inside.retire(executor.rpc_broadcast_mq)
        executor.rpc_broadcast_mq, self._writer = writer, None

    def _all_alive(self, survivors: Iterable[int]) -> None:
        lost = self._lost()
        gone = {rank: lost[rank] for rank in survivors if rank in lost}
        if gone:
            raise MembersLost(gone)
