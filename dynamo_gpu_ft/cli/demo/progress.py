"""What a person sees while a phase runs: one live line on a terminal, a line now and then in a log.

Loops call `tick` as often as they like; this file decides what is worth printing. It starts no thread.
"""

import sys
import time
from types import TracebackType
from typing import TextIO

LIVE_EVERY_S = 0.2
LOG_EVERY_S = 10.0


class Phase:
    """One phase, used as a context manager; says what happens, for how long, and how it ended. Writes to standard error."""

    def __init__(self, title: str, *, out: TextIO | None = None) -> None:
        self.title = title
        self.started = time.monotonic()
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._last_print = self.started
        self._note = ""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def __enter__(self) -> "Phase":
        if not self._live:
            print(f"[demo] {self.title} ...", file=self._out, flush=True)
        return self

    def tick(self, note: str = "") -> None:
        """Shows the phase's seconds and `note`; cheap, never blocks for long."""
        self._note = note or self._note
        now = time.monotonic()
        if now - self._last_print < (LIVE_EVERY_S if self._live else LOG_EVERY_S):
            return
        self._last_print = now
        line = f"[demo] {self.title}: {self.seconds:.0f} s  {self._note}".rstrip()
        # "\x1b[K" clears what a longer former line left.
        print(
            f"\r{line}\x1b[K" if self._live else line,
            end="" if self._live else "\n",
            file=self._out,
            flush=True,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ending = "failed after" if kind is not None else "done in"
        clear = "\r\x1b[K" if self._live else ""
        note = f"  {self._note}" if self._note else ""
        print(
            f"{clear}[demo] {self.title}: {ending} {self.seconds:.1f} s{note}",
            file=self._out,
            flush=True,
        )
