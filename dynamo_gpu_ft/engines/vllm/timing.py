"""How long the engine's forward passes over prompts take: what restoring is weighed against.

Runs on the step's thread of a worker. On a device the pass is timed by events of its stream and read when they are over, so
that nothing ever waits for the device.
"""

from __future__ import annotations

import time
from typing import Any

#: Passes over fewer tokens of prompts say little about what a prompt costs.
MIN_TOKENS = 64
#: Unread measurements kept; a device that never finishes must not fill the memory.
_MAX_PENDING = 16


class StepTimer:
    """`start` before the pass, `stop` after it, `take` whenever convenient."""

    def __init__(self, device_type: str) -> None:
        self._cuda = device_type == "cuda"
        self._tokens = 0
        self._began: Any = None
        self._pending: list[tuple[int, Any, Any]] = []
        self._done: list[tuple[int, float]] = []

    def start(self, prefill_tokens: int) -> None:
        self._tokens = prefill_tokens if prefill_tokens >= MIN_TOKENS else 0
        if self._tokens:
            self._began = self._event() if self._cuda else time.perf_counter()

    def stop(self) -> None:
        if not self._tokens:
            return
        if not self._cuda:
            self._done.append((self._tokens, time.perf_counter() - self._began))
        elif len(self._pending) < _MAX_PENDING:
            self._pending.append((self._tokens, self._began, self._event()))
        self._tokens = 0

    def take(self) -> list[tuple[int, float]]:
        """(tokens, seconds) of passes that are over, each once."""
        while self._pending and self._pending[0][2].query():
            tokens, began, ended = self._pending.pop(0)
            self._done.append((tokens, began.elapsed_time(ended) / 1000))
        done, self._done = self._done, []
        return done

    @staticmethod
    def _event() -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
