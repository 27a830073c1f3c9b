"""The `inspect` command on real arenas: what it shows, what it refuses, and the exit codes of both."""

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli.main import main
from dynamo_gpu_ft.recovery.ledger import LedgerWriter

SLOT_BYTES, MARK = 8192, b"the payload of block two"


def make_arena(path: Path) -> None:
    """One namespace, shard 0 with three sealed blocks, one open and one finished request."""
    core = native.load()
    arena = core.Arena.create(str(path), slot_bytes=SLOT_BYTES, slots=8, ledger_bytes=1 << 16)
    token = b"t" * 16
    record = json.dumps({"version": 1, "engine": {"model": "tiny", "block": 32}}).encode()
    namespace = arena.add_namespace(record)
    arena.begin_epoch(token)
    writer = arena.attach_writer(shard=0, token=token, namespace=namespace)
    parent = None
    for position, payload in enumerate((b"one", MARK, b"three")):
        block_hash = bytes([position + 1]) * 32
        claim = writer.claim(block_hash=block_hash, parent_hash=parent, position=position)
        assert claim is not None
        ctypes.memmove(claim.address, payload.ljust(SLOT_BYTES, b"."), SLOT_BYTES)
        claim.seal()
        parent = block_hash
    ledger = LedgerWriter(arena)
    for request_id in ("open", "done"):
        ledger.admitted(request_id, [1, 2, 3], {}, "tiny")
        ledger.tokens(request_id, [4, 5])
    ledger.finished("done", "stop")
    ledger.close()
    writer.close()
    arena.close()


@pytest.fixture
def arena(memory_folder: Path) -> Path:
    path = memory_folder / "dynamo_gpu_ft-test.arena"
    make_arena(path)
    return path


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    """Exit code, parsed answer, standard error."""
    status = main(["inspect", *arguments, "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out), captured.err


def spoil(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


def test_it_shows_namespaces_blocks_and_open_requests(
    arena: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, answer, _ = inspect(capsys, str(arena))
    assert status == 0
    assert answer["namespaces"] == [{"version": 1, "engine": {"model": "tiny", "block": 32}}]
    (blocks,) = answer["blocks"]
    assert (blocks["shard"], blocks["state"], blocks["blocks"]) == (0, "sealed", 3)
    assert blocks["bytes"] == 3 * SLOT_BYTES
    assert answer["open_requests"] == [
        {"request_id": "open", "prompt_tokens": 3, "generated_tokens": 2}
    ]
    assert answer["ledger"]["end"] == "clean"
    assert answer["classes"] == {"pinned": 0, "open": 3, "protected": 0, "probation": 0}
    assert answer["usage"] == [{"namespace": 0, "used": 3, "quota": None, "evicted_for_quota": 0}]


def test_it_shows_what_the_policy_would_keep_and_quotas(
    arena: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = native.load().Arena.open(str(arena))
    opened.begin_epoch(b"u" * 16)
    opened.begin_epoch(b"v" * 16)  # the holds of epoch 1 are over
    writer = opened.attach_writer(shard=0, token=b"v" * 16, namespace=0)
    writer.pin([bytes([1]) * 32], until=2**32 - 1)
    writer.touch([bytes([2]) * 32])
    opened.set_quota(0, 3)
    _, answer, _ = inspect(capsys, str(arena))
    assert answer["classes"] == {"pinned": 1, "open": 0, "protected": 1, "probation": 1}
    assert answer["usage"][0]["quota"] == 3
    assert main(["inspect", str(arena)]) == 0
    text = capsys.readouterr().out
    assert "1 pinned, 0 open, 1 protected, 1 probation" in text
    assert "3 slots of 3, 0 evicted for it" in text


def test_the_text_says_the_same(arena: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(arena), "--verify"]) == 0
    text = capsys.readouterr().out
    for part in ("model=tiny", "3 sealed", "open requests: 1", "verified 3 payloads: 3 ok"):
        assert part in text


def test_an_arena_is_found_by_its_name_and_by_default_the_configured_one(
    arena: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_GPU_FT_ARENA_DIR", str(arena.parent))
    assert inspect(capsys, "test")[1]["path"] == str(arena)
    monkeypatch.setenv("DYN_GPU_FT_ARENA_NAME", "test")
    assert inspect(capsys)[1]["path"] == str(arena)


def test_it_reads_only(arena: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = arena.read_bytes()
    inspect(capsys, str(arena), "--verify")
    assert arena.read_bytes() == before


def test_an_arena_that_is_not_there_could_not_be_run_on_and_the_others_are_named(
    arena: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, answer, err = inspect(capsys, str(arena.parent / "dynamo_gpu_ft-other.arena"))
    assert (status, answer["error"]) == (2, "not_found")
    assert arena.name in err


def test_a_payload_whose_bytes_changed_is_a_problem_and_is_named(
    arena: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(arena, arena.read_bytes().index(MARK))
    assert inspect(capsys, str(arena))[0] == 0, "without --verify no payload is read"
    status, answer, _ = inspect(capsys, str(arena), "--verify")
    assert status == 1
    (bad,) = answer["verify"]["bad"]
    assert bad["position"] == 1
    assert answer["verify"]["results"]["ok"] == 2


@pytest.mark.parametrize("offset", [0, 8, 16, 24])
def test_a_damaged_header_is_refused_with_place_and_reason(
    arena: Path, capsys: pytest.CaptureFixture[str], offset: int
) -> None:
    spoil(arena, offset)
    status, answer, err = inspect(capsys, str(arena))
    assert status == 1
    assert answer["error"] in ("damaged", "version", "mismatch")
    assert str(arena) in err


@pytest.mark.parametrize("size", [0, 100, 4096])
def test_a_truncated_arena_is_refused(
    arena: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    os.truncate(arena, size)
    status, answer, _ = inspect(capsys, str(arena))
    assert (status, answer["error"]) == (1, "damaged")
