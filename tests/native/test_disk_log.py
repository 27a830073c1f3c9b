"""The disk log through its Python door: statuses, readers, takeover, room, compression.

Harmed folders are in test_disk_harm.py, faults and kills in tests/faults.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk_door import NAMESPACE, append_all, block, chain, core, seal

BACKENDS = ["best", "threads"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("direct", [True, False])
def test_blocks_come_back_from_the_writer_a_reader_and_the_next_writer(
    open_log: Callable[..., Any], rng: random.Random, backend: str, direct: bool
) -> None:
    log = open_log(backend=backend, direct=direct)
    blocks = chain(log, rng, 120)
    append_all(log, blocks)
    for where in (log, open_log(read_only=True, backend=backend, direct=direct)):
        for key, payload in blocks:
            (entry,) = where.find(key.namespace, key.shard, key.block_hash)
            assert where.read(entry) == payload
            assert entry.key.link == key.link
            assert entry.key.parent_link == key.parent_link
            start = rng.randrange(len(payload))
            size = rng.randrange(len(payload) - start + 1)
            assert where.read(entry, start, size) == payload[start : start + size]
        assert where.namespaces() == [NAMESPACE]
    assert log.close()
    again = open_log(backend=backend)
    assert len(again.entries()) == 120
    assert again.stats()["max_epoch"] == 3
    assert all(again.read(again.find_link(key.link)) == payload for key, payload in blocks)


def test_many_reads_at_once_each_have_their_own_answer(
    open_log: Callable[..., Any], rng: random.Random
) -> None:
    log = open_log(staging_bytes=1 << 16)  # less than one read needs: they wait for each other
    blocks = chain(log, rng, 40)
    append_all(log, blocks)
    entries = [log.find_link(key.link) for key, _ in blocks]
    target = ctypes.create_string_buffer(sum(len(p) for _, p in blocks))
    wanted, at = [], ctypes.addressof(target)
    for entry, (_, payload) in zip(entries, blocks, strict=True):
        wanted.append((entry, [(0, len(payload), at)]))
        at += len(payload)
    wanted.append((entries[0], [(0, len(blocks[0][1]) + 1, at)]))
    answers = log.read_into(wanted)
    assert [status for status, _ in answers[:-1]] == ["ok"] * 40
    assert answers[-1][0] == "invalid"
    assert target.raw == b"".join(payload for _, payload in blocks)
    assert {status for status, _ in log.read_into(wanted[:-1], timeout=0)} == {"timed_out"}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_read_shared_by_threads_gives_each_block_its_own_answer(
    open_log: Callable[..., Any], rng: random.Random, path: Path, threads: int
) -> None:
    """Enough bytes for several threads; some records are damaged, one is out of range, and staging is scarce."""
    log = open_log(read_threads=threads, staging_bytes=1 << 18)
    blocks = chain(log, rng, 60, size=100_000)
    append_all(log, blocks)
    entries = [log.find_link(key.link) for key, _ in blocks]
    bad = set(rng.sample(range(60), 7))
    assert log.close()
    for number in bad:
        (segment,) = path.glob(f"seg-*-{entries[number].segment & 0xFFFFFFFF:08x}")
        with segment.open("r+b") as file:
            file.seek(entries[number].offset + 4096 + rng.randrange(100_000))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1 << rng.randrange(8)]))
    log = open_log(read_threads=threads, staging_bytes=1 << 18)
    target = ctypes.create_string_buffer(60 * 100_000)
    start = ctypes.addressof(target)
    wanted = [(e, [(0, 100_000, start + i * 100_000)]) for i, e in enumerate(entries)]
    wanted.append((entries[0], [(1, 100_000, start)]))
    answers = [status for status, _ in log.read_into(wanted)]
    assert answers == ["digest" if i in bad else "ok" for i in range(60)] + ["invalid"]
    for i, (_, payload) in enumerate(blocks):
        assert i in bad or target.raw[i * 100_000 : (i + 1) * 100_000] == payload
    assert {status for status, _ in log.read_into(wanted[:60], timeout=0)} <= {
        "timed_out",
        "not_found",
    }
    assert log.stats()["read_bad"] == 7


def test_a_payload_that_is_not_the_keys_is_not_stored(open_log: Callable[..., Any]) -> None:
    log = open_log()
    key, payload = block(log, b"name", b"payload" * 100)
    with pytest.raises(core.CoreError) as caught:
        log.append(key, payload[:-1] + b"X")
    assert caught.value.code == "digest"
    assert log.flush()
    assert log.poll() == []
    assert log.entries() == []


def test_a_stored_block_is_present_and_one_on_its_way_is_joined(
    open_log: Callable[..., Any],
) -> None:
    log = open_log(window_ms=300)
    key, payload = block(log, b"name", b"payload" * 100)
    assert log.append(key, payload, 1) == log.append(key, payload, 2) == "ok"
    assert log.flush()
    assert sorted(log.poll()) == [(1, "ok"), (2, "ok")]
    assert log.append(key, payload, 3) == "present"
    assert len(log.entries()) == 1


def test_keys_that_contradict_themselves_are_refused(open_log: Callable[..., Any]) -> None:
    log = open_log()
    namespace = log.add_namespace(NAMESPACE)
    key, payload = block(log, b"name", b"payload" * 100)
    fields = {
        "namespace": namespace,
        "shard": 0,
        "position": 0,
        "epoch": 3,
        "block_hash": b"name",
        "parent_link": namespace,
        "payload_bytes": len(payload),
        "link": key.link,
        "digest": key.digest,
    }
    for change in (
        {"link": bytes(16)},
        {"epoch": 4},
        {"shard": 1},
        {"position": 1},
        {"parent_link": bytes(16)},
        {"namespace": bytes(16)},
    ):
        with pytest.raises(core.CoreError) as caught:
            log.append(core.DiskKey(**{**fields, **change}), payload)
        assert caught.value.code == "invalid", change
    big = os.urandom(1 << 20)
    with pytest.raises(core.CoreError) as caught:
        log.append(seal(namespace, b"big", namespace, big), big)
    assert caught.value.code == "invalid"
    assert "segment" in str(caught.value)
    assert log.append(core.DiskKey(**fields), payload) == "ok"


def test_one_writer_lives_and_its_lock_goes_with_it(open_log: Callable[..., Any]) -> None:
    log = open_log()
    with pytest.raises(core.CoreError) as caught:
        open_log()
    assert caught.value.code == "busy"
    assert str(os.getpid()) in str(caught.value)
    assert log.close()
    open_log()


def test_a_takeover_fences_the_writer_before(
    open_log: Callable[..., Any], rng: random.Random
) -> None:
    log = open_log()
    blocks = chain(log, rng, 60)
    append_all(log, blocks[:20])
    successor = open_log(takeover=True)
    assert len(successor.entries()) == 20
    try:
        for number, (key, payload) in enumerate(blocks[20:40]):
            log.append(key, payload, number)
        log.flush()
    except core.CoreError as error:
        assert error.code == "fenced"
    assert {status for _, status in log.poll()} <= {"fenced"}
    assert log.stats()["reason"] == "fenced"
    append_all(successor, [blocks[40]])
    log.close()
    assert successor.close()
    assert len(open_log().entries()) == 21


def test_a_reader_follows_the_writer_through_seals_and_collections(
    open_log: Callable[..., Any], rng: random.Random
) -> None:
    log = open_log(segment_bytes=1 << 18, live_ratio=0.9)
    blocks = chain(log, rng, 300)
    append_all(log, blocks[:1])
    reader = open_log(read_only=True)
    for first in range(1, 300, 50):
        append_all(log, blocks[first : first + 50])
        for key, _ in blocks[first : first + 30]:
            log.drop(log.find_link(key.link))
        reader.refresh()
        for key, payload in blocks[first + 30 : first + 50]:
            assert wherever_it_goes(reader, key) == payload
    with pytest.raises(core.CoreError) as caught:
        reader.append(*blocks[0])
    assert caught.value.code == "read_only"


def test_a_reader_that_is_held_up_anywhere_misses_no_block_that_is_moved_meanwhile(
    open_log: Callable[..., Any], rng: random.Random, path: Path, tmp_path: Path
) -> None:
    """Each time the reader's process is stopped, in the middle of a look mostly, segments are collected under it."""
    log = open_log(segment_bytes=1 << 16, live_ratio=0.99, staging_bytes=1 << 20)
    blocks = chain(log, rng, 1200, size=3000)
    links = tmp_path / "links"
    links.touch()
    follower = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("disk_follower.py")), str(path), str(links)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert follower.stdout
        assert follower.stdout.readline() == "ready\n"
        with links.open("ab", 0) as stored:
            for first in range(0, len(blocks), 12):
                follower.send_signal(signal.SIGSTOP)
                before = log.stats()["collected"]
                append_all(log, blocks[first : first + 12])
                for key, _ in blocks[first : first + 11]:
                    log.drop(log.find_link(key.link))
                stored.write(blocks[first + 11][0].link)
                waits = time.monotonic() + 0.1  # a pause of the collector is no failure
                while log.stats()["collected"] == before and time.monotonic() < waits:
                    time.sleep(0.001)
                follower.send_signal(signal.SIGCONT)
                time.sleep(rng.random() * 0.004)
        links.unlink()
        said, _ = follower.communicate(timeout=60)
    finally:
        follower.kill()
        follower.wait()
    assert follower.returncode == 0, said
    assert log.stats()["collected"] > 5


