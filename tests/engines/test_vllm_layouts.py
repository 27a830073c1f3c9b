"""KV of one layout used by a real vLLM of another: block sizes that divide each other, more and fewer ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import OfflineEngine, prompt

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

Settings = Callable[..., dict[str, Any]]
PROMPTS = [prompt(1), prompt(2)]
TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}


@pytest.mark.long
def test_kv_moves_between_block_sizes_and_numbers_of_ranks(
    tiny_model: Path, tmp_path: Path, settings: Settings
) -> None:
    with OfflineEngine(tiny_model, tmp_path / "plain", settings=None) as engine:
        expected = engine.run(PROMPTS)["tokens"]
    chosen = settings()
    with OfflineEngine(tiny_model, tmp_path / "b32", settings=chosen) as engine:
        assert engine.run(PROMPTS)["tokens"] == expected
    with OfflineEngine(tiny_model, tmp_path / "b64", settings=chosen, block_size=64) as engine:
        reply = engine.run(PROMPTS)
        assert reply["tokens"] == expected
        assert reply["not_protected"] == []
        assert reply["cached"] == [256, 256], "four blocks of 64 made of eight of 32"
    with OfflineEngine(
        tiny_model,
        tmp_path / "tp2",
        settings=chosen,
        tensor_parallel_size=2,
        environment=TWO_RANKS,
    ) as engine:
        reply = engine.run(PROMPTS)
        assert reply["tokens"] == expected
        assert reply["not_protected"] == []
        assert reply["cached"] == [256, 256], "eight blocks of 32, of the heads of each rank"


@pytest.mark.long
def test_a_former_arena_is_removed_when_its_time_is_over(
    tiny_model: Path, tmp_path: Path, settings: Settings
) -> None:
    chosen = settings(former_keep_s=0)
    with OfflineEngine(tiny_model, tmp_path / "b32", settings=chosen) as engine:
        engine.run(PROMPTS[:1])
    with OfflineEngine(tiny_model, tmp_path / "b64", settings=chosen, block_size=64) as engine:
        reply = engine.run(PROMPTS[:1])
    assert reply["not_protected"] == []
    names = [path.name for path in Path(chosen["arena_dir"]).iterdir()]
    assert names == ["dynamo_gpu_ft-default.arena"]


@pytest.mark.long
def test_kv_of_two_ranks_comes_back_from_their_logs_for_one_rank_after_a_reboot(
    tiny_model: Path, tmp_path: Path, settings: Settings
) -> None:
    chosen = settings(disk_dir=str(tmp_path / "disk"), disk_segment_bytes="16MiB")
    with OfflineEngine(
        tiny_model,
        tmp_path / "tp2",
        settings=chosen,
        tensor_parallel_size=2,
        environment=TWO_RANKS,
    ) as engine:
        expected = engine.run(PROMPTS)["tokens"]
    for path in Path(chosen["arena_dir"]).iterdir():
        path.unlink()
    with OfflineEngine(tiny_model, tmp_path / "tp1", settings=chosen) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["not_protected"] == []
    assert reply["cached"] == [9 * 32, 9 * 32]
