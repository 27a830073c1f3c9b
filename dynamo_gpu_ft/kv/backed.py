"""`BackedTier`: a tier over the arena whose missing blocks are first filled in from somewhere else, and whose blocks go on to disk.

Stores pass through and are then spilled; a load waits for its fillers (another layout's blocks, the disk log), one after the
other, and is then the inner tier's load. Fillers never touch engine memory, so a load can be given up while one is at work.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dynamo_gpu_ft.kv.base import Tier
from dynamo_gpu_ft.kv.blocks import STORED, BlockRef, JobResult

#: A wait looks this often whether a filler is done; fillers have no file descriptor to wait for.
_TICK_S = 0.002


@dataclass(frozen=True, slots=True)
class Filled:
    """A filler's answer: "ok" (now in the arena, held once), "present", or why not, per block; `bytes` is what it read."""

    job_id: int
    statuses: tuple[str, ...]
    bytes: int
    seconds: float


class Filler(Protocol):
    """Brings blocks into the arena. Nothing here blocks but `close`, and nothing raises for a bad block. Every `fill` is
    answered by `poll` once, a cancelled one too: some of its blocks may have arrived."""

    source: str  # one of kv.cost.SOURCES

    def fill(self, job_id: int, blocks: Sequence[BlockRef], seconds: float) -> None: ...
    def cancel(self, job_ids: Iterable[int]) -> None: ...
    def poll(self) -> list[Filled]: ...
    def close(self, timeout: float) -> None: ...


class Spill(Protocol):
    """Takes sealed blocks further."""

    def spill(self, blocks: Sequence[BlockRef]) -> None: ...
    def wait(self, timeout: float) -> bool: ...


@dataclass(slots=True)
class _Filling:
    blocks: Sequence[BlockRef]
    deadline: float
    fillers: list[Filler]  # still to ask; the first one is at work
    held: list[bytes] = field(default_factory=list)
    reason: tuple[int, str] | None = None  # first block a filler failed on, and why
    moved: list[tuple[str, int, float]] = field(default_factory=list)


