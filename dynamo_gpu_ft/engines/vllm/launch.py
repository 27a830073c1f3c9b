"""Starting and ending one vLLM engine (EngineCore and its workers) from the serving process.

An `Engine` is one start: its client object, the tag its processes carry, and the moment it is known to be dead.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import signal
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError

from dynamo_gpu_ft.engines.vllm.resize import with_tensor_parallel
from dynamo_gpu_ft.recovery import processes

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")


#: Names of shared memory that vLLM and Python make for an engine. vLLM's own are known to no resource tracker.
SEGMENTS = ("psm_", "sem.mp-", "vllm_dist_")


def new_tag() -> str:
    return uuid.uuid4().hex


class Engine:
    """One started engine. `core` is vLLM's client of it; `died` is set, on the loop, when a core process has exited."""

    def __init__(self, core: Any, tag: str) -> None:
        self.core, self.tag = core, tag
        self.died = asyncio.Event()
        self._segments: set[Path] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: list[int] = []
        self._sentence = ""

    def watch(self) -> None:
        """Wakes whoever awaits outputs as soon as a core process exits; vLLM itself polls about once a second.

        Call on the event loop, once the engine is ready."""
        self._segments = processes.shared_segments(processes.find(self.tag), SEGMENTS)
        self._loop = asyncio.get_running_loop()
        manager = self.core.resources.engine_manager
        for sentinel in manager.sentinels() if manager is not None else ():
            self._loop.add_reader(sentinel, self._exited)
            self._watched.append(sentinel)

    def condemn(self, reason: str) -> None:
        """Declares a living engine dead: what it has put out already still counts, then it ends. Call on the event loop."""
        self._sentence = self._sentence or reason
        self._exited()

    def _exited(self) -> None:
        self.unwatch()
        self.core.outputs_queue.put_nowait(EngineDeadError())

    def unwatch(self) -> None:
        self.died.set()
        for sentinel in self._watched:
            if self._loop is not None:
                self._loop.remove_reader(sentinel)
        self._watched.clear()

    def obituary(self, error: Exception) -> str:
        """Why this engine counts as dead: how its core process ended if it did, else the verdict on it, else what vLLM said."""
        manager = self.core.resources.engine_manager
        for process in manager.processes if manager is not None else ():
            code = process.exitcode
            if code is not None and code < 0:
                return f"{process.name} (pid {process.pid}) was killed by {_signal_name(-code)}"
            if code is not None:
                return f"{process.name} (pid {process.pid}) exited with status {code}"
        return self._sentence or f"{type(error).__name__}: {error}".rstrip(": ")

    def pids(self) -> tuple[int, ...]:
        return tuple(sorted(p.pid for p in processes.find(self.tag)))

    def end(self, *, deadline_s: float) -> None:
        """SIGKILLs what is left of it and releases vLLM's client. Blocks, at most about `deadline_s`."""
        left = processes.end_all(self.tag, deadline_s=deadline_s)
        if left:
            _log.warning("processes %s of the dead engine would not end", [p.pid for p in left])
        try:
            self.core.shutdown(timeout=0)
        except (
            Exception
        ) as error:  # vLLM's own tidying up behind processes that are gone: no reason not to go on
            _log.warning("vLLM's client of the dead engine: %s: %s", type(error).__name__, error)
        self.unlink_segments()

    def unlink_segments(self) -> None:
        """Removes the shared memory that the ended engine's processes had, unless this process maps it too.

        A SIGKILL leaves it in /dev/shm, and enough of it would keep the next engine from starting."""
        ours = processes.shared_segments([processes.this_process()], SEGMENTS)
        for path in self._segments - ours:
            path.unlink(missing_ok=True)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Launcher:
    """Starts engines like the first one, each under a new engine id, hence in a new epoch of the arena.

    With `restart_tp` they have that tensor-parallel size instead. Raises `ConfigError` when the model does not allow it."""

    def __init__(
        self,
        vllm_config: Any,
        executor_class: type[Any],
        *,
        log_stats: bool,
        restart_tp: int = 0,
    ) -> None:
        self._pristine = copy.deepcopy(vllm_config)
        self._executor_class, self._log_stats = executor_class, log_stats
        if restart_tp:
            self._pristine, self._executor_class = with_tensor_parallel(vllm_config, restart_tp)

    @property
    def ranks(self) -> int:
        """How many ranks, hence devices, an engine that is started from now on has."""
        return int(self._pristine.parallel_config.world_size)

    def start(self, tag: str, environment: Mapping[str, str] | None = None) -> Any:
        """vLLM's client of a new, ready engine, its processes with `environment` too. Blocks for the whole start; raises what vLLM raises when it fails.

        NOTE: always call it on the same long-lived thread: the death of the thread that spawned a process can end it."""
        config = copy.deepcopy(self._pristine)
        if config.kv_transfer_config is not None:
            config.kv_transfer_config.engine_id = str(uuid.uuid4())
        with processes.tagged(tag, environment):
            return EngineCoreClient.make_async_mp_client(
                vllm_config=config,
                executor_class=self._executor_class,
                log_stats=self._log_stats,
            )
