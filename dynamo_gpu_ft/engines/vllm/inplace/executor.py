"""`InPlaceExecutor`: vLLM's multiprocess executor that replaces a lost worker while the engine waits, instead of ending it.

Given as `--distributed-executor-backend`; sets up worker and scheduler class by itself. Every answer is waited for with an eye on
the workers; a loss is recovered from inside that wait, on EngineCore's own thread, and the step counts as not done.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from vllm.platforms import current_platform
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.multiproc_executor import FutureWrapper, MultiprocExecutor, WorkerProc
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT

from dynamo_gpu_ft.engines.vllm import settings
from dynamo_gpu_ft.engines.vllm.inplace import epochs, orders, support
from dynamo_gpu_ft.engines.vllm.inplace.births import Births
from dynamo_gpu_ft.engines.vllm.inplace.group import WorkerGroup
from dynamo_gpu_ft.errors import RecoveryFailed, StoreUnavailable
from dynamo_gpu_ft.recovery.group.base import Deadline, MembersLost
from dynamo_gpu_ft.recovery.membership.base import MembershipStore

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")

#: Calls that belong to one engine step: when it is lost, they are over, and the requests in it are scheduled again.
STEP = ("execute_model", "sample_tokens")

#: How often a wait for an answer looks at the workers.
LOOK_S = 0.05

#: A rank's error may be the first sign of a peer's death: so long its death may take to be seen.
ECHO_S = 2.0


class InPlaceExecutor(MultiprocExecutor):
    """`not_in_place`: why a loss ends the engine, "" while it does not."""

    def _init_executor(self) -> None:
        self.config = settings.config_of(self.vllm_config)
        self.not_in_place = support.why_not(
            self.vllm_config, self.config, platform=current_platform.device_type
        )
        self.store: MembershipStore | None = None
        if not self.not_in_place:
            self.not_in_place = self._open_store()
        self.group: WorkerGroup | None = None
        self._armed = False
        self._configs: Any = None
        self._layout = ""
        if self.not_in_place:
            _log.warning(
                "NOT IN PLACE: a lost worker costs a restart of the whole engine: %s",
                self.not_in_place,
            )
            super()._init_executor()
            return
        self.vllm_config.parallel_config.worker_cls = support.WORKER
        self.vllm_config.scheduler_config.scheduler_cls = support.SCHEDULER
        self.switchboard = orders.Switchboard()
        os.environ[orders.ADDRESS_VARIABLE] = self.switchboard.address
        self.omp = OMPProcessManager(self.vllm_config)
        self.births = Births(self, nursery=self.config.nursery)
        super()._init_executor()

    def _open_store(self) -> str:
        """Why this engine has no membership store to found an epoch in, "" when it has. Raises ConfigError for a setting that means none."""
        try:
            self.store = epochs.opened(self.config)
            return epochs.taken(self.store, epochs.engine_name(self.config))
        except StoreUnavailable as error:
            return f"there is no membership store: {error}"

    # -- what EngineCore does with it at start -----------------------------------------------------------------------

    def set_kv_cache_layout(self, layout_name: str) -> None:
        self._layout = layout_name
        super().set_kv_cache_layout(layout_name)

    def initialize_from_config(self, kv_cache_configs: Any) -> None:
        self._configs = kv_cache_configs
        super().initialize_from_config(kv_cache_configs)

    def compile_or_warm_up_model(self) -> None:
        super().compile_or_warm_up_model()
        if self.not_in_place:
            return
        self.not_in_place = support.why_not_cache(self._configs) or self._found()
        if self.not_in_place:
            _log.warning("NOT IN PLACE: %s", self.not_in_place)

    def _found(self) -> str:
        """Why there is no group after all, "" when there is one."""
        self.group = WorkerGroup(self, self._layout, self._configs)
        try:
            self.group.found()
        except (StoreUnavailable, RecoveryFailed) as error:
            self.group.close()
            self.group = None
            return str(error)
        self._armed = True
        return ""

    # -- watching --------------------------------------------------------------------------------------------------

    def start_worker_monitor(self, inline: bool = False) -> None:
        if self.not_in_place:
            super().start_worker_monitor(inline)
            return
        threading.Thread(target=self._watch, daemon=True, name="gpu-ft-workers").start()

    def _watch(self) -> None:
        """Before the engine serves, a death ends it as in vLLM; later it is seen by whoever waits for an answer."""
        while not getattr(self, "shutting_down", False):
            sentinels = {worker.proc.sentinel: worker.proc for worker in self.workers}
            died = wait(list(sentinels), timeout=LOOK_S)
            if self._armed and self.group is not None:
                try:
                    self.group.maintain()
                except Exception:  # NOTE: this thread's end would be that of every standby, and of those that took a place
                    _log.exception("looking after the standbys")
            if not died or getattr(self, "shutting_down", False):
                continue
            if self._armed:
                assert self.group is not None  # only then it is armed
                self.group.noticed(sentinels[died[0]])
                time.sleep(LOOK_S)
                continue
            process = sentinels[died[0]]
            _log.error(
                "%s ended (exit code %s) before the engine was ready",
                process.name,
                process.exitcode,
            )
            self.fail()
            return

    def fail(self) -> None:
        """What vLLM does when a worker has died: everything is ended, EngineCore is told."""
        self.is_failed = True
        self.shutdown()
        callback: Callable[[], None] | None = getattr(self, "failure_callback", None)
        self.failure_callback = None
        if callback is not None:
            callback()

    # -- calls --------------------------------------------------------------------------------------------------------

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
        unique_reply_rank: int | None = None,
        kv_output_aggregator: Any = None,
        ec_output_aggregator: Any = None,
    ) -> Any:
        """As vLLM's. Blocks for a whole recovery when a worker is lost; raises RuntimeError when that failed."""
        aggregators = [a for a in (kv_output_aggregator, ec_output_aggregator) if a]
        if not self._armed:
            return super().collective_rpc(
                method,
                timeout,
                args,
                kwargs,
                non_block,
                unique_reply_rank,
                kv_output_aggregator,
                ec_output_aggregator,
            )
        if self.is_failed:
            raise RuntimeError("Executor failed.")
        call = _Call(self, method, timeout, args, kwargs or {}, unique_reply_rank, aggregators)
        call.send()
        future = FutureWrapper(self.futures_queue, get_response=call.result)
        return future if non_block else future.result()

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        if self._armed and self.group is not None:
            self.group.scheduled(scheduler_output)
        return super().execute_model(scheduler_output, non_block)

    def order(self, method: str, args: tuple[Any, ...], deadline: Deadline) -> list[Any]:
        """A call of a recovery step: all ranks' answers. Raises MembersLost, TimeoutError, RuntimeError."""
        call = _Call(self, method, deadline.left_s, args, {}, None, [])
        call.send(raises=True)
        result: list[Any] = call.collect()
        return result

    def shutdown(self) -> None:
        self._armed = False
        if self.group is not None:
            self.group.close()
        switchboard = getattr(self, "switchboard", None)
        if switchboard is not None:
            # NOTE: vLLM's watcher of its parent knows the queue that a worker began with; a survivor has another one since.
            for worker in getattr(self, "workers", None) or ():
                if worker.death_writer is not None:
                    worker.death_writer.close()
                    worker.death_writer = None
            time.sleep(LOOK_S)
            switchboard.close()
        super().shutdown()


