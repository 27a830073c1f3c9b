"""Folders that nobody exported: links and digests fit, the rest is chosen to do harm. Refused as a whole, or imported as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from door import core

from dynamo_gpu_ft.cli import import_kv, tensor_files
from dynamo_gpu_ft.cli.main import main
from dynamo_gpu_ft.errors import PortableError
from dynamo_gpu_ft.kv import portable

pytest.importorskip("safetensors")

BYTES = 64


@pytest.fixture(autouse=True)
def small_arenas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_GPU_FT_ARENA_BYTES", "4MiB")
    monkeypatch.setenv("DYN_GPU_FT_LEDGER_BYTES", "64KiB")


def identity(record: bytes, parent: Any = None, **said: Any) -> Any:
    """A block of BYTES times the last byte of its name; `said` is what it says about itself."""
    fields = {
        "namespace_id": core.digest(record),
        "shard": 0,
        "position": parent.position + 1 if parent else 0,
        "epoch": 1,
        "payload_bytes": BYTES,
        "block_hash": b"a",
        "parent_link": parent.link if parent else core.digest(record),
        "link": bytes(16),
    } | said
    fields.setdefault("digest", core.digest(payload(fields["block_hash"])))
    return core.Identity(**fields | {"link": core.link_of(core.Identity(**fields))})


def payload(name: bytes) -> bytes:
    return name[-1:] * BYTES


def forge(folder: Path, spaces: Sequence[tuple[bytes, Sequence[Any]]]) -> Path:
    folder.mkdir(exist_ok=True)
    everything = [i for _, found in spaces for i in found]
    tensors = {portable.tensor_name(i): bytearray(payload(i.block_hash)) for i in everything}
    if tensors:
        tensor_files.write(folder / "kv", tensors, "uint8", (BYTES,), {})
    manifest = portable.Manifest(
        format=portable.FORMAT,
        version=portable.VERSION,
        digest=core.DIGEST,
        payload_bytes=BYTES,
        namespaces=[
            portable.Namespace(
                record=record.hex(), shown={}, blocks=[portable.entry(i, "kv") for i in found]
            )
            for record, found in spaces
        ],
    )
    (folder / portable.MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return folder


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What was said about a folder that must be refused before there is an arena."""

    def check(spaces: Sequence[tuple[bytes, Sequence[Any]]]) -> str:
        forge(folder / "out", spaces)
        assert main(["import", str(folder / "out"), "--arena", str(folder / "new")]) == 2
        assert not (folder / "new").exists()
        return capsys.readouterr().err

    return check


def test_what_no_arena_can_take_is_refused_before_there_is_one(refused: Any) -> None:
    assert "at least one block" in refused([])
    assert "at least one block" in refused([(b"A", [])])
    many = [(b"%d" % i, [identity(b"%d" % i)]) for i in range(portable.MAX_NAMESPACES + 1)]
    assert "at most 64 namespaces" in refused(many)
    long = b"x" * (portable.MAX_RECORD_BYTES + 1)
    assert "1 to 4096 bytes" in refused([(b"A", [identity(b"A")]), (long, [identity(long)])])
    assert "1 to 4096 bytes" in refused([(b"", [identity(b"")])])
    for epoch in (0, portable.MAX_EPOCH + 1, (1 << 64) - 1):
        assert "an epoch of" in refused([(b"A", [identity(b"A", epoch=epoch)])])


def test_the_limits_are_those_of_an_arena(make_arena: Any) -> None:
    arena = make_arena(slots=4)
    for i in range(portable.MAX_NAMESPACES - 1):
        arena.add_namespace(b"%d" % i)
    with pytest.raises(core.CoreError) as caught:
        arena.add_namespace(b"x" * (portable.MAX_RECORD_BYTES + 1))
    assert caught.value.code == "invalid"
    arena.add_namespace(b"x" * portable.MAX_RECORD_BYTES)
    with pytest.raises(core.CoreError) as caught:
        arena.add_namespace(b"one more")
    assert caught.value.code == "full"
    epoch = arena.begin_epoch(os.urandom(16), floor=portable.MAX_EPOCH)
    assert arena.begin_epoch(os.urandom(16)) == epoch + 1


def test_a_namespace_that_is_there_twice_is_refused(refused: Any) -> None:
    assert "each namespace once" in refused([(b"A", [identity(b"A")]), (b"A", [identity(b"A")])])


def test_two_blocks_of_one_name_behind_one_prefix_are_refused(refused: Any) -> None:
    first = identity(b"A")
    second = identity(b"A", epoch=2)
    assert "one block of each name" in refused([(b"A", [first, second, identity(b"A", second)])])
    assert "one block of each name" in refused([(b"A", [first, first])])


def test_more_shards_than_an_arena_has_lanes_are_imported_one_after_the_other(
    folder: Path,
) -> None:
    blocks = [identity(b"A", shard=s, block_hash=b"%d" % (s % 3)) for s in range(200)]
    forge(folder / "out", [(b"A", blocks), (b"B", [identity(b"B")])])
    assert main(["import", str(folder / "out"), "--arena", str(folder / "new")]) == 0
    arena = core.Arena.open(str(folder / "new"), read_only=True)
    found = {core.read_block(arena, s.slot, bytearray(BYTES)).link for s in arena.scan()}
    assert found == {i.link for i in blocks} | {identity(b"B").link}


def test_text_that_is_no_text_and_files_that_are_none_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = forge(folder / "out", [(b"A", [identity(b"A")])])

    def said() -> str:
        assert main(["import", str(out), "--arena", str(folder / "new")]) == 2
        assert not (folder / "new").exists()
        return capsys.readouterr().err

    whole = (out / portable.MANIFEST).read_bytes()
    (out / portable.MANIFEST).write_bytes(whole.replace(b"dynamo", b"\xa1dyna"))
    assert "a manifest as export writes it" in said()
    (out / portable.MANIFEST).write_bytes(whole.replace(b"shard0", b"\\u001b[2J"))
    assert "\x1b" not in said()
    for name in (portable.MANIFEST, "kv"):
        forge(out, [(b"A", [identity(b"A")])])
        (out / name).unlink()
        os.mkfifo(out / name)  # opening it would wait for somebody to write
        assert "prw" in said()
        (out / name).unlink()
        (out / name).symlink_to("/dev/zero")
        assert "crw" in said()
        (out / name).unlink()


def test_a_folder_that_changes_after_it_was_verified_harms_no_slot(folder: Path) -> None:
    first = identity(b"A")
    out = forge(folder / "out", [(b"A", [first, identity(b"A", first, block_hash=b"b")])])
    manifest = portable.parse((out / portable.MANIFEST).read_bytes(), "manifest")
    spaces = import_kv.verify(out, manifest)
    names = [portable.tensor_name(i) for i in spaces[0]]
    longer = bytearray(b"b" * BYTES * 1000)
    tensor_files.write(out / "kv", {names[0]: longer, names[1]: longer}, "uint8", (64_000,), {})
    with pytest.raises(PortableError, match="payloads of 64 bytes") as caught:
        import_kv.fill(out, manifest, spaces, folder / "new")
    assert "sealed by then is whole" in str(caught.value)
    arena = core.Arena.open(str(folder / "new"), read_only=True)
    assert arena.counts()["sealed"] == 0
