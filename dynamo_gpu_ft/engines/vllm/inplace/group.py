"""`WorkerGroup`: the workers of one vLLM engine as the coordinator's `GroupAdapter`.

EngineCore's thread waits in `recover` while the coordinator's thread calls the steps, so scheduler and executor stand still.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from dynamo_gpu_ft.engines.vllm.inplace import inside, scheduler, spawn, undo
from dynamo_gpu_ft.engines.vllm.inplace.link import Armed, Condemn, Link, Noticed
from dynamo_gpu_ft.engines.vllm.inplace.orders import Answer, Join, Line, Release
from dynamo_gpu_ft.engines.vllm.inplace.store import OwnStore
from dynamo_gpu_ft.errors import RecoveryFailed
from dynamo_gpu_ft.events import EventStream, Journal, log_event
from dynamo_gpu_ft.recovery.group.base import Deadline, MembersLost, StandbyLost
from dynamo_gpu_ft.recovery.group.coordinator import Coordinator
from dynamo_gpu_ft.recovery.group.plan import Kind, Plan, Policy
from dynamo_gpu_ft.recovery.group.states import State
from dynamo_gpu_ft.recovery.membership.base import Member, Membership
from dynamo_gpu_ft.recovery.processes import Process, shared_segments, started_at

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")

#: How often a step looks at everybody.
TICK_S = 0.005

#: A survivor that has not paused by then is freed again, from those that have paused meanwhile too.
AGAIN_S = 0.1

#: vLLM's shared memory of one process: what is left of it after a SIGKILL.
SEGMENTS = ("psm_", "vllm_dist_")


class WorkerGroup:
    """Shard and rank are the same number here: one tensor-parallel group of local processes."""

    def __init__(self, executor: Any, layout: str, kv_cache_configs: Any) -> None:
        self._executor, self._layout, self._configs = executor, layout, kv_cache_configs
        self._switchboard = executor.switchboard
        self._condemned: dict[int, tuple[int, str]] = {}  # shard -> (pid, why)
        self._undone: undo.Undone | None = None
        self._replacements: dict[int, spawn.Replacement] = {}
        self._segments: dict[int, set[Any]] = {}
        self.epoch = 0
        config = executor.config
        self._environment: dict[str, str] = {}
        self._told: set[int] = set()
        self._link = Link(self._sentenced)
        self._events = EventStream()
        if self._link.connected:  # the serving process logs and journals them
            self._events.add(self._link.tell)
        else:
            self._events.add(log_event)
            if config.journal:
                self._events.add(Journal(config.journal))
        self._coordinator = Coordinator(
            str(executor.vllm_config.instance_id),
            executor.world_size,
            self,
            OwnStore(),
            Policy.of(config),
            self._events,
        )

    def found(self) -> None:
        """The first epoch: the workers that have just started."""
        self.epoch = self._coordinator.found(self._members()).epoch
        self._note_segments()
        self._tell_members()

    def recover(self, lost: Mapping[int, str]) -> None:
        """Blocks until the group works again. Raises RuntimeError when it will not; the executor has failed then."""
        outcome = self._coordinator.recover(lost)
        if outcome.state is not State.SERVING:
            raise RuntimeError(f"recovery in place failed: {outcome.reason}")

    def noticed(self, process: Any) -> None:
        """A worker has ended; on the watching thread."""
        if process.pid not in self._told:
            self._told.add(process.pid)
            self._link.send(
                Noticed(next(w.rank for w in self._executor.workers if w.proc is process))
            )

    def _sentenced(self, order: Condemn) -> None:
        """A verdict: these workers must go, though they live. On the link's thread."""
        current = {worker.rank: worker.proc.pid for worker in self._executor.workers}
        self._environment = dict(order.environment)
        for shard, pid in order.members.items():
            if current.get(shard) == pid:  # else it is replaced already
                self._condemned.setdefault(shard, (pid, order.reason))

    def _tell_members(self) -> None:
        pids = {worker.rank: worker.proc.pid for worker in self._executor.workers}
        self._link.send(Armed(pids, self.standbys()))

    def judge_hang(self, reason: str) -> None:
        """A step is overdue: condemns whoever holds it up, if that can be told."""

    def close(self) -> None:
        """Ends what is not a worker yet. Never raises."""
        for replacement in self._replacements.values():
            replacement.end(self._switchboard)
        self._replacements.clear()
        self._link.close()

    # -- the adapter ---------------------------------------------------------------------------------------------------

    def lost(self) -> Mapping[int, str]:
        found = {}
        for worker in self._executor.workers:
            pid, why = self._condemned.get(worker.rank, (0, ""))
            if pid == worker.proc.pid:
                found[worker.rank] = why
            code = worker.proc.exitcode
            if code is not None:
                how = f"killed by signal {-code}" if code < 0 else f"exited with status {code}"
                found[worker.rank] = f"{worker.proc.name} (pid {worker.proc.pid}) was {how}"
        return found

    def standbys(self) -> int:
        return 0

    def quiesce(self, dead: frozenset[int], deadline: Deadline) -> None:
        for rank in list(self._replacements):
            self._replacements.pop(rank).end(self._switchboard)
        self._end(dead, deadline)
        survivors = self._survivors(dead)
        self._pause(survivors, dead, deadline)
        for rank in survivors:
            self._drain(self._executor.response_mqs[rank])
        self._tidy(dead)
        if scheduler.current is None:
            raise RecoveryFailed(
                "the scheduler of this engine is not known",
                where="scheduler_cls",
                rule="it has to be the one that recovery in place has set",
                remedy="leave --scheduler-cls out",
            )
        found = undo.undo(scheduler.current)
        if self._undone is not None:  # a second loss: what the first one took back counts still
            found.refill = self._undone.refill
            found.unwritten |= self._undone.unwritten
        self._undone = found

    def rebuild(self, plan: Plan, epoch: int, deadline: Deadline) -> tuple[Member, ...]:
        if plan.kind not in (Kind.SUBSTITUTE, Kind.RESPAWN) or plan.ranks != tuple(
            range(self._executor.world_size)
        ):
            raise RecoveryFailed(
                "vLLM cannot go on with fewer ranks",
                where="plan",
                value=plan.kind.value,
                rule="every shard has a rank",
                remedy="leave min_shards at 0",
            )
        executor = self._executor
        writer = inside.new_writer(executor.world_size, inside.chunk_bytes())
        init_method = inside.new_init_method()
        for rank in plan.lost:
            self._replacements[rank] = spawn.start(
                executor, rank, init_method, writer.export_handle(), self._environment
            )
        survivors = self._survivors(frozenset(plan.lost))
        self._meet(survivors, init_method, writer, deadline)
        self._install(survivors, writer, deadline)
        self._restore(plan.lost, survivors, deadline)
        self._note_segments()
        self.epoch = epoch
        return self._members()

    def validate(self, membership: Membership, deadline: Deadline) -> None:
        """One collective through all ranks, with a known result."""
        ranks = self._executor.world_size
        sums = self._executor.order("recovery_all_reduce", (), deadline)
        expected = 64.0 * ranks * (ranks + 1) / 2
        if any(found != expected for found in sums):
            raise RecoveryFailed(
                "the new group does not add up",
                where="all-reduce",
                value=sums,
                rule=f"every rank gets {expected}",
                remedy="the whole engine is restarted",
            )

    def commit(self, membership: Membership, deadline: Deadline) -> None:
        self._undone = None
        self.epoch = membership.epoch
        self._tell_members()

    def abandon(self, reason: str) -> None:
        """Ends all workers; EngineCore ends with them, and whoever started it starts another."""
        try:
            for worker in self._executor.workers:
                worker.proc.kill()
            self.close()
            self._executor.fail()
        except Exception:
            _log.exception("ending the engine after a failed recovery")

    # -- quiesce --------------------------------------------------------------------------------------------------------

    def _end(self, dead: Iterable[int], deadline: Deadline) -> None:
        """Ends the dead for certain, stopped ones too: from here on nothing of theirs is written anywhere."""
        for rank in dead:
            worker = self._executor.workers[rank]
            if not spawn.end_process(worker.proc, worker, self._switchboard, deadline.left_s):
                raise TimeoutError(f"shard {rank} (pid {worker.proc.pid}) does not end")

    def _pause(self, survivors: dict[int, Line], dead: Iterable[int], deadline: Deadline) -> None:
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

    def _tidy(self, dead: Iterable[int]) -> None:
        """Removes the shared memory that only the dead knew of: everybody else has left the old group by now."""
        kept = inside.segments_of(self._executor.rpc_broadcast_mq)
        for rank in dead:
            for path in self._segments.pop(rank, set()):
                if path.name not in kept:
                    path.unlink(missing_ok=True)

    def _drain(self, queue: Any) -> None:
        while True:
            try:
                queue.dequeue(timeout=0)
            except TimeoutError:
                return

    # -- rebuild --------------------------------------------------------------------------------------------------------

    def _meet(
        self, survivors: dict[int, Line], init_method: str, writer: Any, deadline: Deadline
    ) -> None:
        """Brings replacements to the door, then lets everybody into the new group at once."""
        # What is left after the replacement has come is for weights, KV and requests.
        while not all(r.at_door for r in self._replacements.values()):
            self._all_alive(survivors)
            for replacement in self._replacements.values():
                replacement.look(self._switchboard, deadline)
            time.sleep(TICK_S)
        for line in survivors.values():
            line.answers()
            line.send(Join(init_method, writer.export_handle(), deadline.left_s))
        for replacement in self._replacements.values():
            replacement.enter()
        self._await(survivors, "joined", deadline)

    def _await(self, survivors: dict[int, Line], kind: str, deadline: Deadline) -> None:
        waiting = dict(survivors)
        while waiting:
            self._all_alive(survivors)
            for replacement in self._replacements.values():
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

    def _install(self, survivors: dict[int, Line], writer: Any, deadline: Deadline) -> None:
        """Replacements have their weights; everybody reads from the new queue."""
        executor, ready = self._executor, dict[int, Any]()
        left = executor.world_size
        while left or len(ready) < len(self._replacements):
            self._all_alive(survivors)
            for rank, replacement in self._replacements.items():
                replacement.look(self._switchboard, deadline)
                if rank not in ready and (handle := replacement.ready()) is not None:
                    ready[rank] = handle
            left -= left > 0 and inside.has_subscriber(writer, 0)
            if not deadline.left_s:
                raise StandbyLost(f"the replacements of {sorted(self._replacements)} are not ready")
            time.sleep(TICK_S)
        inside.open_writer(writer)
        for rank, handle in ready.items():
            while not inside.reader_is_ready(handle.worker_response_mq, int(TICK_S * 1000)):
                self._replacements[rank].look(self._switchboard, deadline)
                if not deadline.left_s:
                    raise StandbyLost(f"the replacement of shard {rank} does not answer")
        self._await(survivors, "ready", deadline)
        for rank, handle in ready.items():
            executor.workers[rank] = handle
            executor.response_mqs[rank] = handle.worker_response_mq
            del self._replacements[rank]
        executor.rpc_broadcast_mq = writer

    def _restore(
        self, lost: tuple[int, ...], survivors: dict[int, Line], deadline: Deadline
    ) -> None:
        """KV and requests of the new ranks; what is not restored on each of them is taken out of the prefix cache."""
        undone, order, stands = self._undone, self._executor.order, scheduler.current
        assert undone is not None
        assert stands is not None
        order("recovery_admit", (lost, self._layout, self._configs), deadline)
        restored: set[int] = set()
        if survivors and undone.refill:
            found = order("recovery_refill", (lost, undone.refill, deadline.left_s / 2), deadline)
            restored = set.intersection(*(set(found[rank]) for rank in lost)) if lost else set()
        if lost:
            undo.withdraw(stands, undo.cached_blocks(stands) - restored)
        undo.withdraw(stands, undone.unwritten)
        keeper = min(survivors, default=0)
        random = order("recovery_random", (), deadline)[keeper]
        order("recovery_requests", (undone.requests, random), deadline)
        inside.forget_transfers(self._executor.kv_output_aggregator)

    # -- who is there -----------------------------------------------------------------------------------------------------

    def _survivors(self, dead: frozenset[int]) -> dict[int, Line]:
        found = {}
        for worker in self._executor.workers:
            if worker.rank not in dead:
                line = self._switchboard.line(worker.proc.pid)
                if line is None or line.closed:
                    raise MembersLost({worker.rank: "does not listen to its executor"})
                found[worker.rank] = line
        return found

    def _all_alive(self, survivors: Iterable[int]) -> None:
        lost = self.lost()
        gone = {rank: lost[rank] for rank in survivors if rank in lost}
        if gone:
            raise MembersLost(gone)

    def _members(self) -> tuple[Member, ...]:
        return tuple(
            Member(shard=w.rank, rank=w.rank, pid=w.proc.pid, started=started_at(w.proc.pid))
            for w in self._executor.workers
        )

    def _note_segments(self) -> None:
        for worker in self._executor.workers:
            process = Process(worker.proc.pid, started_at(worker.proc.pid))
            self._segments[worker.rank] = shared_segments([process], SEGMENTS)
