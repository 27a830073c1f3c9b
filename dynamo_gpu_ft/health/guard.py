"""One helper thread per GPU that makes its driver calls, each with a deadline: a call that does not return costs that GPU, nobody else.

Between probes and the driver. A stuck thread is left behind: it is a daemon, so neither the caller nor the exit of the process waits
for it, and nothing more is asked of its GPU.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any


class Outcome(Enum):
    DONE = "done"
    RUNNING = "running"  # still at it, and its present call is within its deadline
    STUCK = "stuck"


class Guard:
    """Runs work for one GPU, one piece at a time.

    deadline_s  longest time of one driver call; work may make many, so a slow driver is not taken for a stuck one
    A child of fork starts afresh, with a thread of its own.
    """

    def __init__(self, deadline_s: float, name: str = "") -> None:
        self.deadline_s = deadline_s
        self.name = name
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._todo: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy = False
        self._result: tuple[Any, BaseException | None] | None = None
        self._call: tuple[str, float] | None = None
        self._stuck_in = ""

    @property
    def stuck(self) -> str:
        """The call that did not return, "" while all is well. It stays, even if the call returns one day."""
        return self._stuck_in

    def begin(self, work: Callable[[], Any]) -> bool:
        """Hands `work` to the thread; false, and nothing is done, while earlier work is running or stuck. Never blocks."""
        if os.getpid() != self._pid:
            self._start_afresh()
        with self._changed:
            if self._busy or self._stuck_in:
                return False
            self._busy, self._result = True, None
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._serve, args=(self._todo,), name=f"gft-guard-{self.name}", daemon=True
            )
            self._thread.start()
        self._todo.put(work)
        return True

    def wait(self, until: float) -> tuple[Outcome, Any]:
        """Waits for the work of `begin` until it is done, stuck, or `until` (CLOCK_MONOTONIC) has come: outcome and result.

        Raises what the work raised. The result is given once."""
        with self._changed:
            while True:
                if self._stuck_in:
                    return Outcome.STUCK, None
                if self._result is not None:
                    value, error = self._result
                    self._busy, self._result = False, None
                    if error is not None:
                        raise error
                    return Outcome.DONE, value
                now, late = time.monotonic(), None
                if self._call is not None:
                    late = self._call[1] + self.deadline_s
                    if now >= late:
                        self._stuck_in = self._call[0]
                        return Outcome.STUCK, None
                if not self._busy or now >= until:
                    return Outcome.RUNNING, None
                # Work that has not begun its next call yet may begin it at any time: look again after a deadline at the latest.
                self._changed.wait(min(until, now + self.deadline_s if late is None else late) - now)  # fmt: skip

    def run(self, work: Callable[[], Any]) -> tuple[Outcome, Any]:
        """`begin` and `wait` in one, for as long as no call is stuck."""
        if not self.begin(work):
            return (Outcome.STUCK if self._stuck_in else Outcome.RUNNING), None
        return self.wait(float("inf"))

    @contextlib.contextmanager
    def calling(self, what: str) -> Iterator[None]:
        """Around every driver call that the work makes."""
        with self._changed:
            self._call = (what, time.monotonic())
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._call = None
                self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread if it is idle; a busy or stuck one is left behind. Never blocks."""
        if self._thread is not None and os.getpid() == self._pid:
            self._todo.put(None)

    def _serve(self, todo: queue.SimpleQueue[Callable[[], Any] | None]) -> None:
        while (work := todo.get()) is not None:
            value: Any = None
            error: BaseException | None = None
            try:
                value = work()
            except BaseException as raised:
                error = raised
            with self._changed:
                self._result = (value, error)
                self._changed.notify_all()
