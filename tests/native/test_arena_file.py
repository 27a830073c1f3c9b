"""The arena as a file: made whole or not at all, opened only when it is sound, shared by racing ranks.

First step of every flow; what is refused here never reaches a reader.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from door import SLOT_BYTES, code_of, core

SIZES = {"slot_bytes": SLOT_BYTES, "slots": 8, "ledger_bytes": 8192}


def test_a_new_arena_is_private_fully_allocated_and_of_the_size_it_says(folder: Path) -> None:
    arena = core.Arena.create(str(folder / "a"), **SIZES)
    status = os.stat(folder / "a")
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == arena.file_bytes
    assert status.st_blocks * 512 >= arena.file_bytes
    assert arena.slot_bytes == SLOT_BYTES
    assert arena.slots == 8
    assert arena.ledger_bytes == 8192
    assert arena.path == str(folder / "a")
    assert arena.digest_name == core.DIGEST
    assert arena.epoch == 0
    assert {state: n for state, n in arena.counts().items() if n} == {"empty": 8}
    assert arena.base_address() > 0


def test_creating_leaves_nothing_but_the_arena(folder: Path) -> None:
    core.Arena.create(str(folder / "a"), **SIZES)
    assert [entry.name for entry in folder.iterdir()] == ["a"]


def test_creating_over_an_existing_file_is_refused(folder: Path) -> None:
    core.Arena.create(str(folder / "a"), **SIZES)
    assert code_of(core.Arena.create, str(folder / "a"), **SIZES) == "exists"


def test_an_arena_larger_than_its_file_system_is_refused_with_both_sizes(folder: Path) -> None:
    with pytest.raises(core.CoreError, match=r"wanted, \d+ free") as caught:
        core.Arena.create(str(folder / "a"), slot_bytes=1 << 30, slots=1 << 13, ledger_bytes=8192)
    assert caught.value.code == "no_space"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"slot_bytes": 0},
        {"slots": 0},
        {"ledger_bytes": 0},
        {"slots": 1 << 27},
        {"slot_bytes": 1 << 60},
        {"slot_bytes": 1 << 36, "slots": 1 << 25},
    ],
)
def test_a_geometry_out_of_range_is_refused(folder: Path, wrong: dict[str, int]) -> None:
    assert code_of(core.Arena.create, str(folder / "a"), **{**SIZES, **wrong}) == "invalid"


def test_a_path_that_cannot_hold_a_file_is_refused(folder: Path) -> None:
    assert code_of(core.Arena.create, str(folder / "no" / "a"), **SIZES) == "io"
    assert code_of(core.Arena.create, str(folder) + "/", **SIZES) == "invalid"
    assert code_of(core.Arena.open, str(folder / "a")) == "not_found"
    assert code_of(core.Arena.open, str(folder)) in ("io", "invalid")


def test_a_link_is_not_followed(folder: Path) -> None:
    core.Arena.create(str(folder / "a"), **SIZES)
    (folder / "link").symlink_to(folder / "a")
    assert code_of(core.Arena.open, str(folder / "link")) == "io"


def test_a_file_that_others_may_write_is_refused(folder: Path) -> None:
    core.Arena.create(str(folder / "a"), **SIZES)
    os.chmod(folder / "a", 0o660)
    assert code_of(core.Arena.open, str(folder / "a")) == "invalid"


@pytest.mark.parametrize("size", [0, 1, 127, 128, 4096, -1])
def test_a_file_of_another_length_is_damaged(folder: Path, size: int) -> None:
    path = folder / "a"
    arena = core.Arena.create(str(path), **SIZES)
    os.truncate(path, size if size >= 0 else arena.file_bytes - 1)
    assert code_of(core.Arena.open, str(path)) == "damaged"


def test_an_arena_cut_while_in_use_is_an_error_and_not_a_signal(arena: Any, writer: Any) -> None:
    os.truncate(arena.path, 8192)
    assert code_of(arena.counts) == "damaged"
    assert code_of(arena.scan) == "damaged"
    assert code_of(arena.read_ledger) == "damaged"
    assert code_of(writer.claim, block_hash=b"x", parent_hash=None, position=0) == "damaged"


@pytest.mark.parametrize("offset", [0, 8, 16, 24, 32, 40, 48, 64, 100, 124])
def test_any_changed_byte_of_the_header_is_refused(folder: Path, offset: int) -> None:
    path = folder / "a"
    core.Arena.create(str(path), **SIZES)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    assert code_of(core.Arena.open, str(path)) == ("version" if offset == 8 else "damaged")


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for bit in (byte >> i & 1 for byte in data for i in range(8)):
        crc = crc >> 1 ^ (0x82F63B78 if (crc ^ bit) & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_a_digest_that_this_build_lacks_is_a_mismatch_with_the_remedy(folder: Path) -> None:
    path = folder / "a"
    core.Arena.create(str(path), **SIZES)
    header = bytearray(path.read_bytes()[:128])
    header[48:64] = b"other".ljust(16, b"\0")
    header[124:128] = crc32c(bytes(header[:124])).to_bytes(4, "little")
    with path.open("r+b") as file:
        file.write(header)
    with pytest.raises(core.CoreError, match="other.*libxxhash-dev") as caught:
        core.Arena.open(str(path))
    assert caught.value.code == "mismatch"


def test_another_slot_size_is_a_mismatch_that_names_both(folder: Path) -> None:
    core.Arena.create(str(folder / "a"), **SIZES)
    with pytest.raises(core.CoreError, match=r"1000 bytes, 2000") as caught:
        core.Arena.open_or_create(str(folder / "a"), slot_bytes=2000, slots=8, ledger_bytes=8192)
    assert caught.value.code == "mismatch"


def test_open_or_create_keeps_what_is_there(folder: Path) -> None:
    core.Arena.create(str(folder / "a"), **SIZES).add_namespace(b"first")
    again = core.Arena.open_or_create(
        str(folder / "a"), slot_bytes=SLOT_BYTES, slots=99, ledger_bytes=1
    )
    assert again.namespaces() == [b"first"]
    assert again.slots == 8


def test_racing_ranks_all_get_the_same_arena(folder: Path) -> None:
    path, start, arenas = str(folder / "a"), threading.Barrier(8), []

    def rank() -> None:
        start.wait(10)
        arenas.append(
            core.Arena.open_or_create(path, slot_bytes=SLOT_BYTES, slots=2000, ledger_bytes=8192)
        )

    threads = [threading.Thread(target=rank) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(arenas) == 8
    arenas[0].add_namespace(b"seen by all")
    assert all(arena.namespaces() == [b"seen by all"] for arena in arenas)
    assert [entry.name for entry in folder.iterdir()] == ["a"]


def test_a_half_made_arena_of_a_dead_creator_is_made_again(folder: Path) -> None:
    (folder / "a.new").touch(0o600)
    (folder / "a.new").write_bytes(b"x" * 5000)
    arena = core.Arena.create(str(folder / "a"), **SIZES)
    assert arena.counts()["empty"] == 8
    assert [entry.name for entry in folder.iterdir()] == ["a"]


def test_a_read_only_arena_refuses_every_change(arena: Any, writer: Any) -> None:
    arena.add_namespace(b"there")
    reader = core.Arena.open(arena.path, read_only=True)
    assert reader.add_namespace(b"there") == 1
    assert code_of(reader.add_namespace, b"new") == "read_only"
    assert code_of(reader.begin_epoch, bytes(16)) == "read_only"
    assert code_of(reader.attach_writer, shard=0, token=bytes(16), namespace=0) == "read_only"
    assert code_of(reader.open_ledger) == "read_only"
    assert reader.counts()["empty"] == arena.counts()["empty"]
    assert reader.read_ledger().end == "clean"


def test_a_closed_arena_says_so_and_its_writer_goes_on(arena: Any, writer: Any) -> None:
    arena.close()
    arena.close()
    assert code_of(arena.counts) == "closed"
    assert writer.claim(block_hash=b"x", parent_hash=None, position=0) is not None


def test_namespaces_are_numbered_once_and_limited(arena: Any) -> None:
    assert arena.add_namespace(b"one") == 0
    assert arena.add_namespace(b"x" * 4096) == 1
    assert arena.add_namespace(b"one") == 0
    assert code_of(arena.add_namespace, b"") == "invalid"
    assert code_of(arena.add_namespace, b"x" * 4097) == "invalid"
    for i in range(62):
        assert arena.add_namespace(b"%d" % i) == i + 2
    assert code_of(arena.add_namespace, b"one too many") == "full"
    assert len(core.Arena.open(arena.path).namespaces()) == 64


def test_digest_is_sixteen_bytes_and_needs_contiguous_data() -> None:
    assert len(core.digest(b"")) == 16
    assert core.digest(b"abc") == core.digest(memoryview(b"abc"))
    assert core.digest(b"abc") != core.digest(b"abd")
    with pytest.raises(ValueError, match="contiguous"):
        core.digest(memoryview(b"abcdef")[::2])
    assert set(core.build_info()) >= {"version", "digest", "digest_variant", "xxhash", "compiler"}


def test_importing_the_package_of_the_core_loads_nothing(make_arena: Callable[..., Any]) -> None:
    code = "import sys, dynamo_gpu_ft.native; print('dynamo_gpu_ft.native._core' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert out.stdout.strip() == "False"


def test_a_namespace_record_without_a_byte_is_damage_even_under_a_fitting_checksum(
    arena: Any,
) -> None:
    arena.add_namespace(b"model")
    with open(arena.path, "r+b") as file:
        file.seek(5 * 4096)  # the first record: length, checksum
        file.write(bytes(4) + bytes.fromhex("c74b6748"))  # CRC32C of four zero bytes
    assert code_of(arena.namespaces) == "damaged"
