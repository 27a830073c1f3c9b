"""Open blocks on a real vLLM that is short of KV cache: requests lose their blocks and come back, leave, and the engine dies.

What was left behind by the dead is then attacked: the same prompts, going on otherwise.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from harness import OfflineEngine, prompt

from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv.tail import name_of

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]

BLOCK, LENGTH, MOST = 32, 300, 100
PROMPTS = [prompt(1, LENGTH), prompt(2, 297), prompt(3, 291), prompt(4, 305)]
#: Three prompts fit, and not with all that they generate: 3 x 13 blocks.
SMALL = {"num_gpu_blocks_override": 36}
#: A whole block and no open one: the request that makes the last step of those before it known. In one process vLLM makes no step
#: for that alone.
LAST = prompt(9, BLOCK)
#: In float32 a row computed in another batch differs by rounding only; another token's row differs wherever one looks.
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def names_of(ids: Sequence[int]) -> list[bytes]:
    """vLLM's names of the whole blocks of `ids`."""
    from dynamo_gpu_ft.engines.vllm.hashes import block_hashes

    return block_hashes("sha256", list(ids), BLOCK)


@dataclass(frozen=True)
class Block:
    """A block of the arena. `tokens` of it are meant: all of them, or those of a tail."""

    position: int
    tokens: int
    payload: bytes

    def rows(self) -> Any:
        """[layer and head, token, K then V]. The tiny model has 16 pairs of layer and head, and vLLM's CPU kernel for float32
        keeps K by columns and V by rows (`engines.vllm.tensors`)."""
        parts = numpy.frombuffer(self.payload, numpy.float32).reshape(16, 2, -1)
        k, v = parts[:, 0].reshape(16, -1, BLOCK), parts[:, 1].reshape(16, BLOCK, -1)
        return numpy.concatenate([k.transpose(0, 2, 1), v], axis=2)


