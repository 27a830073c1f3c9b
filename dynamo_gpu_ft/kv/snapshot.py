"""The snapshot queue: what stands between the engine's step and the tier.

It gives every run a job id, keeps the backlog under its limit by the drop policy, remembers which requests still have
copies under way (their engine blocks must not be reused), and counts what a person wants to know.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dynamo_gpu_ft.kv import policy, restore
from dynamo_gpu_ft.kv.base import Tier
from dynamo_gpu_ft.kv.blocks import STORED, JobResult, PendingStore, Pin, Run
from dynamo_gpu_ft.kv.kept import KeptTails
from dynamo_gpu_ft.kv.tail import Tail


@dataclass(slots=True)
class SnapshotStats:
    """Counts since the last `take_stats`; `reasons` by status of blocks that were not stored or not restored."""

    stored_bytes: int = 0
    loaded_blocks: int = 0
    loaded_bytes: int = 0
    loaded_tail_tokens: int = 0  # of blocks that `loaded_blocks` does not count
    moved: list[tuple[str, int, float]] = field(default_factory=list)  # (source, bytes, seconds)
    dropped: Counter[str] = field(default_factory=Counter)
    pins: Counter[str] = field(default_factory=Counter)  # by status
    load_failures: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Load:
    run: Run
    deadline: float


class SnapshotQueue:
    """One worker's stores and loads. Single-threaded: the engine's step thread calls everything.

    Nothing here waits for a copy except `preempt`, which waits for the one block being copied. `everywhere` as in `KeptTails`."""

    def __init__(
        self,
        tier: Tier,
        *,
        max_lag_bytes: int,
        load_timeout_s: float,
        everywhere: Callable[[bytes], bool] = lambda name: True,
    ) -> None:
        self._tier = tier
        self._max_lag_bytes, self._load_timeout_s = max_lag_bytes, load_timeout_s
        self._next_job = 1
        self._stores: dict[int, PendingStore] = {}
        self._loads: dict[int, _Load] = {}
        self._pins: set[int] = set()
        self._held: dict[str, list[bytes]] = {}
        self._tails = KeptTails(everywhere)
        self._finishing: dict[str, float] = {}
        self._stats = SnapshotStats()

    # -- what a step asks for ------------------------------------------------------------------------------------

    def store(self, run: Run) -> None:
        """Queues a copy of `run`; under pressure drops by policy, in the end the run itself, and a tail at once."""
        size = len(run.block_ids) * self._tier.block_bytes
        drops: list[int] = []
        if not run.tail:
            drops = policy.choose_drops(
                self._stores.values(), incoming_bytes=size, limit_bytes=self._max_lag_bytes
            )
        if drops:
            self._tier.cancel(drops)
        remaining = sum(s.bytes for j, s in self._stores.items() if j not in set(drops))
        if remaining + size > self._max_lag_bytes:
            self._stats.dropped["lag"] += len(run.block_ids)
            return
        job_id = self._job()
        self._stores[job_id] = PendingStore(
            job_id,
            run.request_id,
            run.first,
            run.block_ids,
            size,
            sequence=job_id,
            block_hashes=run.block_hashes,
            tail=Tail(run.block_hashes[-1], run.tail) if run.tail else None,
        )
        if run.tail:
            self._tails.add(run.request_id, (run.first, run.tail), run.block_hashes[-1])
        else:
            self._held.setdefault(run.request_id, []).extend(run.block_hashes)
        self._tier.store(job_id, run.refs())

    def load(self, run: Run, *, now: float | None = None) -> None:
        """Queues a copy in; its outcome comes from `poll`, at the latest its own or `load_timeout_s` after this call."""
        job_id = self._job()
        started = time.monotonic() if now is None else now
        limit = self._load_timeout_s
        if run.timeout_s is not None:
            limit = min(limit, run.timeout_s)
        self._loads[job_id] = _Load(run, started + limit)
        if run.tail:
            # Before anything is stored in its place, by this request or by the one that stored it.
            self._tier.hold(run.block_hashes[-1:])
            reach = (run.first + len(run.block_ids) - 1, run.tail)
            self._tails.add(run.request_id, reach, run.block_hashes[-1])
        self._tier.load(job_id, run.refs())

    def adopt(self, request_id: str, block_hashes: Iterable[bytes]) -> None:
        """The request holds these blocks already, by stores of a writer that is gone: they are let go when it ends."""
        self._held.setdefault(request_id, []).extend(block_hashes)

    def held(self) -> dict[str, tuple[bytes, ...]]:
        """What each open request holds by whole blocks stored here: for the queue that takes over from this one."""
        return {request: tuple(names) for request, names in self._held.items()}

    def pin(self, pin: Pin) -> None:
        """Queues a pin behind the stores so far; what became of it is counted."""
        job_id = self._job()
        self._pins.add(job_id)
        self._tier.pin(job_id, pin.block_hashes, pin.until)

    def preempt(self, request_ids: Iterable[str]) -> None:
        """The engine is about to reuse these requests' blocks: nothing may read them after this returns."""
        gone = set(request_ids)
        self._tier.cancel([j for j, s in self._stores.items() if s.request_id in gone])

    def finish(self, request_id: str, *, report: bool = True, now: float | None = None) -> None:
        """The request ended. With `report`, its blocks are free for the engine once `poll` has named it in `sent`."""
        if report:
            self._finishing[request_id] = time.monotonic() if now is None else now
        for pending in self._stores.values():
            if pending.request_id == request_id:
                pending.open = False
        held = self._held.pop(request_id, None)
        if held:
            self._tier.release(held)
        self._drop(self._tails.ended(request_id))

    def keep_only(self, request_ids: Iterable[str]) -> None:
        """Every other request is over, whether its end was told or not."""
        kept = set(request_ids)
        for request_id in (set(self._held) | self._tails.requests()) - kept:
            self.finish(request_id, report=False)

    # -- what happened -------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing is under way and nothing waits to be told, so that `poll` would have no answer."""
        return not (self._stores or self._loads or self._finishing or self._pins)

    def poll(self, *, now: float | None = None) -> Progress:
        """Collects finished jobs; cancels overdue loads and stores that hold up a finished request. Never blocks longer
        than one block's copy."""
        clock = time.monotonic() if now is None else now
        progress = Progress()
        overdue = [j for j, load in self._loads.items() if clock > load.deadline]
        late = {r for r, since in self._finishing.items() if clock - since > self._load_timeout_s}
        overdue += [j for j, s in self._stores.items() if s.request_id in late]
        if overdue:
            self._tier.cancel(overdue)
        for result in self._tier.poll():
            self._settle(result, progress)
        busy = {s.request_id for s in self._stores.values()}
        progress.sent = {r for r in self._finishing if r not in busy}
        for request_id in progress.sent:
            del self._finishing[request_id]
        return progress

    def _settle(self, result: JobResult, progress: Progress) -> None:
        if (pending := self._stores.pop(result.job_id, None)) is not None:
            good = sum(status in STORED for status in result.statuses)
            self._stats.stored_bytes += result.bytes
            for status in result.statuses:
                if status not in STORED:
                    self._stats.dropped[status] += 1
            if pending.tail is not None:
                tail = (pending.request_id, (pending.first, pending.tail.tokens), pending.tail.name)
                if good:
                    self._drop(self._tails.sealed(*tail))
                else:
                    self._tails.lost(*tail)
                return
            end = pending.first + good
            if good < len(result.statuses):
                progress.gaps[pending.request_id] = end
            if good:
                last = pending.block_hashes[good - 1]
                self._drop(self._tails.sealed(pending.request_id, (end, 0), last))
            return
        if result.job_id in self._pins:
            self._pins.discard(result.job_id)
            self._stats.pins.update(result.statuses)
            return
        load = self._loads.pop(result.job_id, None)
        if load is None:
            return
        answer = restore.outcome(load.run.block_ids, result.statuses)
        progress.loaded.add(load.run.request_id)
        progress.bad_block_ids.update(answer.bad_block_ids)
        if load.run.tail and not answer.bad_block_ids:
            self._stats.loaded_blocks -= 1
            self._stats.loaded_tail_tokens += load.run.tail
        self._stats.loaded_blocks += answer.restored
        self._stats.loaded_bytes += result.bytes
        self._stats.moved += result.moved or (("arena", result.bytes, result.seconds),)
        if answer.bad_block_ids:
            self._stats.load_failures[answer.reason] += len(answer.bad_block_ids)

    def backlog(self) -> tuple[int, int]:
        """(blocks, bytes) not yet sealed."""
        return (
            sum(len(s.block_ids) for s in self._stores.values()),
            sum(s.bytes for s in self._stores.values()),
        )

    def take_stats(self) -> SnapshotStats:
        stats, self._stats = self._stats, SnapshotStats()
        return stats

    def abandon(self) -> Progress:
        """Gives up everything under way: every load counts as bad, every finished request as sent.

        Cancels first, so that no copy touches an engine block that is about to be reused; a tier that cannot even
        cancel must be closed by the caller before it hands the answer on."""
        with contextlib.suppress(Exception):
            self._tier.cancel([*self._stores, *self._loads])
        progress = Progress()
        for load in self._loads.values():
            progress.loaded.add(load.run.request_id)
            progress.bad_block_ids.update(load.run.block_ids)
        progress.sent = set(self._finishing)
        self._loads.clear()
        self._stores.clear()
        self._pins.clear()
        self._finishing.clear()
        return progress

    def _drop(self, names: list[bytes]) -> None:
        if names:
            self._tier.drop(names)

    def _job(self) -> int:
        job_id, self._next_job = self._next_job, self._next_job + 1
        return job_id


@dataclass(slots=True)
class Progress:
    """What `poll` found: requests whose load is over (`loaded`), engine blocks with undefined bytes (`bad_block_ids`),
    finished requests whose blocks are free (`sent`), and the first block index not stored per request (`gaps`)."""

    loaded: set[str] = field(default_factory=set)
    bad_block_ids: set[int] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    gaps: dict[str, int] = field(default_factory=dict)
