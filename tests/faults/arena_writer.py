"""A small writer that is killed or stopped at a random instant: seals blocks and appends to the ledger as fast as it can.

Started with `python -S` by test_arena_kill.py. What it has finished it notes in a shared page, after the fact, so that a kill
can only make the note too small, never too large.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.machinery
import importlib.util
import mmap
import os
import sys
from collections.abc import Iterator
from typing import Any

SLOT_BYTES = 4096
CHAIN = 16  # blocks of one chain
CHAINS = 24  # per rank: then the writer goes round again, finding its blocks present
COMPACT_EVERY = 37
LIVE = 5  # records that a compaction keeps

# Words of the shared page: what this rank has finished.
READY, STARTED, SEALED, LEDGER_OPS = range(4)


def load_core(path: str) -> Any:
    loader = importlib.machinery.ExtensionFileLoader("_core", path)
    core = importlib.util.module_from_spec(importlib.util.spec_from_loader("_core", loader))
    loader.exec_module(core)
    return core


def block_hash(seed: int, shard: int, chain: int, position: int) -> bytes:
    return hashlib.sha256(b"%d/%d/%d/%d" % (seed, shard, chain, position)).digest()


def payload_of(name: bytes) -> bytes:
    return hashlib.shake_128(name).digest(SLOT_BYTES)


def record(op: int) -> tuple[int, bytes]:
    return op % 5, b"%d:" % op + bytes([op % 251]) * (op * 7 % 90)


def ledger_after(ops: int) -> list[tuple[int, bytes]]:
    """What the ledger holds after so many operations; the last of every COMPACT_EVERY is a compaction."""
    records: list[tuple[int, bytes]] = []
    for op in range(ops):
        if op % COMPACT_EVERY == COMPACT_EVERY - 1:
            records = records[-LIVE:]
        else:
            records.append(record(op))
    return records


class LedgerOps:
    """The ledger's share of the work, one operation at a time."""

    def __init__(self, ledger: Any, notes: memoryview) -> None:
        self.ledger, self.notes, self.op = ledger, notes, 0
        self.records: list[tuple[int, bytes]] = []

    def step(self) -> None:
        if self.op % COMPACT_EVERY == COMPACT_EVERY - 1:
            self.ledger.begin_compaction()
            self.records = self.records[-LIVE:]
            for kind, payload in self.records:
                self.ledger.append(kind, payload)
            self.ledger.commit_compaction()
        else:
            kind, payload = record(self.op)
            self.ledger.append(kind, payload)
            self.records.append((kind, payload))
        self.op += 1
        self.notes[LEDGER_OPS] = self.op


def blocks(seed: int, shard: int) -> Iterator[tuple[bytes, bytes | None, int]]:
    for chain in range(CHAINS):
        for position in range(CHAIN):
            parent = block_hash(seed, shard, chain, position - 1) if position else None
            yield block_hash(seed, shard, chain, position), parent, position


def write_claims(
    core: Any, writer: Any, seed: int, shard: int, notes: memoryview, ledger: LedgerOps | None
) -> None:
    work = [
        (name, parent, position, payload_of(name)) for name, parent, position in blocks(seed, shard)
    ]
    notes[READY] = 1
    while True:
        for done, (name, parent, position, payload) in enumerate(work):
            notes[STARTED] = max(notes[STARTED], done + 1)
            try:
                claim = writer.claim(block_hash=name, parent_hash=parent, position=position)
                if claim is not None:
                    ctypes.memmove(claim.address, payload, SLOT_BYTES)
                    claim.seal()
            except core.CoreError as error:
                if (
                    error.code != "no_parent"
                ):  # evicted by another rank: the rest of the chain has to wait
                    raise
            notes[SEALED] = max(notes[SEALED], done + 1)
            if ledger is not None:
                ledger.step()


def write_jobs(
    core: Any,
    writer: Any,
    seed: int,
    shard: int,
    notes: memoryview,
    ledger: LedgerOps | None,
    threads: int,
) -> None:
    work = list(blocks(seed, shard))
    memory = bytearray(b"".join(payload_of(name) for name, _, _ in work))
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    engine = core.CopyEngine(
        writer, core.Layout([(base, SLOT_BYTES, SLOT_BYTES, len(work))]), threads=threads
    )
    natives = [
        core.Block(i, name, parent, position) for i, (name, parent, position) in enumerate(work)
    ]
    notes[READY] = 1
    while True:
        for first in range(0, len(work), CHAIN):
            notes[STARTED] = max(notes[STARTED], first + CHAIN)
            engine.store(first, natives[first : first + CHAIN])
            while not engine.wait(0):
                if ledger is not None:
                    ledger.step()
            for result in engine.poll():
                if "fenced" in result.statuses:
                    raise core.CoreError("fenced")
                if not set(result.statuses) <= {"ok", "present", "no_parent"}:
                    raise AssertionError(result.statuses)
            notes[SEALED] = max(notes[SEALED], first + CHAIN)


def main() -> None:
    core_path, arena_path, notes_path, token, seed, shard, mode, with_ledger = sys.argv[1:]
    core = load_core(core_path)
    with open(notes_path, "r+b") as file:
        notes = memoryview(mmap.mmap(file.fileno(), 4096)).cast("Q")
    try:
        arena = core.Arena.open(arena_path)
        arena.begin_epoch(bytes.fromhex(token))
        namespace = arena.add_namespace(b"killed")
        writer = arena.attach_writer(
            shard=int(shard), token=bytes.fromhex(token), namespace=namespace
        )
        ledger = LedgerOps(arena.open_ledger(), notes) if with_ledger == "ledger" else None
        if mode == "claims":
            write_claims(core, writer, int(seed), int(shard), notes, ledger)
        else:
            write_jobs(core, writer, int(seed), int(shard), notes, ledger, int(mode))
    except core.CoreError as error:
        # 3: what a writer that was replaced must hear; 4: it came too late to begin.
        code = {"fenced": 3, "busy": 4}.get(getattr(error, "code", "fenced"), 5)
        if code == 5:
            print(f"{error.code}: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
