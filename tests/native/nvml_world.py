"""A simulated NVML for one test: a copy of the library of its own, so that its state is nobody else's, and watchers on it.

What is asked of it goes through its control folder, as from another process.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from door import core

from dynamo_gpu_ft.sim.nvml import build
from dynamo_gpu_ft.sim.nvml.control import Control

BUILT = build.library(Path(__file__).resolve().parents[2] / "build")
LONG_S = 20.0  # for what happens at once unless something is broken


class NvmlWorld:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library = folder / build.SONAME
        shutil.copy(BUILT, self.library)
        self.control = Control(folder / "c")
        self.queue = core.WatchQueue(4096)
        self.watchers: list[Any] = []

    def send(self, line: str) -> int:
        """How many event sets took it, in all processes."""
        return sum(heard.sets for heard in self.control.send(line))

    def script(self, *lines: str) -> None:
        """For processes that start later."""
        for line in lines:
            self.control.append(line)

    def watcher(self, queue: Any = None, **options: Any) -> Any:
        made = core.NvmlWatcher(queue or self.queue, library=str(self.library), **options)
        self.watchers.append(made)
        return made

    def started(self, **options: Any) -> Any:
        made = self.watcher(**options)
        made.start()
        return made

    def next(
        self, fits: Callable[[Any], bool] = lambda record: True, seconds: float = LONG_S
    ) -> Any:
        """The next record that fits; those before it are dropped."""
        for record in self._taken(seconds):
            if fits(record):
                return record
        raise AssertionError(f"no such record within {seconds} s")

    def of(self, *whats: str) -> Any:
        return self.next(lambda record: record.what in whats)

    def _taken(self, seconds: float) -> Any:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.queue.wait(left):
                yield from self.queue.take(1)

    def calls(self, gpu: int | None = None) -> dict[str, int]:
        """How often each function of NVML was called, about one GPU or at all."""
        said = self.control.send("calls" if gpu is None else f"calls gpu={gpu}")[0].answer
        found: dict[str, int] = {}
        for line in said.splitlines():
            name, _, count = line.split()
            found[name] = found.get(name, 0) + int(count.removeprefix("count="))
        return found

    def close(self) -> None:
        for watcher in self.watchers:
            watcher.stop(0)
        if self.control.users():
            self.control.send("release")  # threads that are stuck end with their call
        for watcher in self.watchers:
            until(lambda watcher=watcher: watcher.stop(LONG_S))  # type: ignore[misc]


def until(fits: Callable[[], bool], seconds: float = LONG_S) -> None:
    """Polls what no record tells."""
    end = time.monotonic() + seconds
    while not fits():
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(0.005)