class _Call:
    """One call of all workers, of which all or one answer."""

    def __init__(
        self,
        executor: InPlaceExecutor,
        method: str | Callable[..., Any],
        timeout: float | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        reply_rank: int | None,
        aggregators: Sequence[Any],
    ) -> None:
        self._executor, self._method, self._args, self._kwargs = executor, method, args, kwargs
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._reply_rank, self._aggregators = reply_rank, aggregators
        self._lost: dict[int, str] = {}

    def send(self, raises: bool = False) -> None:
        """Queues the call; a loss that is noticed here is remembered for `result`."""
        method = self._method
        if not isinstance(method, str):
            method = cloudpickle.dumps(method, protocol=pickle.HIGHEST_PROTOCOL)
        from_rank = None if self._aggregators else self._reply_rank
        message = (method, self._args, self._kwargs, from_rank)
        try:
            while True:
                self._look()
                try:
                    self._executor.rpc_broadcast_mq.enqueue(message, timeout=LOOK_S)
                    return
                except TimeoutError:  # the ring is full: somebody does not read
                    self._in_time()
        except MembersLost as lost:
            if raises:
                raise
            self._lost = lost.shards

    def result(self) -> Any:
        """Its answer; after a loss, and the recovery, that of an empty step, or that of another try."""
        while True:
            try:
                if self._lost:
                    raise MembersLost(self._lost)
                return self._aggregate(self.collect())
            except MembersLost as lost:
                assert self._executor.group is not None
                self._executor.group.recover(lost.shards)
            if self._method in STEP:
                return EMPTY_MODEL_RUNNER_OUTPUT
            self._lost = {}
            self.send()

    def collect(self) -> Any:
        executor = self._executor
        alone = self._reply_rank is not None and not self._aggregators
        ranks = [self._reply_rank] if alone else range(executor.world_size)
        answers = [self._answer(executor.response_mqs[rank]) for rank in ranks]
        return answers[0] if alone else answers

    def _answer(self, queue: Any) -> Any:
        while True:
            try:
                status, answer = queue.dequeue(timeout=LOOK_S)
                break
            except TimeoutError:
                self._look()
                self._in_time()
        if status == WorkerProc.ResponseStatus.SUCCESS:
            return answer
        give_up = time.monotonic() + ECHO_S
        while time.monotonic() < give_up:
            self._look()
            time.sleep(LOOK_S / 5)
        raise RuntimeError(
            f"Worker failed with error '{answer}', please check the stack trace above for the root cause"
        )

    def _look(self) -> None:
        group = self._executor.group
        lost = group.lost() if group is not None else {}
        if lost:
            raise MembersLost(lost)

    def _in_time(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        group = self._executor.group
        if group is not None:
            group.judge_hang(f"{self._method} was not answered in time")
            self._look()
        raise TimeoutError(f"RPC call to {self._method} timed out.")

    def _aggregate(self, answers: Any) -> Any:
        if not self._aggregators:
            return answers
        rank = self._reply_rank or 0
        result = answers[rank]
        for aggregator in self._aggregators:
            result = aggregator.aggregate(answers, output_rank=rank)
        return result