def test_the_cap_holds_and_takes_old_blocks_first_and_held_ones_last(
    open_log: Callable[..., Any], rng: random.Random
) -> None:
    cap = 4 << 20
    log = open_log(cap_bytes=cap, staging_bytes=1 << 20)
    blocks = chain(log, rng, 900, size=12_000)
    held = [key.link for key, _ in blocks[:20]]
    log.hold(held)
    for first in range(0, 900, 50):
        append_all(log, blocks[first : first + 50])
        log.touch([key.link for key, _ in blocks[20:40]])
        assert log.stats()["disk_bytes"] <= cap
    stats = log.stats()
    assert stats["evicted"] > 0
    assert stats["held"] == 20
    assert all(log.find_link(link) for link in held), "a held block was taken"
    assert all(log.find_link(key.link) for key, _ in blocks[-20:]), "the newest were taken"
    assert not any(log.find_link(key.link) for key, _ in blocks[60:100]), "older ones were kept"
    for entry in log.entries():
        number = int(entry.key.block_hash)
        try:
            assert log.read(entry) == blocks[number][1]
        except core.CoreError as error:  # taken between the two calls
            assert error.code == "not_found"


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_idle_segments_are_compressed_and_partial_reads_go_on(
    open_log: Callable[..., Any], rng: random.Random, codec: str
) -> None:
    if core.build_info()[codec] == "absent":
        pytest.skip(f"built without {codec}")
    log = open_log(segment_bytes=1 << 18, compress=codec, idle_ms=0)
    blocks = []
    namespace = log.add_namespace(NAMESPACE)
    for number in range(60):
        data = rng.randbytes(100) * 200 if number % 5 else rng.randbytes(20_000)
        blocks.append((seal(namespace, b"%d" % number, namespace, data), data))
    append_all(log, blocks)
    until(lambda: log.stats()["compressed"] >= 30)
    assert log.stats()["payload_bytes"] == sum(len(data) for _, data in blocks)
    assert log.close()
    for how in ({"read_only": True}, {}):  # one after the other: a writer tidies up
        where = open_log(**how)
        for key, data in blocks:
            entry = where.find_link(key.link)
            assert where.read(entry) == data
            assert where.read(entry, 777, 1000) == data[777:1777]
            if entry.codec != "none":
                assert entry.stored_bytes < 0.9 * len(data)


