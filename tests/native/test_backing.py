"""The disk behind the arena: blocks leave and come back as the same blocks, in time or not at all, and never wrong."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from door import SLOT_BYTES, code_of, core, name, payload_of, read_back, seal_chain, token

SEGMENT = 1 << 20
RECORD = b"namespace"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Any]:
    log = open_log(tmp_path)
    yield log
    log.close()


def open_log(folder: Path, **how: Any) -> Any:
    log = core.DiskLog.open(str(folder / "log"), segment_bytes=SEGMENT, window_ms=1, **how)
    if not how.get("read_only"):
        log.add_namespace(RECORD)
    return log


def names(hashes: Sequence[bytes], first: int = 0) -> list[tuple[bytes, bytes | None, int]]:
    return [(h, hashes[i - 1] if i else None, i) for i, h in enumerate(hashes) if i >= first]


def answer(backing: Any, job: int) -> Any:
    assert backing.wait(20)
    (found,) = [f for f in backing.poll() if f.job_id == job]
    return found


def prefix(arena: Any, logs: list[Any], hashes: Sequence[bytes], epoch: int = 1 << 40) -> Any:
    return core.backed_prefix(
        arena=arena,
        logs=logs,
        record=RECORD,
        payload_bytes=SLOT_BYTES,
        shards=[0],
        block_hashes=hashes,
        max_epoch=epoch,
    )


@pytest.fixture
def kept(make_arena: Callable[..., Any], make_writer: Callable[..., Any], disk: Any) -> list[bytes]:
    """Names of eight blocks that are in `disk`; the arena they came from is gone."""
    hashes = [name(i) for i in range(8)]
    writer = make_writer(make_arena())
    backing = core.Backing(writer, disk, queue_blocks=64)
    seal_chain(writer, hashes)
    backing.spill(names(hashes))
    assert backing.wait(20)
    assert backing.stats()["spilled_blocks"] == 8
    assert backing.close(20)
    writer.close()
    return hashes


def later_writer(make_arena: Callable[..., Any], disk: Any, slots: int = 64) -> tuple[Any, Any]:
    """A fresh arena, as after a reboot, whose epochs begin above those on disk."""
    arena, chosen = make_arena(slots=slots), token()
    arena.begin_epoch(chosen, floor=disk.stats()["max_epoch"])
    space = arena.add_namespace(RECORD)
    return arena, arena.attach_writer(shard=0, token=chosen, namespace=space)


def test_spilled_blocks_come_back_into_a_new_arena_byte_for_byte(
    make_arena: Callable[..., Any], disk: Any, kept: list[bytes]
) -> None:
    arena, writer = later_writer(make_arena, disk)
    assert prefix(arena, [disk], kept) == (8, "complete", -1, b"\1" * 8)
    backing = core.Backing(writer, disk, queue_blocks=64)
    backing.fetch(1, names(kept), 20.0)
    found = answer(backing, 1)
    assert found.statuses == ["ok"] * 8
    assert found.bytes == 8 * SLOT_BYTES
    for i, block in enumerate(kept):
        assert read_back(writer, block, kept[i - 1] if i else None) == payload_of(block)
    assert prefix(arena, [disk], kept) == (8, "complete", -1, b"\0" * 8)
    backing.close(5)


def test_a_chain_goes_from_the_arena_to_the_disk_and_on_in_the_arena(
    make_arena: Callable[..., Any], disk: Any, kept: list[bytes]
) -> None:
    arena, writer = later_writer(make_arena, disk)
    backing = core.Backing(writer, disk, queue_blocks=64)
    backing.fetch(1, names(kept[:4]), 20.0)
    assert answer(backing, 1).statuses == ["ok"] * 4
    assert prefix(arena, [disk], kept)[3] == b"\0" * 4 + b"\1" * 4
    grown = [*kept, name(100), name(101)]
    backing.fetch(2, names(grown), 20.0)
    found = answer(backing, 2)
    assert found.statuses == ["present"] * 4 + ["ok"] * 4 + ["not_found", "chain"]
    seal_chain(writer, grown)
    assert prefix(arena, [disk], grown)[:2] == (10, "complete")
    backing.close(5)


def test_blocks_of_another_prefix_or_namespace_or_shard_are_not_found(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], disk: Any, kept: list[bytes]
) -> None:
    arena, _ = later_writer(make_arena, disk)
    assert prefix(arena, [disk], [name(1), name(0)])[0] == 0
    assert prefix(arena, [disk], [kept[0], kept[2]])[:2] == (1, "missing")
    other = make_writer(arena, shard=3, record=b"another model")
    backing = core.Backing(other, disk, queue_blocks=4)
    backing.fetch(1, names(kept), 20.0)
    assert answer(backing, 1).statuses == ["not_found", *["chain"] * 7]
    backing.close(5)


def test_without_a_floor_blocks_from_before_the_reboot_are_refused_as_newer(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], tmp_path: Path
) -> None:
    log = open_log(tmp_path)
    arena = make_arena()
    for _ in range(5):
        writer = make_writer(arena)
    seal_chain(writer, [name(0)])
    backing = core.Backing(writer, log, queue_blocks=4)
    backing.spill(names([name(0)]))
    assert backing.wait(20)
    backing.close(5)
    fresh = make_arena()
    young = make_writer(fresh)
    assert prefix(fresh, [log], [name(0)], epoch=young.epoch)[:2] == (0, "epoch")
    log.close()


@pytest.mark.parametrize("victim", [0, 3, 7])
def test_a_damaged_record_ends_the_prefix_and_nothing_of_it_is_sealed(
    make_arena: Callable[..., Any],
    tmp_path: Path,
    disk: Any,
    kept: list[bytes],
    victim: int,
) -> None:
    disk.close()
    for path in (tmp_path / "log").glob("seg-*"):
        data = bytearray(path.read_bytes())
        at = data.find(payload_of(kept[victim])[:64])
        assert at > 0
        data[at + 500] ^= 1
        path.write_bytes(data)
    log = open_log(tmp_path)
    arena, writer = later_writer(make_arena, log)
    backing = core.Backing(writer, log, queue_blocks=64)
    backing.fetch(1, names(kept), 20.0)
    found = answer(backing, 1)
    assert found.statuses == ["ok"] * victim + ["digest"] + ["chain"] * (7 - victim)
    assert arena.counts()["sealed"] == victim
    assert arena.counts()["writing"] == 0
    backing.close(5)
    log.close()


def test_a_block_that_was_evicted_before_its_turn_is_counted_and_costs_nothing_else(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], disk: Any
) -> None:
    writer = make_writer(make_arena())
    backing = core.Backing(writer, disk, queue_blocks=64)
    seal_chain(writer, [name(0)])
    backing.spill([(name(9), None, 0), (name(0), None, 0)])
    assert backing.wait(20)
    stats = backing.stats()
    assert (stats["dropped_evicted"], stats["spilled_blocks"]) == (1, 1)
    assert backing.trouble() == ""
    backing.close(5)


def test_a_payload_that_changed_after_it_was_sealed_never_reaches_the_disk(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], disk: Any
) -> None:
    writer = make_writer(make_arena())
    seal_chain(writer, [name(0), name(1)])
    read = writer.find(block_hash=name(1), parent_hash=name(0))
    ctypes.c_uint8.from_address(read.address + 10).value ^= 1
    backing = core.Backing(writer, disk, queue_blocks=64)
    backing.spill(names([name(0), name(1)]))
    assert backing.wait(20)
    assert backing.stats()["spilled_blocks"] == 1
    assert backing.stats()["dropped_log"] == 1
    assert [e.key.block_hash for e in disk.entries()] == [name(0)]
    backing.close(5)


def test_too_much_to_spill_leaves_the_oldest_out_and_says_so(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], disk: Any
) -> None:
    hashes = [name(i) for i in range(40)]
    writer = make_writer(make_arena())
    seal_chain(writer, hashes)
    backing = core.Backing(writer, disk, queue_blocks=4)
    backing.spill(names(hashes))
    assert backing.wait(20)
    stats = backing.stats()
    assert stats["dropped_queue"] >= 30
    assert stats["spilled_blocks"] + stats["dropped_queue"] == 40
    assert disk.entries()[-1].key.block_hash == hashes[-1]
    backing.close(5)


def test_a_disk_that_fails_is_reported_with_its_reason_and_the_arena_is_untouched(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], tmp_path: Path
) -> None:
    log = open_log(tmp_path, faults=[("write", 3, 1000, 5)])
    arena = make_arena()
    writer = make_writer(arena)
    hashes = [name(i) for i in range(8)]
    seal_chain(writer, hashes)
    backing = core.Backing(writer, log, queue_blocks=64)
    backing.spill(names(hashes))
    backing.wait(20)
    stats = backing.stats()
    assert stats["spilled_blocks"] == 0
    assert stats["dropped_log"] == 8
    assert backing.trouble()
    assert arena.counts()["sealed"] == 8
    backing.close(5)
    log.close()


def test_fetching_more_than_the_arena_holds_ends_with_a_status_and_no_claim_is_left(
    make_arena: Callable[..., Any], disk: Any, kept: list[bytes]
) -> None:
    arena, writer = later_writer(make_arena, disk, slots=4)
    backing = core.Backing(writer, disk, queue_blocks=64)
    backing.fetch(1, names(kept), 20.0)
    found = answer(backing, 1)
    assert found.statuses[0] == "ok"
    assert len(found.statuses) == 8
    assert arena.counts()["writing"] == 0
    backing.close(5)


def test_a_fetch_out_of_time_and_a_cancelled_one_are_answered(
    make_arena: Callable[..., Any], disk: Any, kept: list[bytes]
) -> None:
    arena, writer = later_writer(make_arena, disk)
    backing = core.Backing(writer, disk, queue_blocks=64)
    backing.fetch(1, names(kept), 0.0)
    assert answer(backing, 1).statuses == ["timed_out", *["chain"] * 7]
    for job in range(2, 40):
        backing.fetch(job, names(kept), 20.0)
    backing.cancel(list(range(2, 40)))
    assert backing.wait(20)
    found = backing.poll()
    assert sorted(f.job_id for f in found) == list(range(2, 40))
    assert all(len(f.statuses) == 8 for f in found)
    assert arena.counts()["writing"] == 0
    backing.close(5)


def test_a_fenced_writer_fetches_nothing(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], disk: Any, kept: list[bytes]
) -> None:
    arena, writer = later_writer(make_arena, disk)
    backing = core.Backing(writer, disk, queue_blocks=64)
    make_writer(arena)
    backing.fetch(1, names(kept), 20.0)
    assert answer(backing, 1).statuses[0] == "fenced"
    backing.spill(names(kept))
    backing.wait(20)
    assert backing.stats()["dropped_log"] + backing.stats()["dropped_evicted"] == 8
    backing.close(5)


def test_closed_and_forked_backings_refuse_work(
    make_arena: Callable[..., Any], make_writer: Callable[..., Any], disk: Any
) -> None:
    backing = core.Backing(make_writer(make_arena()), disk, queue_blocks=4)
    pid = os.fork()
    if pid == 0:
        try:
            backing.poll()
        except core.CoreError as error:
            os._exit(0 if error.code == "forked" else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert backing.close(5)
    assert code_of(backing.spill, [(b"x", None, 0)]) == "closed"
    assert code_of(backing.fetch, 1, [(b"x", None, 0)], 1.0) == "closed"


def test_foreign_blocks_are_found_in_logs_alone(disk: Any, kept: list[bytes]) -> None:
    assert prefix(None, [disk], kept) == (8, "complete", -1, b"\1" * 8)
    assert prefix(None, [None], kept)[:2] == (0, "missing")
    assert prefix(None, [], kept)[:2] == (0, "missing")
    wrong = core.backed_prefix(
        arena=None,
        logs=[disk],
        record=RECORD,
        payload_bytes=SLOT_BYTES + 1,
        shards=[0],
        block_hashes=kept,
        max_epoch=1 << 40,
    )
    assert wrong[:2] == (0, "damaged")


def test_random_prefixes_over_both_places_equal_a_walk_by_hand(
    make_arena: Callable[..., Any], disk: Any, kept: list[bytes], rng: Any
) -> None:
    for _ in range(30):
        arena, writer = later_writer(make_arena, disk)
        backing = core.Backing(writer, disk, queue_blocks=64)
        here = rng.randrange(9)
        backing.fetch(1, names(kept[:here]), 20.0)
        answer(backing, 1)
        asked = kept[: rng.randrange(9)]
        if rng.random() < 0.5:
            asked = [*asked, hashlib.sha256(bytes([rng.randrange(256)])).digest()]
        usable = len([h for h in asked if h in kept])
        expected = bytes(0 if i < here else 1 for i in range(usable))
        found = prefix(arena, [disk], asked)
        assert (found[0], found[3]) == (usable, expected)
        backing.close(5)
        writer.close()
        arena.close()
