"""A thread of the coordinator's own on which calls run that may hang: the caller waits until a moment and no longer.

`coordinator.py` makes every call of an adapter and of a store through one of these.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

_T = TypeVar("_T")


class Overrun(Exception):
    """A call did not return in time. It may still be running; what it returns or raises later is thrown away."""


class Caller(Protocol):
    def call(self, name: str, work: Callable[[], _T], give_up: float) -> _T:
        """`work()`, or what it raises; `Overrun` when it has not returned at the monotonic moment `give_up`."""


class SideThread:
    """Calls run one after another on one daemon thread, which is started by the first of them.

    A thread whose call overran is abandoned: it is left inside the call, the next call gets a new thread, and if the old one ever
    returns it sleeps until the process ends.
    NOTE: it must not end, and neither must the thread in use: processes that were started on it may be tied to its life
    (PR_SET_PDEATHSIG means the thread that started them, not the process)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.abandoned: list[str] = []  # names of the calls that overran
        self._orders: queue.SimpleQueue[tuple[Callable[[], Any], _Answer]] | None = None

    def call(self, name: str, work: Callable[[], _T], give_up: float) -> _T:
        if self._orders is None:
            self._orders = queue.SimpleQueue()
            threading.Thread(
                target=_serve, args=(self._orders,), name=f"{self.name}-side", daemon=True
            ).start()
        answer = _Answer()
        self._orders.put((work, answer))
        if not answer.ready.wait(max(0.0, give_up - time.monotonic())):
            self._orders = None
            self.abandoned.append(name)
            raise Overrun(f"{name} did not return in time and is abandoned")
        if answer.error is not None:
            raise answer.error
        result: _T = answer.result
        return result


class _Answer:
    def __init__(self) -> None:
        self.ready = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None


def _serve(orders: queue.SimpleQueue[tuple[Callable[[], Any], _Answer]]) -> None:
    while True:
        work, answer = orders.get()
        try:
            answer.result = work()
        except BaseException as error:  # handed over whatever it is: this thread goes on
            answer.error = error
        answer.ready.set()
        del work, answer
