"""Writers killed or stopped at random instants: nothing wrong is ever accepted, nothing sealed is lost, the ledger is exact.

Each run starts real processes on a fresh arena, ends or stops them, and looks at what is left as a new engine would.
GFT_KILL_RUNS sets the number of runs (150 in the ordinary test run); a failing run prints its seed.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import arena_writer as work
import pytest

from dynamo_gpu_ft import native

RUNS = int(os.environ.get("GFT_KILL_RUNS", "150"))
ROOMY = 3 * work.CHAINS * work.CHAIN + 256  # slots: nothing is ever evicted
TIGHT = 40
IN_FLIGHT = {
    "claims": 1,
    "1": 4,
    "3": 12,
}  # blocks that may be open when a writer dies, by its mode

core = native.load()


class Rank:
    """One writer process, and the page in which it notes what it finished."""

    def __init__(
        self, folder: Path, arena: str, token: bytes, seed: int, shard: int, mode: str
    ) -> None:
        self.shard, self.mode = shard, mode
        notes = folder / f"notes{shard}"
        notes.write_bytes(bytes(4096))
        with notes.open("r+b") as file:
            self.notes = memoryview(mmap.mmap(file.fileno(), 4096)).cast("Q")
        script, ledger = str(Path(work.__file__)), "ledger" if shard == 0 else "none"
        what = [
            script,
            core.__file__,
            arena,
            str(notes),
            token.hex(),
            str(seed),
            str(shard),
            mode,
            ledger,
        ]
        self.process = subprocess.Popen([sys.executable, "-S", *what], stderr=subprocess.PIPE)

    def ready(self) -> None:
        deadline = time.monotonic() + 30
        while not self.notes[work.READY]:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, "the writer did not start"
            os.sched_yield()

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def said(self) -> str:
        self.process.wait(30)
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def end(self) -> None:
        self.process.kill()
        self.process.wait(30)
        if self.process.stderr is not None:
            self.process.stderr.close()


class Run:
    """One experiment, fully described by its seed (except for the instant, which is the point)."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed, self.folder, self.rng = seed, folder, random.Random(seed)
        self.tight = self.rng.random() < 0.3
        self.stop = self.rng.random() < 0.4
        self.token = self.rng.randbytes(16)
        self.arena = core.Arena.create(
            str(folder / "arena"),
            slot_bytes=work.SLOT_BYTES,
            slots=TIGHT if self.tight else ROOMY,
            ledger_bytes=1 << 16,
        )
        modes = [self.rng.choice(sorted(IN_FLIGHT)) for _ in range(self.rng.choice([1, 1, 2, 3]))]
        self.ranks = [
            Rank(folder, self.arena.path, self.token, seed, shard, mode)
            for shard, mode in enumerate(modes)
        ]

    def interrupt(self) -> None:
        if self.rng.random() < 0.85:
            for rank in self.ranks:
                rank.ready()
        # A random instant, not a synchronisation: nothing below depends on how far the writers got.
        until = time.perf_counter() + self.rng.random() ** 2 * 0.02
        while time.perf_counter() < until:
            pass
        for rank in self.ranks:
            rank.stop() if self.stop else rank.process.kill()
        if not self.stop:
            for rank in self.ranks:
                rank.process.wait(30)

    def sealed_notes(self) -> list[int]:
        return [rank.notes[work.SEALED] for rank in self.ranks]

    def prefix(self, shard: int, chain: int) -> int:
        if not self.arena.namespaces():
            return 0  # ended before the first rank had named its namespace
        hashes = [work.block_hash(self.seed, shard, chain, i) for i in range(work.CHAIN)]
        return self.arena.usable_prefix(
            namespace=0, shards=[shard], block_hashes=hashes, max_epoch=self.arena.epoch
        ).blocks

    def check_blocks(self, noted: list[int]) -> None:
        """No wrong byte is accepted, and every block noted as sealed is still there unless eviction was allowed."""
        names = {
            name: None for rank in self.ranks for name, _, _ in work.blocks(self.seed, rank.shard)
        }
        base = (
            self.arena.base_address() + self.arena.file_bytes - self.arena.slots * work.SLOT_BYTES
        )
        for info in self.arena.scan():
            if info.state != "sealed":
                continue
            assert info.namespace == 0, "a sealed slot without a valid header"
            assert self.arena.verify(info.slot) == "ok"
            assert info.block_hash in names or info.block_hash.startswith(b"mine")
            held = work.ctypes.string_at(base + info.slot * work.SLOT_BYTES, work.SLOT_BYTES)
            assert held == work.payload_of(info.block_hash), "a sealed block with wrong bytes"
        if self.tight:
            return
        for rank, sealed in zip(self.ranks, noted, strict=True):
            for chain in range(work.CHAINS):
                here = min(max(sealed - chain * work.CHAIN, 0), work.CHAIN)
                assert self.prefix(rank.shard, chain) >= here, "a sealed block was lost"

    def check_open_blocks(self) -> None:
        """Only what was being written when the writer died is missing."""
        writing = Counter(info.state for info in self.arena.scan())["writing"]
        assert writing <= sum(IN_FLIGHT[rank.mode] for rank in self.ranks)
        if self.tight:
            return
        for rank in self.ranks:
            there = sum(self.prefix(rank.shard, chain) for chain in range(work.CHAINS))
            missing = rank.notes[work.STARTED] - there
            assert missing <= (1 if rank.mode == "claims" else work.CHAIN), (
                "more than the open blocks is missing"
            )

    def check_ledger(self, ops: int) -> list[tuple[int, bytes]]:
        read = self.arena.read_ledger()
        assert read.end == "clean"
        assert read.records in (work.ledger_after(ops), work.ledger_after(ops + 1)), (
            "the ledger is not what was written"
        )
        return read.records

    def succeed(self) -> Any:
        """Becomes the next engine, as the supervisor's new process would."""
        token = self.rng.randbytes(16)
        self.arena.begin_epoch(token, takeover=self.stop)
        namespace = self.arena.add_namespace(b"killed")
        return self.arena.attach_writer(shard=0, token=token, namespace=namespace)

    def write_on(self, writer: Any) -> None:
        for i in range(60):
            name = b"mine%d" % i
            claim = writer.claim(
                block_hash=name, parent_hash=b"mine%d" % (i - 1) if i else None, position=i
            )
            work.ctypes.memmove(claim.address, work.payload_of(name), work.SLOT_BYTES)
            claim.seal()

    def after_kill(self) -> str:
        noted = self.sealed_notes()
        self.check_blocks(noted)
        self.check_open_blocks()
        before = self.check_ledger(self.ranks[0].notes[work.LEDGER_OPS])
        writer = self.succeed()
        self.write_on(writer)
        self.check_blocks(noted)
        self.arena.open_ledger().append(9, b"next")
        assert self.arena.read_ledger().records == [*before, (9, b"next")]
        return "killed"

    def after_stop(self) -> str:
        try:
            writer = self.succeed()
            ledger = self.arena.open_ledger(takeover=True)
        except core.CoreError as error:
            # Stopped inside the administration lock, or in a compaction with both halves in hand: a clear answer that
            # names the process, and nothing is damaged. Ending it is then the way on.
            assert error.code in ("timed_out", "busy"), error
            assert any(str(rank.process.pid) in str(error) for rank in self.ranks), error
            for rank in self.ranks:
                rank.end()
            noted = self.sealed_notes()
            self.check_blocks(noted)
            self.check_ledger(self.ranks[0].notes[work.LEDGER_OPS])
            return f"stopped, {error.code}"
        noted = self.sealed_notes()
        self.check_blocks(noted)
        before = self.check_ledger(self.ranks[0].notes[work.LEDGER_OPS])
        ledger.append(9, b"taken over")
        self.write_on(writer)
        for rank in self.ranks:
            rank.go_on()
        for rank in self.ranks:
            assert rank.process.wait(30) in (3, 4), rank.said()
        self.write_on_again(writer)
        self.check_blocks(self.sealed_notes())
        assert self.arena.read_ledger().records == [*before, (9, b"taken over")]
        # A copy engine's other threads may have been mid-copy when their process ended; claims are given back before.
        if all(rank.mode == "claims" for rank in self.ranks):
            assert self.arena.counts()["writing"] == 0, "a fenced writer kept a slot"
        return "stopped, fenced"

    def write_on_again(self, writer: Any) -> None:
        for i in range(60):
            name = b"mine%d" % i
            if (
                writer.claim(
                    block_hash=name, parent_hash=b"mine%d" % (i - 1) if i else None, position=i
                )
                is None
            ):
                continue
            break  # evicted meanwhile: the claim just dropped gives its slot back

    def close(self) -> None:
        for rank in self.ranks:
            rank.end()


def one_run(folder: Path, seed: int) -> str:
    folder.mkdir()
    run = Run(folder, seed)
    try:
        run.interrupt()
        return run.after_stop() if run.stop else run.after_kill()
    finally:
        run.close()
        for entry in folder.iterdir():
            entry.unlink()


@pytest.mark.timeout(60 + RUNS)
def test_nothing_wrong_is_accepted_and_nothing_sealed_is_lost_whenever_a_writer_dies(
    memory_folder: Path, rng: random.Random
) -> None:
    outcomes: Counter[str] = Counter()
    for i in range(RUNS):
        seed = rng.randrange(2**32)
        try:
            outcomes[one_run(memory_folder / str(i), seed)] += 1
        except BaseException:
            print(f"run {i} failed with seed {seed}")
            raise
    print(dict(outcomes))
    assert sum(outcomes.values()) == RUNS
