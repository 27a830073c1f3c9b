"""Heartbeat and error report of one vLLM worker: around its steps, its loading and its compiling.

Installed by the general plugin around vLLM's worker wrapper, so every kind of worker has it. Nothing here can fail a step: what goes
wrong in here is logged once, and the worker goes on without.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from dynamo_gpu_ft.engines.vllm import compat
from dynamo_gpu_ft.engines.vllm.worker_health import WorkerHealth
from dynamo_gpu_ft.health import heartbeat

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")
_ATTRIBUTE = "_gpu_ft_health"


def install() -> None:
    """Wraps vLLM's `WorkerWrapperBase` of this process. Can be repeated."""
    wrapper = compat.worker_wrapper()
    if getattr(wrapper, "_gpu_ft_watched", False):
        return
    wrapper._gpu_ft_watched = True
    wrapper.init_device = _around_init(wrapper.init_device)
    wrapper.execute_model = _around_step(wrapper.execute_model)
    wrapper.shutdown = _around_shutdown(wrapper.shutdown)


def _around_init(init_device: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(init_device)
    def watched(self: Any) -> None:
        init_device(self)
        watch(self)

    return watched


def watch(wrapper: Any) -> None:
    """Begins to watch the worker in `wrapper`, which has its device. Never raises."""
    try:
        health = WorkerHealth.start(wrapper)
    except Exception as error:
        _log.warning(
            "NOT WATCHED: GPU, driver and steps of this worker: %s: %s. Its death is noticed, a hang is not",
            type(error).__name__,
            error,
        )
        return
    if health is not None:
        setattr(wrapper, _ATTRIBUTE, health)
        _wrap_worker(wrapper.worker, health)


def _around_step(execute_model: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute_model)
    def watched(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        health = self.__dict__.get(_ATTRIBUTE)
        if health is None:
            return execute_model(self, scheduler_output, *args, **kwargs)
        with health.step(_class_of(scheduler_output)):
            return execute_model(self, scheduler_output, *args, **kwargs)

    return watched


def _around_shutdown(shutdown: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(shutdown)
    def watched(self: Any) -> None:
        health = self.__dict__.pop(_ATTRIBUTE, None)
        if health is not None:
            health.stop()
        shutdown(self)

    return watched


def _wrap_worker(worker: Any, health: WorkerHealth) -> None:
    """The rest of a step, and the long work before the first one, on this worker alone."""
    sample = getattr(worker, "sample_tokens", None)
    if sample is not None:
        worker.sample_tokens = _within(sample, lambda: health.step(heartbeat.SAMPLE))
    for name in compat.LONG_CALLS:
        long_call = getattr(worker, name, None)
        if long_call is not None:
            setattr(worker, name, _within(long_call, health.long_work))


def _within(function: Callable[..., Any], context: Callable[[], Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        with context():
            return function(*args, **kwargs)

    return watched


def _class_of(scheduler_output: Any) -> int:
    tokens = getattr(scheduler_output, "total_num_scheduled_tokens", 0)
    encoder = bool(getattr(scheduler_output, "scheduled_encoder_inputs", None))
    return heartbeat.step_class(int(tokens), encoder=encoder)
