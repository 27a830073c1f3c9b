"""`ResilientLLM`: vLLM's asynchronous engine client whose open requests outlive the engine.

A subclass of vLLM's own `AsyncLLM`, which keeps tokenising, detokenising and streaming; only the engine-core client behind it
is replaced, so a stream simply goes on when the engine has been restarted.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.engines.vllm import settings
from dynamo_gpu_ft.engines.vllm.core import ResilientCore
from dynamo_gpu_ft.engines.vllm.front_health import FrontHealth
from dynamo_gpu_ft.engines.vllm.inplace.front import GroupFront
from dynamo_gpu_ft.engines.vllm.launch import Engine, Launcher, new_tag
from dynamo_gpu_ft.errors import ConfigError, StoreUnavailable
from dynamo_gpu_ft.events import EventStream, Journal, log_event
from dynamo_gpu_ft.health.report import event_of
from dynamo_gpu_ft.metrics import listener, metrics, port_of
from dynamo_gpu_ft.recovery import processes

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")


class ResilientLLM(AsyncLLM):
    """Same constructor and interface as `AsyncLLM`. Construct it with `from_vllm_config` or `from_engine_args`.

    Starts and restarts engine processes; `events` (default: log, journal of the configuration, metrics) hears of it.
    Raises `ConfigError` for set-ups it cannot recover: several API servers, data parallelism, engines started elsewhere."""

    def __init__(
        self,
        vllm_config: Any,
        executor_class: type[Any],
        log_stats: bool,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        _refuse_unsupported(vllm_config, kwargs)
        self._config = settings.config_of(vllm_config)
        executor_class = in_place_executor(vllm_config, executor_class, self._config)
        self._events = _event_stream(self._config)
        self._tag = new_tag()
        self._launcher = Launcher(
            vllm_config,
            executor_class,
            log_stats=log_stats,
            restart_tp=self._config.restart_tp,
        )
        metrics().start(
            "front",
            port=port_of("front", self._config.metrics_port),
            host=self._config.metrics_host,
        )
        self._health = FrontHealth(
            self._config, lambda incident: self._events.emit(event_of(incident))
        )
        self._health.prepare(self._tag, int(vllm_config.parallel_config.world_size))
        self._group = GroupFront(self._events)
        self._group.prepare(self._tag)
        with processes.tagged(self._tag):
            super().__init__(vllm_config, executor_class, log_stats, *args, **kwargs)

    @property
    def engine_core(self) -> ResilientCore:
        return self._resilient

    @engine_core.setter
    def engine_core(self, core: Any) -> None:
        """AsyncLLM assigns the client of the engine it has just started; the resilient core goes around it."""
        engine = Engine(core, self._tag)
        self._resilient = ResilientCore(
            engine, self._launcher, self._config, self._events, self._health, self._group
        )

    @property
    def errored(self) -> bool:
        """True only when recovery has failed for good: while an engine is being restarted, this client works."""
        resilient = getattr(self, "_resilient", None)
        return resilient is None or resilient.failed is not None or not self.is_running


def in_place_executor(vllm_config: Any, executor_class: type[Any], config: Config) -> type[Any]:
    """The executor that replaces a lost worker in place, where vLLM would use its own for several ranks; else `executor_class`.

    Raises `ConfigError` for a setting `membership` that means no store, before anything is started."""
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    several = int(vllm_config.parallel_config.tensor_parallel_size) > 1
    if executor_class is not MultiprocExecutor or not several or not config.in_place:
        return executor_class
    from dynamo_gpu_ft.engines.vllm.inplace import epochs
    from dynamo_gpu_ft.engines.vllm.inplace.executor import InPlaceExecutor

    with contextlib.suppress(StoreUnavailable):  # told by the executor, which goes on without
        epochs.opened(config).close()
    return InPlaceExecutor


def _event_stream(config: Config) -> EventStream:
    stream = EventStream(log_event, listener(metrics()))
    if config.journal:
        stream.add(Journal(config.journal))
    return stream


def _refuse_unsupported(vllm_config: Any, kwargs: dict[str, Any]) -> None:
    parallel = vllm_config.parallel_config
    reasons = {
        "data_parallel_size": (parallel.data_parallel_size, parallel.data_parallel_size > 1),
        "client_count": (kwargs.get("client_count", 1), kwargs.get("client_count", 1) > 1),
        "client_addresses": (kwargs.get("client_addresses"), bool(kwargs.get("client_addresses"))),
    }
    for name, (value, refused) in reasons.items():
        if refused:
            raise ConfigError(
                "the resilient client cannot own this engine",
                where=name,
                value=value,
                rule="one API server process that starts its one engine itself",
                remedy="run one `dynamo-gpu-ft serve` per engine behind your load balancer",
            )
