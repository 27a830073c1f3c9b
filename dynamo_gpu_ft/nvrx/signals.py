"""SIGTERM and SIGINT as something to wait for: a launcher that is told to end does so at its next turn, in order.

For the main thread of a launcher's process only; what was installed before is put back.
"""

from __future__ import annotations

import os
import signal
from types import TracebackType


class Signals:
    """`received()` is the first signal that came, 0 for none; `descriptor` becomes readable with it."""

    def __init__(self) -> None:
        self._received = 0
        self.descriptor = -1
        self._write = -1
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        self.descriptor, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        os.close(self.descriptor)
        os.close(self._write)

    def received(self) -> int:
        return self._received

    def _arrived(self, number: int, frame: object) -> None:
        self._received = self._received or number
        try:
            os.write(self._write, b"!")
        except OSError:
            pass  # full: it is readable already
