"""Open blocks on a real vLLM: a killed engine's requests go on with hardly a token recomputed, and a damaged tail costs its block."""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import OfflineEngine, prompt
from test_vllm_recovery import check_streams, run

from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv.tail import name_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BLOCK, WHOLE = 32, 9
#: 300 tokens: nine whole blocks, and twelve tokens in the open one. One of them is left to compute.
PROMPTS = [prompt(1), prompt(2)]
COVERED = 11

#: Tokens of a request that no tail can cover when the engine is killed: the newest one, which no step has computed yet, and, with
#: asynchronous scheduling, the one before, which was not known when its step was planned.
NEVER_COVERED = 2
#: Steps that may pass while the last tail is copied: one beside the copy, and one more on a busy machine.
BEHIND = 2


def test_a_killed_engine_with_tails_recomputes_the_last_steps_only(tiny_model: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="gft-tails-", dir="/dev/shm"))
    try:
        seen = run(
            tiny_model,
            folder,
            ["undisturbed", "engine_and_worker_killed"],
            more={"tail_every": 1},
        )
        (path,) = folder.glob("*.arena")
        left = native.load().Arena.open(str(path), read_only=True).scan()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    check_streams(seen, "engine_and_worker_killed", streams=3)
    resumed = seen["engine_and_worker_killed"]["resumed"]
    assert len(resumed) == 3
    for each in resumed:
        assert 1 <= each["tokens_recomputed"] <= NEVER_COVERED + BEHIND, each
    assert not [s for s in left if s.position * BLOCK >= 400], "finished requests left tails"


def craft(path: Path, parents: list[bytes], damaged: set[int]) -> list[bytes]:
    """Seals, as a tail of each prompt, the bytes of the block that followed it; then spoils those of `damaged`."""
    core = native.load()
    arena = core.Arena.open(str(path))
    arena.begin_epoch(token := b"crafted-tails-16")
    writer = arena.attach_writer(shard=0, token=token, namespace=0)
    names = []
    for number, ids in enumerate(PROMPTS):
        children = [s for s in arena.scan() if s.position == WHOLE]
        parent, payload = parents[number], bytearray(arena.slot_bytes)
        for child in children:
            try:
                writer.find(block_hash=child.block_hash, parent_hash=parent)
            except core.CoreError:
                continue
            core.read_block(arena, child.slot, payload)
        names.append(name_of(parent, ids[WHOLE * BLOCK :][:COVERED]))
        claim = writer.claim(block_hash=names[-1], parent_hash=parent, position=WHOLE)
        ctypes.memmove(claim.address, bytes(payload), len(payload))
        claim.seal()
        if number in damaged:
            wrong = bytes(byte ^ 0x55 for byte in payload)
            ctypes.memmove(claim.address, wrong, len(wrong))
    writer.close()
    arena.close()
    return names


def last_whole_blocks(folder: str) -> set[bytes]:
    """Names of the blocks that are the last whole one of a prompt."""
    (path,) = Path(folder).glob("*.arena")
    arena = native.load().Arena.open(str(path), read_only=True)
    found = {s.block_hash for s in arena.scan() if s.position == WHOLE - 1}
    arena.close()
    return found


@pytest.mark.long
def test_a_tail_is_loaded_and_a_damaged_one_is_recomputed_with_its_block(
    tiny_model: Path, tmp_path: Path, settings: Callable[..., dict[str, Any]]
) -> None:
    chosen = settings(tail_every=1)
    with OfflineEngine(tiny_model, tmp_path / "save", settings=chosen) as engine:
        expected, parents = [], []
        for each in PROMPTS:
            expected += engine.run([each])["tokens"]
            parents += last_whole_blocks(chosen["arena_dir"]) - set(parents)
        engine.kill()
    (path,) = Path(chosen["arena_dir"]).glob("*.arena")
    names = craft(path, parents, damaged={1})
    with OfflineEngine(tiny_model, tmp_path / "load", settings=chosen) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["not_protected"] == []
    assert reply["cached"][0] == WHOLE * BLOCK + COVERED
    arena = native.load().Arena.open(str(path), read_only=True)
    assert not {s.block_hash for s in arena.scan()} & set(names), "tails of ended requests stay"
    arena.close()