def test_a_dropped_block_stays_away_and_a_damaged_one_is_dropped(
    open_log: Callable[..., Any], rng: random.Random, path: Path
) -> None:
    log = open_log()
    blocks = chain(log, rng, 10)
    append_all(log, blocks)
    log.drop(log.find_link(blocks[0][0].link))
    entry = log.find_link(blocks[1][0].link)
    assert log.close()
    (segment,) = [name for name in path.iterdir() if name.name.startswith("seg-")]
    with segment.open("r+b") as file:
        file.seek(entry.offset + 4096 + 10)
        byte = file.read(1)
        file.seek(entry.offset + 4096 + 10)
        file.write(bytes([byte[0] ^ 1]))
    log = open_log()
    assert log.find_link(blocks[0][0].link) is None
    assert len(log.entries()) == 9
    entry = log.find_link(blocks[1][0].link)
    for start, size in ((0, None), (5, 10)):
        with pytest.raises(core.CoreError) as caught:
            log.read(entry, start, size)
        assert caught.value.code == "digest"
    assert log.find_link(blocks[1][0].link) is None
    assert log.append(*blocks[1]) == "ok"  # it can be stored again
    assert log.flush()
    assert log.read(log.find_link(blocks[1][0].link)) == blocks[1][1]


def test_files_are_closed_to_others_and_a_closed_log_says_so(
    open_log: Callable[..., Any], rng: random.Random, path: Path
) -> None:
    log = open_log()
    append_all(log, chain(log, rng, 5))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(name.stat().st_mode) for name in path.iterdir()} == {0o600}
    entry = log.entries()[0]
    assert log.close()
    for use in (log.flush, log.refresh, lambda: log.read(entry)):
        with pytest.raises(core.CoreError) as caught:
            use()
        assert caught.value.code == "closed"


def test_a_forked_child_may_not_use_its_parents_log(
    open_log: Callable[..., Any], rng: random.Random
) -> None:
    log = open_log()
    blocks = chain(log, rng, 5)
    append_all(log, blocks)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log.flush()
        except core.CoreError as error:
            code = 0 if error.code == "forked" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert log.read(log.find_link(blocks[0][0].link)) == blocks[0][1]


def wherever_it_goes(reader: Any, key: Any) -> bytes:
    """A stored block's payload by a reader that follows a writer which collects: each time it is gone it lies further on."""
    entry = reader.find_link(key.link)
    while True:
        assert entry is not None, f"block {key.position} is stored and unknown to the reader"
        try:
            payload: bytes = reader.read(entry)
            return payload
        except core.CoreError as error:
            assert error.code == "not_found"
        before = entry.segment
        reader.refresh()
        entry = reader.find_link(key.link)
        assert entry is None or entry.segment > before, "gone, and nothing took it away"


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)
