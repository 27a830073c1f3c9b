"""Open blocks on a real vLLM: a killed engine's requests go on with hardly a token recomputed, and a damaged tail costs its block."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import tempfile
from collections.abc import Callable, Iterator
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
#: What the ranks of a group keep: a tail every so many tokens.
EVERY = 8
#: Steps that may pass while the last tail is copied: one beside the copy, and one more on a busy machine.
BEHIND = 2


# NOTE: a copy may lag behind by many of this tiny model's steps where the machine is full, so this is nothing for `make test`.
@pytest.mark.long
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


@pytest.mark.long
def test_streams_that_lost_their_blocks_before_and_after_a_kill_go_on_with_their_tails(
    tiny_model: Path,
) -> None:
    with memory("short") as folder:
        seen = run(
            tiny_model,
            folder,
            ["alone", "killed_when_short_of_cache"],
            more={"tail_every": 1},
            num_gpu_blocks_override=36,
        )
    got = seen["killed_when_short_of_cache"]
    assert got["lost"] > got["lost_before"], "some lost their blocks in the next engine too"
    assert got["tokens"] == seen["alone"]["tokens"]
    assert got["finish"] == ["length"]
    assert seen["ledger_open"] == []
    # Two of them ran when the engine died, one had lost its blocks, the others had never had any.
    few = [each["tokens_recomputed"] <= NEVER_COVERED + BEHIND for each in got["resumed"]]
    assert sum(few) >= 2, (got["lengths"], got["resumed"])
    for each in got["resumed"]:
        assert each["tokens_recomputed"] <= BLOCK or not each["tokens_before"], each


@pytest.mark.long
def test_a_killed_rank_of_two_costs_each_stream_less_than_two_tails(tiny_model: Path) -> None:
    with memory("tp2") as folder:
        seen = run(
            tiny_model,
            folder,
            ["undisturbed", "worker_killed"],
            more={"tail_every": EVERY},
            tensor_parallel_size=2,
        )
    check_streams(seen, "worker_killed", streams=3)
    resumed = seen["worker_killed"]["resumed"]
    assert len(resumed) == 3
    for each in resumed:
        assert 1 <= each["tokens_recomputed"] < EVERY + NEVER_COVERED + BEHIND, each
    assert seen["ledger_open"] == []
    assert seen["segments_left"] == []


@contextlib.contextmanager
def memory(name: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"gft-tails-{name}-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
