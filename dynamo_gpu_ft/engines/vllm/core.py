"""`ResilientCore`: stands where vLLM's engine-core client stands, and outlives the engine behind it.

Every output passes the ledger before anybody sees it. When the engine dies, what is left of it is ended, another is
started, and each open request is sent again from where it was; whoever awaits outputs only sees a pause.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import logging
import time
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm.front_health import FrontHealth
from dynamo_gpu_ft.engines.vllm.inplace.front import GroupFront, GroupStatus
from dynamo_gpu_ft.engines.vllm.launch import Engine, Launcher, new_tag
from dynamo_gpu_ft.engines.vllm.requests import (
    OpenRequest,
    continuation,
    rest_of,
    resumed_event,
    why_not,
)
from dynamo_gpu_ft.engines.vllm.shelter import Shelter
from dynamo_gpu_ft.engines.vllm.streams import Streams
from dynamo_gpu_ft.events import (
    EngineDied,
    EngineReady,
    EventStream,
    Recovered,
    RecoveryFailedEvent,
    StepDone,
)
from dynamo_gpu_ft.recovery import processes
from dynamo_gpu_ft.recovery.executor import run_step
from dynamo_gpu_ft.recovery.plan import GiveUp, after_death
from dynamo_gpu_ft.recovery.verdicts import Sentence

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")

#: Longest wait for the processes of a dead engine to end after SIGKILL.
REAP_DEADLINE_S = 20.0


class ResilientCore:
    """Same interface as vLLM's AsyncMPClient, by delegation. Everything runs on one event loop except starting and
    ending engines, which block and run on one thread of their own."""

    def __init__(
        self,
        engine: Engine,
        launcher: Launcher,
        config: Config,
        events: EventStream,
        health: FrontHealth,
        group: GroupFront | None = None,
    ) -> None:
        self._engine, self._launcher = engine, launcher
        self._config, self._events = config, events
        self._streams = Streams(on_change=lambda count: health.expect(count > 0))
        self._shelter = Shelter(config, events)
        self._health = health
        self._group = group or GroupFront(events)
        self._generation = 1
        self._epoch = 0
        self._deaths: list[float] = []
        self._serving = asyncio.Event()
        self._outputs: asyncio.Queue[EngineCoreOutputs | Exception] = asyncio.Queue()
        self._pump_task: asyncio.Task[None] | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "gpu-ft-engine")
        self._loras: dict[int, Any] = {}
        self._resumed_at: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failed: str | None = None
        self._closing = False

    # -- vLLM's interface ----------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Everything else is the current engine's; coroutines wait for an engine that serves and notice its death."""
        if name.startswith("__") or "_engine" not in self.__dict__:
            raise AttributeError(name)
        attribute = getattr(self._engine.core, name)
        if inspect.iscoroutinefunction(attribute):
            return functools.partial(self._call, name)
        return attribute

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next outputs, of whichever engine. Raises EngineDeadError only when recovery has failed for good."""
        self._begin()
        item = await self._outputs.get()
        if isinstance(item, Exception):
            self._outputs.put_nowait(item)
            raise item
        return item

    async def add_request_async(self, request: Any) -> None:
        self._begin()
        self._refuse_if_over()
        if request.abort_immediately:
            await self._call("add_request_async", request)
            return
        entry = self._streams.get(request.request_id)
        if entry is not None:  # the next input of a streaming session: only the engine keeps it
            await self._call("add_request_async", request)
            return
        entry = self._streams.admit(request)
        if self._serving.is_set():
            await self._send(entry)
        else:
            self._limit_wait(entry)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._streams.close(request_id, "abort")
        if self._serving.is_set() and request_ids:
            try:
                await self._engine.core.abort_requests_async(request_ids)
            except EngineDeadError:
                _log.debug("abort met a dying engine; its requests are closed already")

    async def add_lora_async(self, lora_request: Any) -> bool:
        added = bool(await self._call("add_lora_async", lora_request))
        if added:
            self._loras[lora_request.lora_int_id] = lora_request
        return added

    async def remove_lora_async(self, lora_id: int) -> bool:
        self._loras.pop(lora_id, None)
        return bool(await self._call("remove_lora_async", lora_id))

    def shutdown(self, timeout: float | None = None) -> None:
        """Ends recovery, engine and ledger. May be called from any thread, and twice."""
        if self._closing:
            return
        self._closing = True
        self._group.close()
        self._health.end()  # before its processes end: that is no fault
        if self._loop is not None and not self._loop.is_closed():
            for task in (self._recovery, self._pump_task):
                if task is not None:
                    self._loop.call_soon_threadsafe(task.cancel)
        self._engine.core.shutdown(timeout=timeout)
        # NOTE: only now: the engine dies with the thread that started it.
        self._thread.shutdown(wait=False, cancel_futures=True)
        processes.end_all(self._engine.tag, deadline_s=REAP_DEADLINE_S)
        self._engine.unlink_segments()
        self._shelter.close()

    # -- one engine's life -----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """First call on the loop: the first engine is ready, the shelter can be entered."""
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._serve(self._engine)
        self._events.emit(EngineReady(epoch=self._epoch, pids=self._engine.pids()))

    def _serve(self, engine: Engine) -> None:
        self._engine = engine
        self._epoch = self._shelter.enter(self._streams) or self._generation
        engine.watch()
        self._serving.set()
        self._pump_task = asyncio.create_task(self._pump(engine), name="gpu-ft-pump")
        self._health.serve(self.condemn)
        self._group.serve(
            nudge=self.look,
            name_of=self._streams.name_of,
            give_up=engine.condemn,
            expect=lambda busy: self._health.expect(not busy and len(self._streams) > 0),
        )

    def condemn(self, sentence: Sentence) -> None:
        """A verdict on the engine that serves: its shards are replaced in place where that is possible, else it is ended and recovered
        from like a dead one. Nothing while none serves."""
        if not self._serving.is_set() or self.failed is not None or self._closing:
            return
        engine, reason = self._engine, sentence.reason
        if sentence.echo and self._group.look_into(reason, engine.condemn):
            return
        if not self._group.replace(sentence, self._health, self._launcher.ranks):
            engine.condemn(reason)
            return
        self.look()
        limit = self._config.recovery_deadline_s  # what has not ended by then will not end well
        asyncio.get_running_loop().call_later(limit, self._group.late, engine.condemn, reason)

    def look(self) -> None:
        """Asks the engine something, so that it looks at its workers though nobody wants a token."""
        if self._serving.is_set():
            call = asyncio.ensure_future(self._call("collective_rpc_async", "check_health"))
            call.add_done_callback(lambda done: done.cancelled() or done.exception())

    def standing(self) -> tuple[GroupStatus, bool, int]:
        """The group of ranks, whether an engine serves, and how many requests are open."""
        return self._group.status, self._serving.is_set(), len(self._streams)

    async def _pump(self, engine: Engine) -> None:
        """Moves outputs of one engine through the ledger; its end is the engine's death."""
        try:
            while True:
                outputs = await engine.core.get_output_async()
                self._outputs.put_nowait(self._accept(outputs))
        except Exception as error:
            if not self._closing:
                self._lost(engine, engine.obituary(error))

    def _accept(self, outputs: EngineCoreOutputs) -> EngineCoreOutputs:
        if self._resumed_at is not None and outputs.outputs:
            took = time.monotonic() - self._resumed_at
            self._resumed_at = None
            self._step_done("first_token", took)
        for output in outputs.outputs:
            before = self._streams.get(output.request_id)
            had = len(before.token_ids) if before is not None else 0
            entry = self._streams.accept(output)
            if entry is not None and entry.resumed:
                entry.resumed = False
                self._events.emit(resumed_event(entry, had, output, self._epoch))
        return outputs

    def _lost(self, engine: Engine, reason: str) -> None:
        if engine is not self._engine or self.failed is not None:
            return
        engine.unwatch()
        self._serving.clear()
        self._events.emit(
            EngineDied(epoch=self._epoch, reason=reason, open_requests=len(self._streams))
        )
        for entry in self._streams:
            self._limit_wait(entry)
        self._recovery = asyncio.create_task(self._recover(engine), name="gpu-ft-recovery")

    # -- recovery ----------------------------------------------------------------------------------------------------

    async def _recover(self, dead: Engine) -> None:
        began = time.monotonic()
        self._deaths.append(began)
        if over := await self._group.why_over():
            self._give_up(over)
            return
        while True:
            now = time.monotonic()
            decision = after_death(self._deaths, now=now, recovery_began=began, config=self._config)
            if isinstance(decision, GiveUp):
                self._give_up(decision.reason)
                return
            choice, environment = self._health.choose(self._launcher.ranks)
            if choice.missing:
                self._give_up(choice.missing)
                return
            left = self._config.recovery_deadline_s - (now - began)
            try:
                if decision.delay_s:
                    await asyncio.sleep(min(decision.delay_s, left))
                await self._run(
                    "reap",
                    self._blocking(dead.end, deadline_s=REAP_DEADLINE_S),
                    REAP_DEADLINE_S + 5,
                )
                engine = await self._run(
                    "start",
                    functools.partial(self._start, environment),
                    min(left, self._config.start_timeout_s),
                )
                break
            except Exception as error:
                _log.warning("restart failed: %s: %s", type(error).__name__, error)
                self._deaths.append(time.monotonic())
        self._generation += 1
        self._serve(engine)
        await self._run("resubmit", functools.partial(self._resubmit, self._generation), 60.0)
        if engine is not self._engine or not self._serving.is_set():
            return
        took = time.monotonic() - began
        self._events.emit(EngineReady(epoch=self._epoch, pids=engine.pids()))
        self._events.emit(
            Recovered(epoch=self._epoch, duration_s=took, requests=len(self._streams))
        )

    async def _start(self, environment: dict[str, str]) -> Engine:
        """A new, ready engine; a start that is given up leaves no process behind."""
        tag = new_tag()
        loop = asyncio.get_running_loop()
        self._health.prepare(tag, self._launcher.ranks)
        self._group.prepare(tag)
        try:
            core = await loop.run_in_executor(self._thread, self._launcher.start, tag, environment)
        except BaseException:
            await asyncio.shield(
                asyncio.to_thread(processes.end_all, tag, deadline_s=REAP_DEADLINE_S)
            )
            raise
        return Engine(core, tag)

    async def _resubmit(self, generation: int) -> None:
        for lora in self._loras.values():
            await self._engine.core.add_lora_async(lora)
        resent = 0
        for entry in self._streams:
            if generation != self._generation or not self._serving.is_set():
                return
            if entry.sent_epoch == generation:
                continue
            if entry.token_ids and (reason := why_not(entry.request)) is not None:
                self._end(entry, FinishReason.ERROR, reason)
            elif rest_of(entry).done:
                self._end(entry, FinishReason.LENGTH, "complete")
            else:
                entry.resumed = entry.sent_epoch > 0
                await self._send(entry)
                resent += entry.resumed
        self._resumed_at = time.monotonic() if resent else None

    async def _send(self, entry: OpenRequest) -> None:
        entry.sent_epoch = self._generation
        try:
            await self._engine.core.add_request_async(continuation(entry))
        except EngineDeadError:
            _log.debug("engine died under a send; the request goes to the next one")

    # -- ends -------------------------------------------------------------------------------------------------------

    def _end(self, entry: OpenRequest, how: FinishReason, reason: str) -> None:
        """Finishes a stream from here: the front sees a normal end or a retryable error."""
        request_id = entry.request.request_id
        if self._streams.get(request_id) is None:
            return
        if how is FinishReason.ERROR:
            _log.warning("request %s ends with an error: %s", entry.name, reason)
        self._streams.close(request_id, str(how))
        output = EngineCoreOutput(request_id=request_id, new_token_ids=[], finish_reason=how)
        self._outputs.put_nowait(EngineCoreOutputs(outputs=[output]))

    def _limit_wait(self, entry: OpenRequest) -> None:
        """Ends the request if no engine has it within `request_wait_s`."""
        limit = self._config.request_wait_s
        if limit > 0 and self._loop is not None:
            self._loop.call_later(limit, self._expire, entry, self._generation)

    def _expire(self, entry: OpenRequest, generation: int) -> None:
        if not self._serving.is_set() and self._generation == generation:
            self._end(
                entry,
                FinishReason.ERROR,
                f"no engine within request_wait_s = {self._config.request_wait_s:g} s",
            )

    def _give_up(self, reason: str) -> None:
        self.failed = reason
        self._events.emit(RecoveryFailedEvent(reason=reason))
        for entry in self._streams:
            self._streams.close(entry.request.request_id, "error")
        self._outputs.put_nowait(EngineDeadError())

    def _refuse_if_over(self) -> None:
        if self.failed is not None or self._closing:
            raise EngineDeadError()

    # -- helpers ----------------------------------------------------------------------------------------------------

    async def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A call to the engine that neither waits for ever on a dead one nor misses the next."""
        self._begin()
        self._refuse_if_over()
        await asyncio.wait_for(self._serving.wait(), self._config.recovery_deadline_s)
        engine = self._engine
        call = asyncio.ensure_future(getattr(engine.core, name)(*args, **kwargs))
        death = asyncio.ensure_future(engine.died.wait())
        try:
            await asyncio.wait({call, death}, return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                raise EngineDeadError()
            return call.result()
        finally:
            call.cancel()
            death.cancel()

    def _blocking(self, function: Any, **kwargs: Any) -> Any:
        async def step() -> None:
            await asyncio.to_thread(function, **kwargs)

        return step

    async def _run(self, name: str, step: Any, deadline_s: float) -> Any:
        return await run_step(
            name, step, epoch=self._epoch, deadline_s=deadline_s, events=self._events
        )

    def _step_done(self, name: str, took: float) -> None:
        self._events.emit(StepDone(epoch=self._epoch, step=name, duration_s=took, ok=True))
