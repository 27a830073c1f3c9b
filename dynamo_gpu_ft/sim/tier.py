"""`MemoryTier`: the smallest thing that keeps every promise of the `Tier` contract. Simulated: a dict, no arena, no threads.

The contract suite holds the real tiers against it; tests of the layers above use it to damage and to lose blocks at will.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from dynamo_gpu_ft.kv.blocks import BlockRef, JobResult


class MemoryTier:
    """Blocks are read and written through the callables. Nothing happens until `step` (or `wait`) runs the next job, so that
    a test decides the interleaving."""

    def __init__(
        self,
        block_bytes: int,
        read: Callable[[int], bytes],
        write: Callable[[int, bytes], None],
        *,
        capacity: int = 1 << 30,
        most_pinned: int = 1 << 30,
    ) -> None:
        self.block_bytes, self.capacity, self.most_pinned = block_bytes, capacity, most_pinned
        self._read, self._write = read, write
        self.blocks: dict[bytes, tuple[bytes | None, bytes]] = {}  # hash -> (parent, payload)
        self.holds: dict[bytes, int] = {}
        self.pins: dict[bytes, int] = {}  # hash -> end of its pin
        self._until: dict[int, int] = {}  # of pin jobs
        self.damaged: set[bytes] = set()
        self._jobs: deque[tuple[str, int, Sequence[BlockRef]]] = deque()
        self._results: list[JobResult] = []

    def store(self, job_id: int, blocks: Sequence[BlockRef]) -> None:
        self._jobs.append(("store", job_id, list(blocks)))

    def load(self, job_id: int, blocks: Sequence[BlockRef]) -> None:
        self._jobs.append(("load", job_id, list(blocks)))

    def hold(self, block_hashes: Sequence[bytes]) -> None:
        self._jobs.append(("hold", 0, [BlockRef(0, h, None, 0) for h in block_hashes]))

    def release(self, block_hashes: Sequence[bytes]) -> None:
        self._jobs.append(("release", 0, [BlockRef(0, h, None, 0) for h in block_hashes]))

    def drop(self, block_hashes: Sequence[bytes]) -> None:
        self._jobs.append(("drop", 0, [BlockRef(0, h, None, 0) for h in block_hashes]))

    def pin(self, job_id: int, block_hashes: Sequence[bytes], until: int) -> None:
        self._until[job_id] = until
        self._jobs.append(("pin", job_id, [BlockRef(0, h, None, 0) for h in block_hashes]))

    def cancel(self, job_ids: Iterable[int]) -> None:
        gone = set(job_ids)
        for kind, job_id, blocks in [j for j in self._jobs if j[1] in gone]:
            count = 1 if kind == "pin" else len(blocks)
            self._finish(kind, job_id, ["cancelled"] * count)
        self._jobs = deque(j for j in self._jobs if j[1] not in gone)

    def poll(self) -> list[JobResult]:
        results, self._results = self._results, []
        return results

    def backlog(self) -> tuple[int, int]:
        waiting = sum(len(blocks) for kind, _, blocks in self._jobs if kind == "store")
        return waiting, waiting * self.block_bytes

    def wait(self, timeout: float) -> bool:
        while self.step():
            pass
        return True

    def close(self, timeout: float = 5.0) -> None:
        self.wait(timeout)

    def step(self) -> bool:
        """Runs the oldest job; False when there is none."""
        if not self._jobs:
            return False
        kind, job_id, blocks = self._jobs.popleft()
        if kind == "store":
            self._finish(kind, job_id, [self._store_one(block) for block in blocks])
        elif kind == "load":
            statuses: list[str] = []
            for block in blocks:
                good = not statuses or statuses[-1] == "ok"
                statuses.append(self._load_one(block) if good else "chain")
            self._finish(kind, job_id, statuses)
        elif kind == "pin":
            names = [block.block_hash for block in blocks]
            self._finish(kind, job_id, [self._pin(names, self._until.pop(job_id))])
        else:
            for block in blocks:
                change = 1 if kind == "hold" else -1
                self.holds[block.block_hash] = self.holds.get(block.block_hash, 0) + change
                if kind == "drop" and self.holds[block.block_hash] <= 0:
                    self.blocks.pop(block.block_hash, None)
                    self.holds[block.block_hash] = 0
        return True

    def _finish(self, kind: str, job_id: int, statuses: list[str]) -> None:
        moved = 0 if kind == "pin" else statuses.count("ok") * self.block_bytes
        self._results.append(JobResult(job_id, kind, tuple(statuses), moved, 0.0))

    def _store_one(self, block: BlockRef) -> str:
        if block.parent_hash is not None and block.parent_hash not in self.blocks:
            return "no_parent"
        self.holds[block.block_hash] = self.holds.get(block.block_hash, 0) + 1
        if block.block_hash in self.blocks and block.block_hash not in self.damaged:
            return "present"
        if len(self.blocks) >= self.capacity and not self._evict():
            return "full"
        self.blocks[block.block_hash] = (block.parent_hash, self._read(block.block_id))
        self.damaged.discard(block.block_hash)
        return "ok"

    def _pin(self, names: list[bytes], until: int) -> str:
        there = {name for name in names if name in self.blocks}
        if until == 0:
            for name in there:
                self.pins.pop(name, None)
            return "ok"
        if len(there | set(self.pins)) > self.most_pinned:
            return "full"
        self.pins |= {name: max(until, self.pins.get(name, 0)) for name in there}
        return "ok" if there else "not_found"

    def _evict(self) -> bool:
        for block_hash in self.blocks:
            if self.holds.get(block_hash, 0) <= 0 and block_hash not in self.pins:
                del self.blocks[block_hash]
                return True
        return False

    def _load_one(self, block: BlockRef) -> str:
        found = self.blocks.get(block.block_hash)
        if found is None:
            return "not_found"
        if found[0] != block.parent_hash:
            return "chain"
        if block.block_hash in self.damaged:
            return "digest"
        self._write(block.block_id, found[1])
        return "ok"
