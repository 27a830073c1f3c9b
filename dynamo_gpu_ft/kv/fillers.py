"""What fills the arena when a load needs blocks that are not in it: the shard's disk log, and conversions from other layouts.

Each is a `Filler` of `kv.backed`: it works in the background, answers through `poll`, and seals only what was verified.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv.backed import Filled
from dynamo_gpu_ft.kv.blocks import BlockRef, Sources
from dynamo_gpu_ft.metrics import metrics

if TYPE_CHECKING:
    from dynamo_gpu_ft.native import _core

_log = logging.getLogger("dynamo_gpu_ft.kv")

REPORT_S = 1.0
#: A disk that hangs must not hold up the end of its engine.
CLOSE_S = 5.0


def _names(blocks: Sequence[BlockRef]) -> list[tuple[bytes, bytes | None, int]]:
    return [(b.block_hash, b.parent_hash, b.position) for b in blocks]


class DiskFiller:
    """The shard's log, both ways: `spill` takes sealed blocks to it, `fill` brings them back."""

    source = "disk"

    def __init__(self, backing: _core.Backing, log: _core.DiskLog) -> None:
        self._backing, self._log = backing, log
        self._told: dict[str, int] = {}
        self._trouble = ""
        self._next_report = 0.0

    def spill(self, blocks: Sequence[BlockRef]) -> None:
        self._backing.spill(_names(blocks))

    def wait(self, timeout: float) -> bool:
        return self._backing.wait(timeout)

    def fill(self, job_id: int, blocks: Sequence[BlockRef], seconds: float) -> None:
        self._backing.fetch(job_id, _names(blocks), seconds)

    def cancel(self, job_ids: Iterable[int]) -> None:
        self._backing.cancel(list(job_ids))

    def poll(self) -> list[Filled]:
        return [
            Filled(f.job_id, tuple(f.statuses), f.bytes, f.seconds) for f in self._backing.poll()
        ]

    def close(self, timeout: float) -> None:
        self._backing.close(timeout)

    def close_log(self) -> None:
        """After `close`: gives the log up, so that the next engine finds no live writer."""
        self._log.close(CLOSE_S)

    def report(self, *, now: float | None = None) -> None:
        """Metrics, at most once a second; a disk that refuses blocks is said once per reason."""
        clock = time.monotonic() if now is None else now
        if clock < self._next_report:
            return
        self._next_report = clock + REPORT_S
        stats, trouble, recorder = self._backing.stats(), self._backing.trouble(), metrics()
        recorder.set("disk_lag_blocks", stats["spill_queue"])
        recorder.set("disk_protected", 0 if trouble else 1)
        if gained := self._gained(stats, "spilled_bytes"):
            recorder.add("disk_written_bytes_total", gained)
        for reason in ("queue", "evicted", "log"):
            if gained := self._gained(stats, f"dropped_{reason}"):
                recorder.add("disk_dropped_blocks_total", gained, reason=reason)
        if trouble and trouble != self._trouble:
            _log.error(
                "NOT PROTECTED on disk: blocks stay in memory only, the engine serves on: %s",
                trouble,
            )
        self._trouble = trouble

    def _gained(self, stats: Mapping[str, int], name: str) -> int:
        before, self._told[name] = self._told.get(name, 0), stats[name]
        return stats[name] - before


class ConvertFiller:
    """Blocks of other layouts, converted one job at a time on a thread of its own.

    `open_converter` gives the converter for blocks like these, or raises; it is asked on that thread, once per record and
    place."""

    source = "convert"

    def __init__(self, open_converter: Callable[[Sources], _core.Converter]) -> None:
        self._open = open_converter
        self._converters: dict[tuple[bytes, bool], _core.Converter] = {}
        self._jobs: queue.SimpleQueue[tuple[int, Sequence[BlockRef], float] | None] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._done: list[Filled] = []
        self._cancelled: set[int] = set()
        self._running: tuple[int, _core.Converter] | None = None
        self._thread = threading.Thread(target=self._run, name="gpu-ft-convert", daemon=True)
        self._thread.start()

    def fill(self, job_id: int, blocks: Sequence[BlockRef], seconds: float) -> None:
        self._jobs.put((job_id, blocks, time.monotonic() + seconds))

    def cancel(self, job_ids: Iterable[int]) -> None:
        with self._lock:
            self._cancelled.update(set(job_ids) - {done.job_id for done in self._done})
            if self._running is not None and self._running[0] in self._cancelled:
                self._running[1].cancel()

    def poll(self) -> list[Filled]:
        with self._lock:
            done, self._done = self._done, []
        return done

    def forget(self) -> None:
        """Behind the jobs queued so far, lets all converters go, and with them what they read from."""
        self._jobs.put((0, (), 0.0))

    def close(self, timeout: float) -> None:
        """Ends the thread behind the job at work, which is cancelled; it owns its converters and closes them."""
        with self._lock:
            if self._running is not None:
                self._running[1].cancel()
        self._jobs.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job_id, blocks, deadline = job
            if not blocks:
                self._converters.clear()
                continue
            began = time.monotonic()
            try:
                statuses, size = self._convert(job_id, blocks, deadline)
            except Exception as error:
                _log.warning("blocks of another layout cannot be used: %s", error)
                statuses, size = ["not_found"] * len(blocks), 0
            took = time.monotonic() - began
            with self._lock:
                self._running = None
                self._cancelled.discard(job_id)
                self._done.append(Filled(job_id, tuple(statuses), size, took))
        self._converters.clear()

    def _convert(
        self, job_id: int, blocks: Sequence[BlockRef], deadline: float
    ) -> tuple[list[str], int]:
        """Statuses per block; blocks of our own layout are left to the tier ("present")."""
        wanted = [(block, block.sources) for block in blocks if block.sources is not None]
        first = wanted[0][1]
        statuses = ["present"] * (len(blocks) - len(wanted))
        converter = self._converter(first)
        with self._lock:
            if job_id in self._cancelled:
                return ["cancelled"] * len(blocks), 0
            self._running = (job_id, converter)
        target = native.load().Target
        found = converter.convert(
            [target(b.block_hash, b.parent_hash, b.position, s.names) for b, s in wanted],
            source_parent=first.parent,
            timeout=max(0.0, deadline - time.monotonic()),
        )
        return statuses + list(found.statuses), found.bytes

    def _converter(self, sources: Sources) -> _core.Converter:
        key = (sources.origin, sources.on_disk)
        found = self._converters.get(key)
        if found is None:
            found = self._converters[key] = self._open(sources)
        return found