class Arena:
    """What lies in the arena of an engine, by name; every block must be one that one of `texts` could have left."""

    def __init__(self, path: Path, texts: Sequence[Sequence[int]]) -> None:
        core = native.load()
        arena = core.Arena.open(str(path), read_only=True)
        legal: dict[bytes, int] = {}
        for ids in texts:
            names = names_of(ids)
            legal |= dict.fromkeys(names, BLOCK)
            for position in range(len(ids) // BLOCK + 1):
                parent, rest = names[position - 1] if position else None, ids[position * BLOCK :]
                for count in range(1, min(BLOCK, len(rest) + 1)):
                    legal[name_of(parent, rest[:count])] = count
        self.blocks: dict[bytes, Block] = {}
        self.held: set[bytes] = set()
        for slot in arena.scan():
            if slot.state != "sealed" or slot.block_hash in names_of(LAST):
                continue
            assert slot.block_hash in legal, f"a block at position {slot.position} of no request"
            payload = bytearray(arena.slot_bytes)
            core.read_block(arena, slot.slot, payload)
            tokens = legal[slot.block_hash]
            self.blocks[slot.block_hash] = Block(slot.position, tokens, bytes(payload))
            if slot.held:
                self.held.add(slot.block_hash)
        arena.close()

    def tails(self) -> list[bytes]:
        return [name for name, block in self.blocks.items() if block.tokens < BLOCK]

    def tail_of(self, ids: Sequence[int]) -> int:
        """How many tokens the longest tail of the open block of `ids` covers, 0 for none."""
        whole = len(ids) // BLOCK
        parent, rest = names_of(ids)[whole - 1], ids[whole * BLOCK :]
        found = (c for c in range(len(rest), 0, -1) if name_of(parent, rest[:c]) in self.blocks)
        return next(found, 0)


@dataclass
class World:
    """One engine that ran undisturbed, and one that died short of cache; the files of both."""

    expected: list[list[int]]
    undisturbed: Arena
    settings: dict[str, Any]
    so_far: list[list[int]]
    preempted: int
    left: Arena
    end: int  # of the tail of the first request, in tokens
    attacks: dict[str, list[int]]
    wanted: dict[str, list[int]]
    folder: Path
    model: Path

    def texts(self) -> list[list[int]]:
        return [ids + new for ids, new in zip(PROMPTS, self.expected, strict=True)]


def arena_file(settings: dict[str, Any]) -> Path:
    (path,) = Path(settings["arena_dir"]).glob("*.arena")
    return path


def attacks(ids: list[int], end: int) -> dict[str, list[int]]:
    """Texts that are like `ids` up to somewhere in its open block, of which a tail covers the tokens before `end`."""
    begin = end // BLOCK * BLOCK
    assert end - begin >= 3, "a tail to attack"
    other = [(token + 17) % 990 + 5 for token in ids]
    swapped = [*ids[: end - 2], ids[end - 1], ids[end - 2]]
    return {
        "another last token": [*ids[: end - 1], other[end - 1], other[0]],
        "another first token": [*ids[:begin], other[begin], *ids[begin + 1 : end], other[0]],
        "two tokens swapped": [*swapped, other[0]],
        "one token less, then others": [*ids[: end - 1], *other[:7]],
        "the open block behind another one": [*ids[: begin - 1], other[0], *ids[begin:end], 7],
        "the open block behind another prompt": [*prompt(9)[:288], *ids[begin:end], 7],
        "the prompt alone": ids[:LENGTH],
    }


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tails", numbered=True)
    memory = Path("/dev/shm") / f"gft-{folder.name}-{folder.parent.name}"

    def settings(name: str, **more: Any) -> dict[str, Any]:
        (memory / name).mkdir(parents=True)
        sizes = {"arena_bytes": "128MiB", "ledger_bytes": "1MiB", "restore_by_cost": False}
        return {"arena_dir": str(memory / name), **sizes, **more}

    try:
        plain, short = settings("plain"), settings("short", tail_every=1)
        with OfflineEngine(tiny_model, folder / "plain", settings=plain) as engine:
            expected = engine.run(PROMPTS, MOST)["tokens"]
            texts = [ids + new for ids, new in zip(PROMPTS, expected, strict=True)]
            undisturbed = Arena(arena_file(plain), texts)
            with OfflineEngine(tiny_model, folder / "dies", settings=short, **SMALL) as dies:
                dead = dies.run(PROMPTS, MOST, die={"tokens": 200, "preempted": 1})
                dies.process.wait(30)
            left = Arena(arena_file(short), texts)
            ids = [*PROMPTS[0], *dead["tokens"][0]]
            end = len(ids) // BLOCK * BLOCK + left.tail_of(ids)
            hostile = attacks(ids, end)
            wanted = {name: engine.run([text], 8)["tokens"][0] for name, text in hostile.items()}
        yield World(
            expected,
            undisturbed,
            short,
            dead["tokens"],
            dead["preempted"],
            left,
            end,
            hostile,
            wanted,
            memory,
            tiny_model,
        )
    finally:
        shutil.rmtree(memory, ignore_errors=True)


def test_every_tail_that_a_dead_engine_leaves_holds_the_rows_of_its_own_tokens(
    world: World,
) -> None:
    assert world.preempted >= 1
    for got, expected in zip(world.so_far, world.expected, strict=True):
        assert got == expected[: len(got)]
    tails = world.left.tails()
    assert tails
    texts = world.texts()
    for name in tails:
        block = world.left.blocks[name]
        begin = block.position * BLOCK
        (ids,) = {
            tuple(ids)
            for ids in texts
            if name_of(names_of(ids)[block.position - 1], ids[begin : begin + block.tokens]) == name
        }
        whole = world.undisturbed.blocks[names_of(ids)[block.position]]
        mine, other = block.rows()[:, : block.tokens], whole.rows()[:, : block.tokens]
        assert numpy.allclose(mine, other, **CLOSE)
        assert not numpy.allclose(mine[:, 1:], other[:, :-1], **CLOSE), "rows that do not differ"


def copy_of(world: World, name: str) -> dict[str, Any]:
    """Settings of an engine that comes after the dead one, on a copy of what that one left."""
    folder = world.folder / name
    folder.mkdir()
    shutil.copy(arena_file(world.settings), folder)
    return {**world.settings, "arena_dir": str(folder)}


def test_requests_of_a_dead_engine_go_on_with_their_tails_and_lose_their_blocks_again(
    world: World, tmp_path: Path
) -> None:
    going_on = [ids + got for ids, got in zip(PROMPTS, world.so_far, strict=True)]
    rest = [MOST - len(got) for got in world.so_far]
    chosen = copy_of(world, "next")
    with OfflineEngine(
        world.model, tmp_path / "log", settings=chosen, num_gpu_blocks_override=38
    ) as engine:
        reply = engine.run(going_on, rest)
        assert reply["preempted"] >= 1
        assert engine.run([LAST], 1)["not_protected"] == []
    for number, new in enumerate(reply["tokens"]):
        assert world.so_far[number] + new == world.expected[number]
    kept = [world.left.tail_of(ids[: len(ids) - 1]) for ids in going_on]
    assert sum(map(bool, kept)) >= 2, "tails of requests that were running"
    for ids, tokens, cached in zip(going_on, kept, reply["cached"], strict=True):
        if tokens:
            assert cached == len(ids) // BLOCK * BLOCK + tokens
    after = Arena(arena_file(chosen), world.texts())
    # What nobody came back for keeps the hold of the dead for one more engine.
    assert after.held <= set(world.left.tails()), "no request is open"
    used = {name for name in world.left.tails() if name not in after.blocks}
    assert len(used) >= sum(map(bool, kept)), "a tail goes with the request that went on from it"


def test_a_request_that_goes_on_otherwise_never_gets_a_dead_requests_tail(
    world: World, tmp_path: Path
) -> None:
    ids, end = [*PROMPTS[0], *world.so_far[0]], world.end
    chosen = copy_of(world, "attacked")
    known = [[*each, *got] for each, got in zip(PROMPTS, world.so_far, strict=True)]
    with OfflineEngine(world.model, tmp_path / "log", settings=chosen) as engine:
        for name, text in world.attacks.items():
            reply = engine.run([text], 8)
            assert reply["tokens"] == [world.wanted[name]], name
            assert reply["cached"][0] <= max(alike(text, each) for each in known), name
            known.append([*text, *reply["tokens"][0]])
        control = engine.run([[*ids[:end], ids[0]]], 8)
        assert control["cached"] == [end], "the tail was there all the time"


def alike(a: Sequence[int], b: Sequence[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def test_requests_that_end_or_leave_in_any_state_leave_neither_tail_nor_hold(
    world: World, tmp_path: Path, settings: Callable[..., dict[str, Any]]
) -> None:
    chosen = settings(tail_every=1)
    texts = world.texts()
    with OfflineEngine(world.model, tmp_path / "log", settings=chosen, **SMALL) as engine:
        for state in ("RUNNING", "PREEMPTED", "WAITING_FOR_REMOTE_KVS"):
            reply = engine.run(PROMPTS, MOST, abort_in=state)
            assert reply["aborted"] is not None, f"no request was ever {state}"
            for number, new in enumerate(reply["tokens"]):
                assert new == world.expected[number][: len(new)], state
                assert number == reply["aborted"] or len(new) == MOST
            engine.run([LAST], 1)
            found = Arena(arena_file(chosen), texts)
            assert found.tails() == [], f"after a request left {state}"
            assert found.held == set(), f"after a request left {state}"
        otherwise = [*PROMPTS[0][:290], *PROMPTS[1][290:]]
        reply = engine.run([otherwise], 8)
        assert reply["cached"] == [288]
    assert reply["not_protected"] == []
