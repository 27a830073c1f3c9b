"""The connector on a real vLLM: what is saved comes back in a new process; what is damaged, foreign or missing does not."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import CONNECTOR, OfflineEngine, prompt

from dynamo_gpu_ft import native
from dynamo_gpu_ft.kv import namespace
from dynamo_gpu_ft.kv.geometry import ShardLayout

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

Settings = Callable[..., dict[str, Any]]
PROMPTS = [prompt(1), prompt(2)]
#: 300 prompt tokens in blocks of 32, of which at least one token must be computed: nine whole blocks.
WHOLE = 9 * 32


#: More than a small KV cache can hold at once: forty blocks for six requests that end with eleven blocks each.
CROWD = [prompt(seed, 200) for seed in range(30, 36)]
CROWD_TOKENS, SMALL_CACHE = 150, 40


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[int]]]:
    """Tokens of the undisturbed engine without the connector."""
    log = tmp_path_factory.mktemp("plain") / "log"
    with OfflineEngine(tiny_model, log, settings=None) as engine:
        return {
            "prompts": engine.run(PROMPTS)["tokens"],
            "crowd": engine.run(CROWD, CROWD_TOKENS)["tokens"],
        }


@pytest.fixture(scope="module")
def expected(plain: dict[str, list[list[int]]]) -> list[list[int]]:
    return plain["prompts"]


@pytest.fixture(scope="module")
def saved(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, expected: list[list[int]]
) -> Iterator[Path]:
    """The arena of an engine that answered PROMPTS and was then killed with SIGKILL."""
    folder = Path(tempfile.mkdtemp(prefix="gft-saved-", dir="/dev/shm"))
    chosen = {"arena_dir": str(folder), "arena_bytes": "128MiB", "ledger_bytes": "1MiB"}
    engine = OfflineEngine(tiny_model, tmp_path_factory.mktemp("saved") / "log", settings=chosen)
    first = engine.run(PROMPTS)
    engine.kill()
    assert first["tokens"] == expected
    assert first["not_protected"] == []
    (path,) = folder.glob("*.arena")
    yield path
    shutil.rmtree(folder)


def copied(saved: Path, settings: dict[str, Any]) -> Path:
    """A private copy of the saved arena at the place where `settings` look for it."""
    return Path(shutil.copy(saved, settings["arena_dir"]))


def damage_payloads(path: Path, position: int) -> int:
    """Flips one byte in the middle of the payload of every block at `position`; returns how many."""
    core = native.load()
    arena = core.Arena.open(str(path))
    token = b"damage-damage-16"
    arena.begin_epoch(token)
    writer = arena.attach_writer(shard=0, token=token, namespace=0)
    hashes = {
        p: [s.block_hash for s in arena.scan() if s.position == p] for p in (position - 1, position)
    }
    damaged = 0
    for child, parent in itertools.product(hashes[position], hashes[position - 1]):
        try:
            read = writer.find(block_hash=child, parent_hash=parent)
        except core.CoreError:
            continue
        ctypes.c_uint8.from_address(read.address + read.payload_bytes // 2).value ^= 0x40
        assert arena.verify(read.slot) == "digest"
        damaged += 1
    writer.close()
    arena.close()
    return damaged


def test_kv_of_a_killed_process_is_loaded_and_damaged_kv_is_recomputed_and_replaced(
    tiny_model: Path,
    tmp_path: Path,
    settings: Settings,
    saved: Path,
    expected: list[list[int]],
) -> None:
    chosen = settings()
    path = copied(saved, chosen)
    with OfflineEngine(tiny_model, tmp_path / "load", settings=chosen) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["cached"] == [WHOLE, WHOLE]
    assert damage_payloads(path, position=4) == 2
    with OfflineEngine(tiny_model, tmp_path / "damaged", settings=chosen) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["not_protected"] == []
    with OfflineEngine(tiny_model, tmp_path / "mended", settings=chosen) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["cached"] == [WHOLE, WHOLE], "recomputed blocks replace the damaged ones"


def test_the_namespace_says_where_each_element_of_the_engines_kv_lies(saved: Path) -> None:
    (record,) = native.load().Arena.open(str(saved), read_only=True).namespaces()
    layout = namespace.layout_of(record)
    assert isinstance(layout, ShardLayout)
    assert (layout.block_tokens, layout.tp, layout.itemsize) == (32, 1, 4)
    assert layout.payload_bytes == native.load().Arena.open(str(saved), read_only=True).slot_bytes
    # float32 on a CPU: K of a kernel block by columns, V by rows, head by head.
    assert [part.order for part in layout.parts] == ["PHSDN", "PHSND"]


@pytest.mark.long
def test_a_pinned_requests_kv_outlives_a_crowd_and_the_engine(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings(arena_bytes="6MiB", pinned_share=0.5)
    with OfflineEngine(tiny_model, tmp_path / "pins", settings=chosen) as engine:
        engine.run(PROMPTS[:1], transfer_params={"gpu_ft_pin": 600, "unknown": 1})
        engine.run(PROMPTS[1:])
        for first in (10, 18, 26, 34):
            engine.run([prompt(seed) for seed in range(first, first + 8)])
        engine.kill()
    (path,) = Path(chosen["arena_dir"]).glob("*.arena")
    arena = native.load().Arena.open(str(path), read_only=True)
    assert arena.slots < 4 * 8 * 10, "the crowd must be more than the arena holds"
    assert arena.counts()["pinned"] == 10  # 300 prompt tokens and 24 others
    arena.close()
    with OfflineEngine(tiny_model, tmp_path / "again", settings=chosen) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["cached"] == [WHOLE, 0]


def test_a_full_arena_keeps_serving_and_keeps_answers_right(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings(arena_bytes="3MiB")
    with OfflineEngine(tiny_model, tmp_path / "full", settings=chosen) as engine:
        assert engine.run(PROMPTS)["tokens"] == expected
        engine.run([prompt(seed) for seed in range(10, 18)])
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["not_protected"] == []


def test_preempted_requests_and_reused_blocks_never_mix_their_kv(
    tiny_model: Path, tmp_path: Path, settings: Settings, plain: dict[str, list[list[int]]]
) -> None:
    chosen = settings()
    with OfflineEngine(
        tiny_model, tmp_path / "log", settings=chosen, num_gpu_blocks_override=SMALL_CACHE
    ) as engine:
        for _ in range(2):
            reply = engine.run(CROWD, CROWD_TOKENS)
            assert reply["tokens"] == plain["crowd"]
            assert reply["not_protected"] == []
    assert reply["preempted"] > 0, "the cache was too large for this test to mean anything"


def test_a_file_system_without_room_is_said_at_start_and_the_engine_serves(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings(arena_bytes="4TiB")
    with OfflineEngine(tiny_model, tmp_path / "noroom", settings=chosen) as engine:
        (reason,) = engine.ready["not_protected"]
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert "no_space" in reason
    assert "DYN_GPU_FT_ARENA" in reason
    assert list(Path(chosen["arena_dir"]).iterdir()) == []


def test_kv_of_another_model_with_equal_block_size_is_never_used(
    tiny_model: Path, tmp_path: Path, settings: Settings, saved: Path
) -> None:
    other = other_weights(tiny_model, tmp_path / "other")
    chosen = settings()
    copied(saved, chosen)
    with OfflineEngine(other, tmp_path / "plain", settings=None) as engine:
        wanted = engine.run(PROMPTS)["tokens"]
    with OfflineEngine(other, tmp_path / "second", settings=chosen) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == wanted
    assert reply["cached"] == [0, 0]
    assert reply["not_protected"] == []


def other_weights(model: Path, folder: Path) -> Path:
    """The same model with every weight negated in one matrix: same shapes, same sizes, other bytes."""
    import safetensors.torch

    shutil.copytree(model, folder)
    (weights,) = folder.glob("*.safetensors")
    tensors = safetensors.torch.load_file(weights)
    name = next(n for n in tensors if "down_proj" in n)
    tensors[name] = -tensors[name]
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    return folder


def test_a_second_live_engine_is_refused_and_the_first_one_is_not_disturbed(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings()
    with OfflineEngine(tiny_model, tmp_path / "first", settings=chosen) as first:
        first.run(PROMPTS[:1])
        with OfflineEngine(tiny_model, tmp_path / "second", settings=chosen) as second:
            (reason,) = second.ready["not_protected"]
            assert second.run(PROMPTS)["tokens"] == expected
        assert "busy" in reason
        assert str(first.process.pid) in reason
        reply = first.run(PROMPTS[1:])
        assert reply["tokens"] == expected[1:]
        assert reply["not_protected"] == []


def test_it_works_beside_another_connector_under_multiconnector(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings()
    example = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path / "example")},
    }
    transfer = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "connectors": [{**CONNECTOR, "kv_connector_extra_config": chosen}, example]
        },
    }
    with OfflineEngine(tiny_model, tmp_path / "a", settings=None, transfer=transfer) as engine:
        assert engine.run(PROMPTS)["tokens"] == expected
    with OfflineEngine(tiny_model, tmp_path / "b", settings=None, transfer=transfer) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["not_protected"] == []
    assert reply["cached"] == [WHOLE, WHOLE]
