"""The connector on a real vLLM: what is saved comes back in a new process; what is damaged, foreign or missing does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import CONNECTOR, OfflineEngine, prompt

from dynamo_gpu_ft import native

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

Settings = Callable[..., dict[str, Any]]
PROMPTS = [prompt(1), prompt(2)]
#: 300 prompt tokens in blocks of 32, of which at least one token must be computed: nine whole blocks.
WHOLE = 9 * 32


@pytest.fixture(scope="module")
def expected(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """Tokens of the undisturbed engine without the connector."""
    with OfflineEngine(
        tiny_model, tmp_path_factory.mktemp("plain") / "log", settings=None
    ) as engine:
        return list(engine.run(PROMPTS)["tokens"])


def arena_of(settings: dict[str, Any]) -> Path:
    (path,) = Path(settings["arena_dir"]).glob("*.arena")
    return path


def damage_one_payload(path: Path, position: int) -> None:
    """Flips one byte in the middle of the payload of the blocks at `position`."""
    core = native.load()
    arena = core.Arena.open(str(path))
    slots = [s for s in arena.scan() if s.state == "sealed" and s.position == position]
    assert slots
    import ctypes

    token = b"damage-damage-16"
    epoch = arena.begin_epoch(token, takeover=True)
    assert epoch > 0
    for slot in slots:
        address = arena.payload_address(slot.slot) + slot.payload_bytes // 2
        byte = ctypes.c_uint8.from_address(address)
        byte.value ^= 0x40
        assert arena.verify(slot.slot) == "digest"
    arena.close()


def test_saved_kv_is_loaded_by_a_new_process_and_damaged_kv_is_recomputed(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings()
    with OfflineEngine(tiny_model, tmp_path / "save", settings=chosen) as engine:
        first = engine.run(PROMPTS)
    assert first["tokens"] == expected
    assert first["not_protected"] == []
    with OfflineEngine(tiny_model, tmp_path / "load", settings=chosen) as engine:
        second = engine.run(PROMPTS)
    assert second["tokens"] == expected
    assert second["cached"] == [WHOLE, WHOLE]
    damage_one_payload(arena_of(chosen), position=4)
    with OfflineEngine(tiny_model, tmp_path / "damaged", settings=chosen) as engine:
        third = engine.run(PROMPTS)
    assert third["tokens"] == expected
    with OfflineEngine(tiny_model, tmp_path / "mended", settings=chosen) as engine:
        fourth = engine.run(PROMPTS)
    assert fourth["tokens"] == expected
    assert fourth["cached"] == [WHOLE, WHOLE], "recomputed blocks replace the damaged ones"


def test_kv_of_a_killed_process_is_loaded(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings()
    engine = OfflineEngine(tiny_model, tmp_path / "killed", settings=chosen)
    engine.run(PROMPTS)
    engine.kill()
    with OfflineEngine(tiny_model, tmp_path / "next", settings=chosen) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["cached"] == [WHOLE, WHOLE]


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


def test_a_file_system_without_room_is_said_at_start_and_the_engine_serves(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings(arena_bytes="64TiB")
    with OfflineEngine(tiny_model, tmp_path / "noroom", settings=chosen) as engine:
        (reason,) = engine.ready["not_protected"]
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert "no_space" in reason
    assert "DYN_GPU_FT_ARENA" in reason
    assert list(Path(chosen["arena_dir"]).iterdir()) == []


def test_an_arena_of_another_block_size_is_refused_by_name(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings()
    with OfflineEngine(tiny_model, tmp_path / "b32", settings=chosen) as engine:
        engine.run(PROMPTS)
    before = native.load().Arena.open(str(arena_of(chosen)), read_only=True).counts()
    with OfflineEngine(tiny_model, tmp_path / "b64", settings=chosen, block_size=64) as engine:
        (reason,) = engine.ready["not_protected"]
        assert engine.run(PROMPTS)["tokens"] == expected
    assert "mismatch" in reason
    after = native.load().Arena.open(str(arena_of(chosen)), read_only=True).counts()
    assert after["sealed"] == before["sealed"]


def test_kv_of_another_model_with_equal_block_size_is_never_used(
    tiny_model: Path, tmp_path: Path, settings: Settings
) -> None:
    other = other_weights(tiny_model, tmp_path / "other")
    chosen = settings()
    with OfflineEngine(other, tmp_path / "plain", settings=None) as engine:
        wanted = engine.run(PROMPTS)["tokens"]
    with OfflineEngine(tiny_model, tmp_path / "first", settings=chosen) as engine:
        engine.run(PROMPTS)
    with OfflineEngine(other, tmp_path / "second", settings=chosen) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == wanted
    assert reply["cached"] == [0, 0]
    assert reply["not_protected"] == []


def other_weights(model: Path, folder: Path) -> Path:
    """The same model with every weight negated in one matrix: same shapes, same sizes, other bytes."""
    import shutil

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
