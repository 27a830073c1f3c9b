"""Runs recovery steps: each under its deadline, each journalled with how long it took.

The steps themselves come from an engine adapter; this file knows only time, events and failure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from dynamo_gpu_ft.errors import RecoveryFailed
from dynamo_gpu_ft.events import EventStream, StepDone

_T = TypeVar("_T")


async def run_step(
    name: str,
    step: Callable[[], Awaitable[_T]],
    *,
    epoch: int,
    deadline_s: float,
    events: EventStream,
) -> _T:
    """Awaits `step()` for at most `deadline_s` seconds and emits `StepDone`, also when it fails.

    Raises what the step raised, or `RecoveryFailed` when the deadline passed (the step is cancelled first)."""
    began = time.monotonic()
    try:
        result = await asyncio.wait_for(step(), max(0.0, deadline_s))
    except asyncio.TimeoutError:
        took = time.monotonic() - began
        events.emit(StepDone(epoch=epoch, step=name, duration_s=took, ok=False, detail="deadline"))
        raise RecoveryFailed(
            "a recovery step passed its deadline",
            where=f"step {name}",
            value=f"{took:.1f} s",
            rule=f"at most {deadline_s:g} s",
            remedy="raise the deadline if the step is only slow",
        ) from None
    except BaseException as error:
        took = time.monotonic() - began
        detail = f"{type(error).__name__}: {error}"
        events.emit(StepDone(epoch=epoch, step=name, duration_s=took, ok=False, detail=detail))
        raise
    events.emit(StepDone(epoch=epoch, step=name, duration_s=time.monotonic() - began, ok=True))
    return result
