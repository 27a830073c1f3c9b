"""`Behind`: computes what is not needed yet on a thread of its own, so that no step waits for it.

What is computed has to be pure: data in, data out. The asking thread takes the answer when it next looks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Behind(Generic[_T]):
    """One question at a time; a newer one takes the place of one that waits, and of the answer to an older one. Used from one thread."""

    def __init__(self, name: str) -> None:
        self._name, self._lock = name, threading.Lock()
        self._question: tuple[int, Callable[[], _T]] | None = None
        self._answer: tuple[int, _T | Exception] | None = None
        self._newest, self._working, self._running = 0, 0, False

    def ask(self, question: Callable[[], _T]) -> None:
        """Never blocks."""
        with self._lock:
            self._newest += 1
            self._question, self._answer = (self._newest, question), None
            if self._running:
                return
            self._running = True
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def forget(self) -> None:
        """Neither the question nor its answer counts any more."""
        with self._lock:
            self._newest += 1
            self._question = self._answer = None

    @property
    def busy(self) -> bool:
        """Whether there is, or will be, an answer to take."""
        with self._lock:
            working = self._running and self._working == self._newest
            return working or self._question is not None or self._answer is not None

    def answer(self) -> _T | None:
        """The answer to the newest question, once; None while there is none. Raises what the question raised."""
        with self._lock:
            found, self._answer = self._answer, None
        if found is None:
            return None
        if isinstance(found[1], Exception):
            raise found[1]
        return found[1]

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._question is None:
                    self._running = False
                    return
                (number, question), self._question = self._question, None
                self._working = number
            try:
                found: _T | Exception = question()
            except Exception as error:  # the asker's to judge, on the asker's thread
                found = error
            with self._lock:
                self._working = 0
                if number == self._newest:
                    self._answer = (number, found)
