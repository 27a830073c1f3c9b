"""How a rank hurts itself at a named point when it is ordered to: for tests and drills on engines that allow it (`Options.faults`).

Points: step, collective (inside a step's first joint operation), reply, load, join, restore, fence, canary.
"""

from __future__ import annotations

import os
import signal

from dynamo_gpu_ft.engines.reference.messages import Arm

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "segv": signal.SIGSEGV}


class Faults:
    """What is armed. `at` is called at every point and normally does nothing."""

    def __init__(self, allowed: bool) -> None:
        self._allowed, self._armed = allowed, dict[str, Arm]()
        self._seen: dict[str, int] = {}

    def arm(self, order: Arm) -> None:
        """An order without a point takes back all that did not happen."""
        if not order.point:
            self._armed.clear()
        elif self._allowed:
            self._armed[order.point] = order
            self._seen[order.point] = 0

    def at(self, point: str) -> None:
        order = self._armed.get(point)
        if order is None:
            return
        self._seen[point] += 1
        if self._seen[point] < order.times:
            return
        del self._armed[point]
        if order.how == "raise":
            raise RuntimeError(f"ordered to fail at {point}")
        if order.how == "segv":
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), _SIGNALS[order.how])
