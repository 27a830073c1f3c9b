"""The ledger: readable once complete, exact after any end of its writer, compacted by one store, fenced on takeover.

Damage is done to the file itself; what is read back must be whole records, a prefix, and labelled.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from door import code_of, core, token
from test_writers import child_writer

HALF = 1 << 15
HALF_LOCKS = (1 << 60) + 16  # kLedgerLocks of csrc/arena/locks.h
HALF_PIDS = 4096 + 144  # Control::ledger_pid of csrc/arena/format.h


def contents(arena: Any) -> tuple[list[tuple[int, bytes]], str]:
    read = arena.read_ledger()
    return read.records, read.end


def records(count: int, size: int = 20) -> list[tuple[int, bytes]]:
    return [(i % 7, bytes([i % 256]) * (i % size)) for i in range(count)]


def fill(ledger: Any, what: list[tuple[int, bytes]]) -> None:
    for kind, payload in what:
        ledger.append(kind, payload)


def test_records_come_back_in_order_as_soon_as_they_are_written(arena: Any) -> None:
    ledger, reader = arena.open_ledger(), core.Arena.open(arena.path, read_only=True)
    for i, (kind, payload) in enumerate(records(100)):
        ledger.append(kind, payload)
        assert contents(reader) == (records(i + 1), "clean")
    assert 0 < ledger.used < ledger.capacity == HALF


def test_an_empty_ledger_is_clean(arena: Any) -> None:
    assert contents(arena) == ([], "clean")


def test_a_full_ledger_says_so_and_keeps_what_it_has(arena: Any) -> None:
    ledger = arena.open_ledger()
    assert code_of(ledger.append, 1, bytes(HALF)) == "full"
    count = 0
    with pytest.raises(core.CoreError):
        while True:
            ledger.append(1, bytes(1000))
            count += 1
    assert contents(arena) == ([(1, bytes(1000))] * count, "clean")
    ledger.append(2, b"a small one still fits")
    assert len(contents(arena)[0]) == count + 1


def test_there_is_one_live_writer(arena: Any) -> None:
    ledger = arena.open_ledger()
    assert code_of(arena.open_ledger) == "busy"
    ledger.close()
    assert code_of(ledger.append, 1, b"") == "closed"
    arena.open_ledger().append(1, b"next")


def test_the_next_writer_goes_on_where_the_dead_one_ended(arena: Any) -> None:
    fill(arena.open_ledger(), records(10))
    fill(arena.open_ledger(), records(5))
    assert contents(arena) == (records(10) + records(5), "clean")


def test_compaction_is_unseen_until_it_is_committed(arena: Any) -> None:
    ledger = arena.open_ledger()
    fill(ledger, records(50))
    ledger.begin_compaction()
    fill(ledger, records(3))
    assert contents(arena) == (records(50), "clean")
    ledger.commit_compaction()
    assert contents(arena) == (records(3), "clean")
    ledger.append(9, b"after")
    assert contents(arena) == ([*records(3), (9, b"after")], "clean")


def test_compactions_may_follow_each_other(arena: Any) -> None:
    ledger = arena.open_ledger()
    for i in range(40):
        ledger.begin_compaction()
        fill(ledger, records(i))
        ledger.commit_compaction()
        assert contents(arena) == (records(i), "clean")


def test_a_compaction_that_is_not_committed_never_was(arena: Any) -> None:
    ledger = arena.open_ledger()
    fill(ledger, records(8))
    for end in (ledger.abort_compaction, ledger.begin_compaction, ledger.close):
        ledger.begin_compaction()
        fill(ledger, records(3))
        end()
    assert contents(arena) == (records(8), "clean")
    again = arena.open_ledger()
    again.append(1, b"x")
    assert contents(arena) == ([*records(8), (1, b"x")], "clean")
    assert code_of(again.commit_compaction) == "invalid"


def test_taking_over_keeps_every_record_and_fences_the_former_writer(arena: Any) -> None:
    with child_writer(arena, token(), what="ledger") as child:
        assert child.ask("append") == "ok"
        child.stop()
        assert code_of(arena.open_ledger) == "busy"
        ledger = arena.open_ledger(takeover=True)
        ledger.append(2, b"mine")
        assert code_of(ledger.begin_compaction) == "busy"
        child.go_on()
        assert child.ask("append") == "fenced"
        ledger.begin_compaction()
        ledger.append(2, b"mine")
        ledger.commit_compaction()
        assert contents(arena) == ([(2, b"mine")], "clean")


def test_taking_over_twice_needs_the_first_stopped_writer_gone(arena: Any) -> None:
    first = arena.open_ledger()
    fill(first, records(4))
    second = arena.open_ledger(takeover=True)
    second.append(1, b"second")
    assert code_of(arena.open_ledger, takeover=True) == "busy"
    assert code_of(first.append, 1, b"stale") == "fenced"
    third = arena.open_ledger(takeover=True)
    third.append(1, b"third")
    assert contents(arena) == ([*records(4), (1, b"second"), (1, b"third")], "clean")


@pytest.mark.parametrize("noted", [0, 2**30])
def test_a_writer_stopped_before_it_noted_itself_is_named(arena: Any, noted: int) -> None:
    """In a compaction, between the lock of the other half and the note of whose it is: nobody has noted itself there, or one who is gone."""
    with child_writer(arena, token(), what="ledger") as child, open(arena.path, "r+b") as file:
        assert child.ask("append") == "ok"
        child.stop()
        with mmap.mmap(file.fileno(), 0) as data:
            assert struct.unpack_from("<QQ", data, HALF_PIDS) == (child.process.pid, 0)
            struct.pack_into("<Q", data, HALF_PIDS + 8, noted)
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, HALF_LOCKS + 1, 1, 0)
        fcntl.fcntl(file.fileno(), fcntl.F_OFD_SETLK, lock)
        with pytest.raises(core.CoreError, match=f"process {child.process.pid}, a writer"):
            arena.open_ledger(takeover=True)


def ledger_offset(arena: Any, marker: bytes) -> int:
    data = Path(arena.path).read_bytes()
    assert data.count(marker) == 1
    return data.index(marker)


def test_changed_bytes_in_the_middle_end_the_replay_there(arena: Any) -> None:
    ledger = arena.open_ledger()
    fill(ledger, [(1, b"first"), (2, b"the marked record"), (3, b"third")])
    with open(arena.path, "r+b") as file:
        file.seek(ledger_offset(arena, b"the marked record") + 4)
        file.write(b"X")
    assert contents(arena) == ([(1, b"first")], "torn")
    ledger.close()
    arena.open_ledger().append(4, b"fourth")
    assert contents(arena) == ([(1, b"first"), (4, b"fourth")], "clean")


def test_a_tail_that_was_cut_off_is_noticed(arena: Any) -> None:
    ledger = arena.open_ledger()
    fill(ledger, [(1, b"first"), (2, b"the marked record")])
    with open(arena.path, "r+b") as file:
        file.seek(ledger_offset(arena, b"the marked record") - 24)
        file.write(bytes(8))  # its commit word
    assert contents(arena) == ([(1, b"first")], "torn")


def test_no_damage_makes_a_record_that_was_not_written(arena: Any, rng: random.Random) -> None:
    ledger = arena.open_ledger()
    written = [(i % 5, rng.randbytes(rng.randrange(40))) for i in range(60)]
    marker = b"start of the ledger!"
    fill(ledger, [(0, marker), *written])
    start = ledger_offset(arena, marker) - 24
    with open(arena.path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        original = memory[start : start + HALF]
        for _ in range(3000):
            for _ in range(rng.choice([1, 1, 2, 8])):
                memory[start + rng.randrange(ledger.used)] = rng.randrange(256)
            found, end = contents(arena)
            assert found == [(0, marker), *written][: len(found)]
            assert end == "torn" or len(found) == 61
            memory[start : start + HALF] = original


def test_the_ledger_survives_the_file_descriptor_limit(arena: Any) -> None:
    ledger = arena.open_ledger()
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) + 1, hard))
    try:
        assert code_of(ledger.begin_compaction) == "io"
        ledger.append(1, b"still there")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert contents(arena) == ([(1, b"still there")], "clean")
