"""The disk log behind a real vLLM: KV survives the loss of all memory, and a disk that fails costs nothing but itself."""

from __future__ import annotations

import errno
import shutil
import subprocess
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
        assert "ulimit" in serve_until_the_disk_is_given_up(engine, expected)
        engine.kill()
    with OfflineEngine(tiny_model, tmp_path / "again", settings=settings()) as engine:
        reply = engine.run(PROMPTS)
    assert reply["tokens"] == expected
    assert reply["cached"] == [WHOLE, WHOLE], "the arena has everything"


def serve_until_the_disk_is_given_up(engine: OfflineEngine, expected: list[list[int]]) -> str:
    """The one line that says so; every answer meanwhile is right."""
    for turn in range(200):  # the worker reports once a second, at one of its steps
        reply = engine.run(PROMPTS)
        assert reply["tokens"] == expected
        assert reply["not_protected"] == []
        said = [x for x in engine.log.read_text().splitlines() if "NOT PROTECTED on disk" in x]
        if said:
            (line,) = said
            return line
        engine.run([prompt(100 + 3 * turn + i) for i in range(3)], 8)  # more for the disk
    raise AssertionError("the engine never said that its disk is gone")


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "code", "word"),
    [
        ("write", errno.EIO, "Input/output error"),
        ("sync", errno.EIO, "Input/output error"),
        ("write", errno.EROFS, "Read-only file system"),
    ],
)
def test_a_disk_that_fails_under_a_serving_engine_ends_the_disks_protection_only(
    tiny_model: Path,
    tmp_path: Path,
    settings: Settings,
    expected: list[list[int]],
    kind: str,
    code: int,
    word: str,
) -> None:
    chosen = settings(disk_dir=str(tmp_path / "disk"), disk_segment_bytes="16MiB")
    fault = (kind, 7, 1 << 20, code)
    with OfflineEngine(
        tiny_model, tmp_path / "log", settings=chosen, disk_faults=[fault]
    ) as engine:
        assert word in serve_until_the_disk_is_given_up(engine, expected)
        assert engine.run(PROMPTS)["cached"] == [WHOLE, WHOLE]


def mounted(*script: str) -> list[str]:
    """A command that mounts for itself alone and then runs what follows; skips where that is not allowed."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    command += [" && ".join([*script, 'exec "$@"']), "sh"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("mounting in a namespace of one's own is not allowed here")
    return command


@pytest.mark.long
def test_a_full_disk_is_said_while_the_engine_serves(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    (disk := tmp_path / "disk").mkdir()
    chosen = settings(disk_dir=str(disk), disk_segment_bytes="16MiB")
    small = mounted(f"mount -t tmpfs -o size=24m tmpfs {disk}")
    with OfflineEngine(tiny_model, tmp_path / "log", settings=chosen, command=small) as engine:
        assert "No space left" in serve_until_the_disk_is_given_up(engine, expected)
        assert engine.run(PROMPTS)["cached"] == [WHOLE, WHOLE]


@pytest.mark.long
def test_a_disk_that_is_read_only_after_a_reboot_is_said_and_still_read(
    tiny_model: Path, tmp_path: Path, settings: Settings, expected: list[list[int]]
) -> None:
    chosen = settings(disk_dir=str(tmp_path / "disk"), disk_segment_bytes="16MiB")
    with OfflineEngine(tiny_model, tmp_path / "first", settings=chosen) as engine:
        assert engine.run(PROMPTS)["tokens"] == expected
    reboot(chosen)
    disk = chosen["disk_dir"]
    sealed = mounted(f"mount --bind {disk} {disk}", f"mount -o remount,bind,ro {disk}")
    with OfflineEngine(tiny_model, tmp_path / "log", settings=chosen, command=sealed) as engine:
        reply = engine.run(PROMPTS)
        assert reply["tokens"] == expected
        assert reply["not_protected"] == []
        assert reply["cached"] == [WHOLE, WHOLE]
        assert serve_until_the_disk_is_given_up(engine, expected)


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
