"""A configured `nvidia_resiliency_ext.inprocess.Wrapper` for an inference engine, with or without a GPU.

Its intervals follow from one deadline, its store needs no rank to live, and its own GPU checks are left out where there is no NVML to ask.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import importlib
import inspect
import os
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dynamo_gpu_ft.errors import ConfigError, NvrxError
from dynamo_gpu_ft.nvrx.inprocess import store
from dynamo_gpu_ft.nvrx.inprocess.callables import Process, make
from dynamo_gpu_ft.nvrx.look import PACKAGE

#: What the wrapper must take; the intervals are optional, and left to NVRx where it has none of that name.
NEEDED = (
    "store_factory",
    "store_kwargs",
    "initialize",
    "abort",
    "finalize",
    "health_check",
    "rank_assignment",
    "soft_timeout",
    "hard_timeout",
    "barrier_timeout",
)


def times(hang_s: float, tick_s: float) -> dict[str, float]:
    """Seconds of every timeout and interval of the wrapper. Pure.

    hang_s   without progress for so long a rank is interrupted; for half as long again, and it is killed
    tick_s   how often everything looks; NVRx wants each interval below each timeout"""
    if not 0 < tick_s * 4 <= hang_s:
        raise ConfigError(
            "the wrapper's times contradict each other",
            value=f"hang_s={hang_s:g}, tick_s={tick_s:g}",
            rule="both more than 0, and hang_s at least four ticks",
            remedy="a shorter tick_s",
        )
    silent = max(hang_s, 3 * tick_s)
    return {
        "monitor_thread_interval": tick_s,
        "monitor_process_interval": tick_s,
        "heartbeat_interval": tick_s,
        "progress_watchdog_interval": tick_s,
        "last_call_wait": tick_s,
        "soft_timeout": hang_s,
        "hard_timeout": hang_s * 1.5,
        "heartbeat_timeout": silent,
        "barrier_timeout": hang_s * 4 + 30.0,
        "completion_timeout": hang_s * 4 + 30.0,
        "termination_grace_time": min(1.0, hang_s),
    }


def lacking(more: Iterable[str] = ()) -> list[str]:
    """The parameters that NVRx's wrapper must take and does not. Imports NVRx and torch."""
    inprocess = importlib.import_module(f"{PACKAGE}.inprocess")
    takes = _parameters(getattr(inprocess, "Wrapper", None))
    return [name for name in (*NEEDED, *more) if name not in takes]


def wrapper(
    process: Process, *, folder: str, hang_s: float = 30.0, tick_s: float = 0.2, **more: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for the engine's function: NVRx's wrapper, configured. Imports NVRx and torch; raises `NvrxError`, `ConfigError`.

    folder   where the ranks of one machine find their store, the same for all of one start and for no other. No rank hosts it, so any
             may die, rank 0 included. Several machines need a `store_factory` and `store_kwargs` of their own in `more`
    more     further arguments of NVRx's wrapper, in place of ours

    The function is entered with RANK and WORLD_SIZE of the turn in the environment; `process.shard` is what it holds, `process.turn` how
    often it was entered before."""
    inprocess = importlib.import_module(f"{PACKAGE}.inprocess")
    if lacks := lacking(more):
        raise NvrxError(
            "nvidia-resiliency-ext does not offer what is needed: " + ", ".join(lacks),
            where=f"{PACKAGE}.inprocess.Wrapper",
            rule="its signature is compared, whatever the version",
            remedy="pip install nvidia-resiliency-ext==0.4.1",
        )
    given = times(hang_s, tick_s)
    if "store_factory" not in more:
        port, process.held = store.join(folder)
        more["store_factory"] = store.factory()
        more["store_kwargs"] = {"host_name": "127.0.0.1", "port": port, "is_master": False}
    takes = _parameters(inprocess.Wrapper)
    arguments: dict[str, Any] = {
        **{n: datetime.timedelta(seconds=s) for n, s in given.items() if n in takes},
        **make(process),
        **more,
    }
    with _without_gpu_checks(process.config.health_library):
        made = inprocess.Wrapper(**arguments)
    return lambda function: made(_with_classes(function))


def _with_classes(function: Callable[..., Any]) -> Callable[..., Any]:
    """NOTE: NVRx compares annotations as classes, and one that is text (`from __future__ import annotations`) is an error to it."""

    @functools.wraps(function)
    def entered(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        hints = {}
    said = getattr(function, "__annotations__", {})
    kept = {name: hints.get(name, hint) for name, hint in said.items()}
    entered.__annotations__ = {n: hint for n, hint in kept.items() if not isinstance(hint, str)}
    del entered.__wrapped__
    signature = inspect.signature(function)
    parameters = [
        each.replace(annotation=entered.__annotations__.get(each.name, each.empty))
        for each in signature.parameters.values()
    ]
    entered.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return entered


def _parameters(kind: Any) -> set[str]:
    return set() if kind is None else set(inspect.signature(kind).parameters)


@contextlib.contextmanager
def _without_gpu_checks(library: str) -> Iterator[None]:
    """NOTE: with LOCAL_RANK set, 0.5 and later add checks of GPU, NVLink and NIC to ours, which raise where NVML cannot be loaded and so
    end the rank they were to protect. They look at the variable when the wrapper is made."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or _loads(library):
        yield
        return
    del os.environ["LOCAL_RANK"]
    try:
        yield
    finally:
        os.environ["LOCAL_RANK"] = local


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
