"""Warm standby processes: started ahead, with imports done, a shard's weights loaded and one pass rehearsed, waiting for a place.

The pool lives in EngineCore and is looked after by its watching thread: a standby that dies is replaced, and nobody else hears of it.
What runs inside of one is in `rehearsal`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from dynamo_gpu_ft.engines.vllm.inplace import spawn
from dynamo_gpu_ft.recovery.group.base import Deadline, StandbyLost

_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")

#: After a standby has failed to start, the next one waits so long; doubled for each in a row.
PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


class Standbys:
    """`count` processes, the i-th rehearsed for shard i modulo the number of ranks; any of them can take any shard, at the price of
    loading other weights."""

    def __init__(
        self,
        executor: Any,
        layout: str,
        kv_cache_configs: Any,
        count: int,
        tell: Callable[[bool, float, str], None],
    ) -> None:
        """`tell(ready, seconds since its start, what)` hears of every standby that is ready or lost."""
        self._tell = tell
        self._executor, self._layout, self._configs = executor, layout, kv_cache_configs
        self._count, self._lock = count, threading.Lock()
        self._pool: list[spawn.Replacement] = []
        self._failures, self._not_before, self._closed = 0, 0.0, False
        self._environment: dict[str, str] = {}

    def move(self, environment: Mapping[str, str]) -> None:
        """Those that wait are where nobody may be any more, on other devices for one: they are ended, the next ones get
        `environment`. From any thread."""
        with self._lock:
            self._environment = dict(environment)
            pool, self._pool = self._pool, []
        for each in pool:
            each.end(self._executor.switchboard)

    def ready(self) -> int:
        with self._lock:
            return sum(each.rehearsed and each.process.is_alive() for each in self._pool)

    def take(self, rank: int) -> spawn.Replacement | None:
        """The best standby for `rank`, which leaves the pool; None without one."""
        with self._lock:
            usable = [each for each in self._pool if each.rehearsed and each.process.is_alive()]
            usable.sort(key=lambda each: each.rank != rank)
            if not usable:
                return None
            self._pool.remove(usable[0])
            return usable[0]

    def maintain(self) -> None:
        """Notes who is ready, buries who is dead, starts who is missing. Never raises."""
        with self._lock:
            for each in list(self._pool):
                was_ready, took = each.rehearsed, each.age_s
                try:
                    limit = self._executor.config.start_timeout_s
                    patience = Deadline.after(1.0) if was_ready else Deadline(each.began + limit)
                    each.look(self._executor.switchboard, patience)
                except StandbyLost as lost:
                    self._pool.remove(each)
                    each.end(self._executor.switchboard)
                    self._failures += 1
                    pause = min(LONGEST_PAUSE_S, PAUSE_S * 2 ** (self._failures - 1))
                    self._not_before = time.monotonic() + pause
                    self._tell(False, took, f"{lost}; another one in {pause:.0f} s")
                    continue
                if each.rehearsed and not was_ready:
                    self._failures = 0
                    self._tell(True, took, f"rehearsed for shard {each.rank}, {each.how}")
            missing = len(self._pool) < self._count and not self._closed
        if missing and time.monotonic() >= self._not_before and not self._executor.births.soon:
            self._start()

    def _start(self) -> None:
        ranks = self._executor.world_size
        having = [each.rank for each in self._pool]
        rank = min(range(min(ranks, self._count)), key=having.count)
        try:
            environment = self._environment
            rehearsal = {"layout": self._layout, "kv_cache_configs": self._configs}
            found = spawn.start(self._executor, rank, environment, standby=rehearsal)
        except OSError as error:
            _log.warning("no standby could be started: %s", error)
            self._not_before = time.monotonic() + LONGEST_PAUSE_S
            return
        with self._lock:
            moved = self._closed or environment is not self._environment
            if not moved:
                self._pool.append(found)
        if moved:  # meanwhile
            found.end(self._executor.switchboard)

    def close(self) -> None:
        self._closed = True
        with self._lock:
            pool, self._pool = self._pool, []
        for each in pool:
            each.end(self._executor.switchboard)
