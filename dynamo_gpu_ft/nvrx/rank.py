"""A rank's own side of its launcher: tells where it is and that it lives, hands over its wishes; without effect outside a launcher.

The engine's step touches one attribute; a thread of its own does the talking, ten times a second at most, and whatever that thread waits
for, the step does not.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from dynamo_gpu_ft.health.incidents import Incident
from dynamo_gpu_ft.nvrx import asked, links, wishes
from dynamo_gpu_ft.nvrx.limits import IDLE, STEP
from dynamo_gpu_ft.nvrx.progress import Now
from dynamo_gpu_ft.nvrx.wishes import Wish

_log = logging.getLogger("dynamo_gpu_ft.nvrx")
TICK_S = 0.1
_AGAIN_S = 1.0


class Rank:
    """One per process, as a context manager around its life. `section`, `step`, `begin` and `end` are for its main thread.

        with Rank() as rank:
            with rank.section("weights"): ...
            while serving:
                with rank.step(): ...

    An error that leaves the block and means FAILED (`RecoveryFailed`) is handed over as "do not restart".
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        progress: Callable[[], Now] | None = None,
        tick_s: float = TICK_S,
    ) -> None:
        """progress   where the rank is, in place of `section` and `step`: see `progress.of_heartbeat`. Called on the sending thread

        Raises `NvrxError` if NVRx's launcher started this process and its package lacks what is needed."""
        environ = os.environ if environ is None else environ
        self._open = links.opener(environ)
        self._note = environ.get(asked.VARIABLE, "")
        self._number = int(environ.get("RANK", "0"))
        self._now = Now(IDLE, 0)
        self._progress = progress or self._own
        self._tick_s = tick_s
        self._turn = 0
        self._outer: list[str] = []
        self._asked: deque[tuple[Wish, str, threading.Event]] = deque()
        self._wake = threading.Event()
        self._over = False
        self._told_trouble = False
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    @property
    def launched(self) -> bool:
        """Whether a launcher watches this process."""
        return self._open is not None

    # --- where the rank is ---

    def _own(self) -> Now:
        return self._now

    def begin(self, section: str) -> None:
        """Enters a section, a few attribute stores. Inside another one, that one's time stands still until `end`."""
        self._outer.append(self._now.section)
        self._turn += 1
        self._now = Now(section, self._turn)

    def end(self) -> None:
        """Leaves the innermost section; without effect outside of all."""
        if self._outer:
            self._turn += 1
            self._now = Now(self._outer.pop(), self._turn)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step of the engine. Between steps the rank is idle, and that never times out."""
        self.begin(STEP)
        try:
            yield
        finally:
            self.end()

    # --- wishes ---

    def ask(self, wish: Wish, reason: str, *, wait_s: float = 2.0) -> bool:
        """Hands a wish to the launcher, which carries it out when this rank has ended. Blocks until it is handed over, `wait_s` at most;
        false if it was not, or if nobody watches. Never raises."""
        if self._open is None or wish is Wish.CONTINUE or os.getpid() != self._pid:
            return False
        if self._note:
            try:
                said = asked.Asked(wish=wish, reason=reason, rank=self._number, pid=self._pid)
                asked.note(self._note, said)
            except OSError as error:
                self._trouble(f"its launcher's file cannot be written: {error}")
        done = threading.Event()
        self._asked.append((wish, reason, done))
        self._wake.set()
        return done.wait(wait_s) if self._thread is not None else False

    def on_incident(self, incident: Incident) -> None:
        """A listener for `health.monitor.Monitor.listen`: asks for what the verdict of an incident asks for."""
        wish, reason = wishes.wish_of(incident)
        self.ask(wish, reason)

    # --- life ---

    def start(self) -> Rank:
        """Starts the sending thread, in a launcher. Can be repeated."""
        if self._open is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gpu-ft-rank", daemon=True)
            self._thread.start()
        return self

    def stop(self, *, wait_s: float = 3.0) -> None:
        """Says goodbye; from here on the rank is watched by its exit alone. Waits at most `wait_s`."""
        self._over = True
        self._wake.set()
        if self._thread is not None and os.getpid() == self._pid:
            self._thread.join(wait_s)

    def __enter__(self) -> Rank:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.ask(*wishes.wish_of_error(error))
        self.stop()

    def _run(self) -> None:
        """One link after another, until `stop`; a link that fails is replaced after a second."""
        assert self._open is not None
        while not self._over:
            try:
                link = self._open()
            except Exception as error:
                self._trouble(f"{type(error).__name__}: {error}")
                self._pause(_AGAIN_S)
                continue
            try:
                self._talk(link)
                link.close(orderly=True)
            except Exception as error:
                link.close(orderly=False)
                self._trouble(f"{type(error).__name__}: {error}")
                self._pause(_AGAIN_S)

    def _talk(self, link: links.Link) -> None:
        due = 0.0
        while True:
            while self._asked:
                wish, reason, done = self._asked[0]
                link.ask(wish, reason)
                self._asked.popleft()
                done.set()
            if self._over:
                return
            at = time.monotonic()
            if at >= due:
                link.tell(at, self._progress())
                due = at + self._tick_s
            self._pause(due - time.monotonic())

    def _pause(self, seconds: float) -> None:
        """A wish or the end cuts it short."""
        self._wake.wait(max(0.0, seconds))
        self._wake.clear()

    def _trouble(self, what: str) -> None:
        if not self._told_trouble:
            self._told_trouble = True
            _log.warning("rank %d is not watched by its launcher: %s", self._number, what)
