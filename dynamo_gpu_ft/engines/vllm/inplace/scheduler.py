"""`InPlaceScheduler`: vLLM's scheduler, findable by the executor in the same process, which vLLM gives no way to it."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

#: The scheduler of this process's one engine.
current: InPlaceScheduler | None = None


class InPlaceScheduler(Scheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        global current
        current = self
