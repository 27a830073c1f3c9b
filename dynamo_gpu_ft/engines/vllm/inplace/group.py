"""`WorkerGroup`: the workers of one vLLM engine as the coordinator's `GroupAdapter`.

EngineCore's thread waits in `recover` while the coordinator's thread calls the steps, so scheduler and executor stand still.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from dynamo_gpu_ft.engines.vllm.inplace import epochs, hang, inside, scheduler, spawn, undo
from dynamo_gpu_ft.engines.vllm.inplace.gathering import Gathering
from dynamo_gpu_ft.engines.vllm.inplace.link import (
    Armed,
    Condemn,
    Link,
    Noticed,
    Suspect,
    Undecided,
)
from dynamo_gpu_ft.engines.vllm.inplace.orders import Line, Take
from dynamo_gpu_ft.engines.vllm.inplace.standby import Standbys
from dynamo_gpu_ft.engines.vllm.inplace.states import RequestState
from dynamo_gpu_ft.engines.vllm.inplace.weights import Weighed, differing
from dynamo_gpu_ft.errors import RecoveryFailed
from dynamo_gpu_ft.events import EventStream, Journal, StepDone, log_event
from dynamo_gpu_ft.recovery.group.base import Deadline, StandbyLost
from dynamo_gpu_ft.recovery.group.coordinator import Coordinator
from dynamo_gpu_ft.recovery.group.plan import Kind, Plan, Policy
from dynamo_gpu_ft.recovery.group.states import State
from dynamo_gpu_ft.recovery.membership.base import Member, Membership
from dynamo_gpu_ft.recovery.processes import Process, shared_segments, started_at

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")

#: vLLM's shared memory of one process: what is left of it after a SIGKILL.
SEGMENTS = ("psm_", "vllm_dist_")


class WorkerGroup:
    """Shard and rank are the same number here: one tensor-parallel group of local processes."""

    def __init__(self, executor: Any, layout: str, kv_cache_configs: Any) -> None:
        self._executor, self._layout, self._configs = executor, layout, kv_cache_configs
        self._switchboard = executor.switchboard
        self._condemned: dict[int, tuple[int, str]] = {}  # shard -> (pid, why)
        self._undone: undo.Undone | None = None
        self._resuming: dict[str, RequestState] = {}  # not scheduled again yet
        self._manifest: dict[
            int, Weighed
        ] = {}  # shard -> its weights as the engine began with them
        self._filled: tuple[int, ...] = ()
        self._gathering = Gathering(executor, self.lost)
        self._segments: dict[int, set[Any]] = {}
        self._standbys = Standbys(
            executor, layout, kv_cache_configs, executor.config.standbys, self._standby
        )
        self.epoch = 0
        config = executor.config
        self._environment: dict[str, str] = {}
        self._told: set[int] = set()
        self._standbys_told = 0
        self._abandoned = False
        self._judging = threading.Lock()  # answers on a line are one question's
        self._link = Link(self._ordered)
        self._events = EventStream()
        if self._link.connected:  # the serving process logs and journals them
            self._events.add(self._link.tell)
        else:
            self._events.add(log_event)
            if config.journal:
                self._events.add(Journal(config.journal))
        self._coordinator = Coordinator(
            epochs.engine_name(config),
            executor.world_size,
            self,
            executor.store,
            Policy.of(config),
            self._events,
        )

    def found(self) -> None:
        """The first epoch: the workers that have just started. Blocks while they weigh themselves. Raises StoreUnavailable and
        RecoveryFailed."""
        self.epoch = self._coordinator.found(self._members()).epoch
        limit = Deadline.after(self._executor.config.start_timeout_s)
        self._manifest = dict(enumerate(self._executor.order("recovery_weights", (None,), limit)))
        self._executor.births.expect(self._executor.order("recovery_modules", (), limit)[0])
        self._weighed(self._manifest)
        self._note_segments()
        self._tell_members()

    def _weighed(self, found: Mapping[int, Weighed]) -> None:
        size, tensors = sum(w.size for w in found.values()), sum(w.tensors for w in found.values())
        took = max((w.seconds for w in found.values()), default=0.0)
        what = f"{tensors} digests over {size} bytes of {len(found)} shards"
        self._step("weigh", took, what)

    def recover(self, lost: Mapping[int, str]) -> None:
        """Blocks until the group works again. Raises RuntimeError when it will not; the executor has failed then."""
        outcome = self._coordinator.recover(lost)
        if outcome.state is not State.SERVING:
            raise RuntimeError(f"recovery in place failed: {outcome.reason}")

    def noticed(self, process: Any) -> None:
        """A worker has ended; on the watching thread."""
        if process.pid not in self._told:
            self._told.add(process.pid)
            for worker in self._executor.workers:
                if worker.proc is process:
                    self._link.send(Noticed(worker.rank))

    def scheduled(self, scheduler_output: Any) -> None:
        """A step is about to be sent: tells what each request comes back with."""
        if self._resuming:
            for event in undo.resumed(self._resuming.values(), scheduler_output, self.epoch):
                del self._resuming[event.request_id]
                self._events.emit(event)

    def maintain(self) -> None:
        """Looks after the nursery and the standbys; on the watching thread, which lives as long as EngineCore, for they are tied to it."""
        self._executor.births.maintain()
        self._standbys.maintain()
        if self.standbys() != self._standbys_told:
            self._tell_members()

    def _standby(self, ready: bool, took: float, what: str) -> None:
        self._step("standby", took, what, ok=ready)

    def _step(self, step: str, took: float, what: str, *, ok: bool = True) -> None:
        done = StepDone(epoch=self.epoch, step=step, duration_s=took, ok=ok, detail=what)
        self._events.emit(done)

    def _ordered(self, order: Condemn | Suspect) -> None:
        """A verdict: these workers must go, though they live; or whoever holds up a step. On the link's thread."""
        if isinstance(order, Suspect):
            if not self.judge_hang(order.reason):
                self._link.send(Undecided(order.reason))
            return
        current = {worker.rank: worker.proc.pid for worker in self._executor.workers}
        if order.environment != self._environment:
            self._environment = dict(order.environment)
            self._standbys.move(self._environment)
        for shard, pid in order.members.items():
            if current.get(shard) == pid:  # else it is replaced already
                self._condemned.setdefault(shard, (pid, order.reason))

    def _tell_members(self) -> None:
        pids = {worker.rank: worker.proc.pid for worker in self._executor.workers}
        self._standbys_told = self.standbys()
        self._link.send(Armed(pids, self._standbys_told, self.epoch))

    def judge_hang(self, reason: str) -> bool:
        """A step is overdue: condemns whoever holds it up; False if that cannot be told. Nobody does if it has ended by now. Blocks for
        a moment; from any thread."""
        workers = {
            w.rank: (w.proc.pid, self._switchboard.line(w.proc.pid)) for w in self._executor.workers
        }
        with self._judging:
            if self._coordinator.state is not State.SERVING:
                return True  # somebody is lost already: what can be told is being told
            shown = hang.look(workers)
        found = hang.guilty(shown)
        _log.warning("%s; %s", reason, hang.describe(shown))
        for rank, why in found.items():
            self._condemned.setdefault(rank, (workers[rank][0], f"{reason}: {why}"))
        return bool(found) or hang.over(shown)

    def close(self) -> None:
        """Ends what is not a worker yet. Never raises. After `abandon` the line stays, for the recovery's end to be told; this
        process's end closes it."""
        self._standbys.close()
        self._executor.births.close()
        self._gathering.end_attempt()
        if not self._abandoned:
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
        return self._standbys.ready()

    def quiesce(self, dead: frozenset[int], deadline: Deadline) -> None:
        with self._judging:
            pass  # whoever asks the workers something has his answers
        gathering = self._gathering
        gathering.end_attempt()
        self._end(dead, deadline)
        survivors = gathering.survivors(dead)
        gathering.pause(survivors, dead, deadline)
        for rank in survivors:
            gathering.drain(self._executor.response_mqs[rank])
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
        gathering, handle = self._gathering, writer.export_handle()
        for rank in plan.lost:
            found = self._standbys.take(rank) if plan.kind is Kind.SUBSTITUTE else None
            if found is not None:
                cpus = executor.births.cpus(rank)
                found.assign(Take(rank, init_method, handle, deadline.left_s, cpus))
            else:
                found = spawn.start(
                    executor, rank, self._environment, init_method=init_method, queue=handle
                )
            gathering.replacements[rank] = found
        survivors = gathering.survivors(frozenset(plan.lost))
        gathering.meet(survivors, init_method, writer, deadline)
        started = list(gathering.replacements.values())
        gathering.install(survivors, writer, deadline)
        for each in started:
            self._step("replace", each.age_s, f"{each.how} for shard {each.rank}")
        self._filled = plan.lost
        self._restore(plan.lost, survivors, deadline)
        self._note_segments()
        self.epoch = epoch
        return self._members()

    def validate(self, membership: Membership, deadline: Deadline) -> None:
        """The weights of every new rank are what its shard began with, and a collective through all ranks has the known result.
        A replacement with other weights is lost: another one may have the right ones."""
        ranks = self._executor.world_size
        found = self._executor.order("recovery_weights", (self._filled,), deadline)
        self._weighed({rank: found[rank] for rank in self._filled})
        for rank in self._filled:
            wrong = differing(self._manifest[rank], found[rank])
            if wrong:
                raise StandbyLost(
                    f"the replacement of shard {rank} (pid {self._executor.workers[rank].proc.pid}) has other weights than the "
                    f"shard began with: {len(wrong)} tensors, first {wrong[0]}; look at the model's files and this machine's memory"
                )
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
        self.epoch = membership.epoch
        undone, self._undone = self._undone, None
        self._resuming = {r.request_id: r for r in undone.requests} if undone is not None else {}
        self._tell_members()

    def abandon(self, reason: str) -> None:
        """Ends all workers; EngineCore ends with them, and whoever started it starts another."""
        self._abandoned = True
        try:
            for worker in self._executor.workers:
                worker.proc.kill()
            self._executor.fail()  # closes this group too
        except Exception:
            _log.exception("ending the engine after a failed recovery")

    # -- quiesce --------------------------------------------------------------------------------------------------------

    def _end(self, dead: Iterable[int], deadline: Deadline) -> None:
        """Ends the dead for certain, stopped ones too: from here on nothing of theirs is written anywhere."""
        for rank in dead:
            worker = self._executor.workers[rank]
            if not spawn.end_process(worker.proc, worker, self._switchboard, deadline.left_s):
                raise TimeoutError(f"shard {rank} (pid {worker.proc.pid}) does not end")

    def _tidy(self, dead: Iterable[int]) -> None:
        """Removes the shared memory that only the dead knew of: everybody else has left the old group by now."""
        kept = inside.segments_of(self._executor.rpc_broadcast_mq)
        for rank in dead:
            for path in self._segments.pop(rank, set()):
                if path.name not in kept:
                    path.unlink(missing_ok=True)

    # -- rebuild --------------------------------------------------------------------------------------------------------

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

    def _members(self) -> tuple[Member, ...]:
        return tuple(
            Member(shard=w.rank, rank=w.rank, pid=w.proc.pid, started=started_at(w.proc.pid))
            for w in self._executor.workers
        )

    def _note_segments(self) -> None:
        for worker in self._executor.workers:
            process = Process(worker.proc.pid, started_at(worker.proc.pid))
            self._segments[worker.rank] = shared_segments([process], SEGMENTS)
