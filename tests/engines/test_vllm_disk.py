"""The disk log behind a real vLLM: KV survives the loss of all memory, and a disk that fails costs nothing but itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import OfflineEngine, prompt

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

Settings = Callable[..., dict[str, Any]]
PROMPTS = [prompt(1), prompt(2)]
WHOLE = 9 * 32


@pytest.fixture(scope="module")
def expected(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    with OfflineEngine(
        tiny_model, tmp_path_factory.mktemp("plain") / "log", settings=None
    ) as engine:
        return list(engine.run(PROMPTS)["tokens"])


def reboot(chosen: dict[str, Any]) -> None:
    """What a reboot does to a memory file system."""
    for path in Path(chosen["arena_dir"]).iterdir():
        path.unlink()


def logs(chosen: dict[str, Any]) -> list[Path]:
    return sorted(Path(chosen["disk_dir"]).glob("default/shard-*"))


def test_kv_comes_back_from_disk_after_a_reboot_and_damaged_records_are_computed_again(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings(disk_dir=str(tmp_path / "disk"), disk_segment_bytes="16MiB")
    engine = OfflineEngine(tiny_model, tmp_path / "first", settings=chosen)
    assert engine.run(PROMPTS)["tokens"] == expected
    engine.close()
    reboot(chosen)
    with OfflineEngine(tiny_model, tmp_path / "second", settings=chosen) as engine:
        reply = engine.run(PROMPTS)
        assert reply["tokens"] == expected
        assert reply["cached"] == [WHOLE, WHOLE]
        assert reply["not_protected"] == []
    reboot(chosen)
    (log,) = logs(chosen)
    for segment in log.glob("seg-*"):
        data = bytearray(segment.read_bytes())
        for at in range(5000, len(data), 40_000):
            data[at] ^= 0x10
        segment.write_bytes(data)
    with OfflineEngine(tiny_model, tmp_path / "third", settings=chosen) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["cached"] != [WHOLE, WHOLE]
    assert reply["not_protected"] == []


def test_a_disk_that_refuses_every_write_leaves_the_engine_serving_and_protected_in_memory(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings(disk_dir=str(tmp_path / "disk"), disk_segment_bytes="256MiB")
    limits = ["prlimit", f"--fsize={160 << 20}"]  # enough for the arena, too little for a segment
    with OfflineEngine(tiny_model, tmp_path / "log", settings=chosen, command=limits) as engine:
        for _ in range(50):  # the worker reports once a second, at one of its steps
            reply = engine.run(PROMPTS)
            assert reply["tokens"] == expected
            assert reply["not_protected"] == []
            said = "NOT PROTECTED on disk" in (tmp_path / "log").read_text()
            if said:
                break
        engine.kill()
    assert said
    with OfflineEngine(tiny_model, tmp_path / "again", settings=settings()) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["cached"] == [WHOLE, WHOLE], "the arena has everything"


@pytest.mark.long
def test_a_smaller_arena_than_the_working_set_is_completed_from_disk(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings(
        disk_dir=str(tmp_path / "disk"), disk_segment_bytes="16MiB", arena_bytes="6MiB"
    )
    with OfflineEngine(tiny_model, tmp_path / "first", settings=chosen) as engine:
        assert engine.run(PROMPTS)["tokens"] == expected
        engine.run([prompt(seed) for seed in range(10, 18)])
    with OfflineEngine(tiny_model, tmp_path / "second", settings=chosen) as engine:
        reply = engine.run(PROMPTS[:1])
    assert reply["tokens"] == expected[:1]
    assert reply["cached"] == [WHOLE]


@pytest.mark.long
def test_a_folder_that_cannot_be_used_is_said_and_the_engine_serves(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    chosen = settings(disk_dir=str(tmp_path / "file"))
    with OfflineEngine(tiny_model, tmp_path / "log", settings=chosen) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["not_protected"] == []
    assert "NOT PROTECTED on disk" in (tmp_path / "log").read_text()
    shutil.rmtree(tmp_path / "file", ignore_errors=True)