class BackedTier:
    """`Tier` over `tier`. Single-threaded like every tier; fillers have threads of their own."""

    def __init__(
        self,
        tier: Tier,
        fillers: Sequence[Filler],
        spill: Spill | None = None,
        *,
        fill_seconds: float = 30.0,
    ) -> None:
        self.inner = tier
        self._fillers, self._spill = list(fillers), spill
        self._fill_seconds = fill_seconds
        self.block_bytes = tier.block_bytes
        self._stores: dict[int, Sequence[BlockRef]] = {}
        self._filling: dict[int, _Filling] = {}
        self._loading: dict[int, _Filling] = {}
        self._given_up: dict[int, _Filling] = {}  # cancelled, their filler has not answered yet
        self._results: list[JobResult] = []

    def store(self, job_id: int, blocks: Sequence[BlockRef]) -> None:
        if self._spill is not None:
            self._stores[job_id] = blocks
        self.inner.store(job_id, blocks)

    def load(self, job_id: int, blocks: Sequence[BlockRef]) -> None:
        converted = any(block.sources is not None for block in blocks)
        fillers = [f for f in self._fillers if converted or f.source != "convert"]
        work = _Filling(blocks, time.monotonic() + self._fill_seconds, fillers)
        self._filling[job_id] = work
        self._advance(job_id, work)

    def hold(self, block_hashes: Sequence[bytes]) -> None:
        self.inner.hold(block_hashes)

    def release(self, block_hashes: Sequence[bytes]) -> None:
        self.inner.release(block_hashes)

    def drop(self, block_hashes: Sequence[bytes]) -> None:
        self.inner.drop(block_hashes)

    def pin(self, job_id: int, block_hashes: Sequence[bytes], until: int) -> None:
        self.inner.pin(job_id, block_hashes, until)

    def cancel(self, job_ids: Iterable[int]) -> None:
        wanted = set(job_ids)
        for job_id in wanted & set(self._filling):
            work = self._filling.pop(job_id)
            work.fillers[0].cancel([job_id])
            self._given_up[job_id] = work
            self._settle(job_id, work, ("cancelled",) * len(work.blocks))
        rest = wanted - {r.job_id for r in self._results}
        if rest:
            self.inner.cancel(rest)

    def poll(self) -> list[JobResult]:
        self._collect()
        results, self._results = self._results, []
        return results

    def backlog(self) -> tuple[int, int]:
        return self.inner.backlog()

    def wait(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while True:
            self._collect()
            left = deadline - time.monotonic()
            if not self._filling:
                idle = self.inner.wait(max(0.0, left))
                self._collect()
                spilled = self._spill is None or self._spill.wait(
                    max(0.0, deadline - time.monotonic())
                )
                return idle and spilled
            if left <= 0:
                return False
            time.sleep(min(_TICK_S, left))

    def close(self, timeout: float = 5.0) -> None:
        """Spills what was stored as far as the time allows; the inner tier's writer goes last, for fillers write by it."""
        deadline = time.monotonic() + timeout
        self.wait(timeout / 2)
        for filler in self._fillers:
            filler.close(max(0.1, deadline - time.monotonic()))
        self.inner.close(max(0.1, deadline - time.monotonic()))

    # -- the road of a load ----------------------------------------------------------------------------------------

    def _advance(self, job_id: int, work: _Filling) -> None:
        """Asks the next filler, or the tier when there is none left or no time for it."""
        left = work.deadline - time.monotonic()
        if work.fillers and left > 0:
            work.fillers[0].fill(job_id, work.blocks, left)
            return
        del self._filling[job_id]
        self._loading[job_id] = work
        self.inner.load(job_id, work.blocks)

    def _collect(self) -> None:
        for filler in self._fillers:
            for filled in filler.poll():
                self._filled(filler, filled)
        for result in self.inner.poll():
            if (blocks := self._stores.pop(result.job_id, None)) is not None:
                self._pass_on(blocks, result.statuses)
            if (work := self._loading.pop(result.job_id, None)) is not None:
                self._settle(result.job_id, work, result.statuses, result)
            else:
                self._results.append(result)

    def _filled(self, filler: Filler, filled: Filled) -> None:
        gone = self._given_up.pop(filled.job_id, None)
        work = gone or self._filling[filled.job_id]
        pairs = zip(filled.statuses, work.blocks, strict=False)
        held = [block.block_hash for status, block in pairs if status == "ok"]
        if gone is not None:
            if held:
                self.inner.release(held)
            return
        work.held += held
        work.moved.append((filler.source, filled.bytes, filled.seconds))
        bad = next((i for i, s in enumerate(filled.statuses) if s not in STORED), None)
        if bad is not None and (work.reason is None or bad > work.reason[0]):
            work.reason = (bad, filled.statuses[bad])
        work.fillers.pop(0)
        self._advance(filled.job_id, work)

    def _settle(
        self,
        job_id: int,
        work: _Filling,
        statuses: Sequence[str],
        result: JobResult | None = None,
    ) -> None:
        if work.held:
            self.inner.release(work.held)
        told = list(statuses)
        if work.reason is not None:
            index, reason = work.reason
            if index < len(told) and told[index] == "not_found":
                told[index] = reason  # the filler knows better why it is not there
        moved = [part for part in work.moved if part[1]]
        if result is not None and result.bytes:
            moved.append(("arena", result.bytes, result.seconds))
        size = result.bytes if result is not None else 0
        took = result.seconds if result is not None else 0.0
        self._results.append(JobResult(job_id, "load", tuple(told), size, took, tuple(moved)))

    def _pass_on(self, blocks: Sequence[BlockRef], statuses: Sequence[str]) -> None:
        pairs = zip(blocks, statuses, strict=False)
        sealed = [b for b, status in pairs if status in STORED and not b.tail]
        if sealed and self._spill is not None:
            self._spill.spill(sealed)
