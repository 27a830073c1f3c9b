"""A private arena in memory for each test, and writers for it.

The helpers that fill and read it are in door.py.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from door import SLOT_BYTES, core, token
from log_world import Watched


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory in a memory file system."""
    root = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with TemporaryDirectory(prefix="gft-test-", dir=root) as made:
        yield Path(made)


@pytest.fixture
def make_arena(folder: Path) -> Callable[..., Any]:
    def make(slots: int = 64, ledger_bytes: int = 1 << 16, slot_bytes: int = SLOT_BYTES) -> Any:
        path = str(folder / f"arena-{uuid.uuid4().hex}")
        return core.Arena.create(
            path, slot_bytes=slot_bytes, slots=slots, ledger_bytes=ledger_bytes
        )

    return make


@pytest.fixture
def arena(make_arena: Callable[..., Any]) -> Any:
    return make_arena()


@pytest.fixture
def make_writer() -> Callable[..., Any]:
    def make(arena: Any, shard: int = 0, record: bytes = b"namespace", **how: Any) -> Any:
        chosen = how.pop("token", None) or token()
        arena.begin_epoch(chosen, takeover=True)
        index = arena.add_namespace(record)
        return arena.attach_writer(shard=shard, token=chosen, namespace=index, **how)

    return make


@pytest.fixture
def writer(arena: Any, make_writer: Callable[..., Any]) -> Any:
    return make_writer(arena)


@pytest.fixture
def small(make_arena: Callable[..., Any]) -> Any:
    return make_arena(slots=10)


@pytest.fixture
def alone(small: Any, make_writer: Callable[..., Any]) -> Any:
    return make_writer(small)


@pytest.fixture
def two(small: Any) -> tuple[Any, Any]:
    """Two writers of one epoch, each with a namespace of its own."""
    chosen = token()
    small.begin_epoch(chosen)
    for record in (b"A", b"B"):
        small.add_namespace(record)
    return tuple(small.attach_writer(shard=n, token=chosen, namespace=n) for n in (0, 1))  # type: ignore[return-value]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "engine" / "shard-0"


@pytest.fixture
def open_log(path: Path) -> Iterator[Callable[..., Any]]:
    opened = []

    def make(**how: Any) -> Any:
        chosen = {"segment_bytes": 1 << 20, "window_ms": 1, **how}
        opened.append(core.DiskLog.open(str(path), **chosen))
        return opened[-1]

    yield make
    for log in opened:
        log.close(5)


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """Runs a command; (exit code, its JSON, what it said on stderr)."""
    from dynamo_gpu_ft.cli.main import main

    def run(*arguments: Any) -> tuple[int, Any, str]:
        status = main([str(a) for a in arguments] + ["--json"])
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else None, err

    return run


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.stop()


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A simulated NVML of this test alone (nvml_world.py); its watchers are stopped at the end."""
    from nvml_world import NvmlWorld

    from dynamo_gpu_ft.sim.nvml import build

    with TemporaryDirectory(prefix="gft-nvml-") as made:  # short: sockets lie in it
        world = NvmlWorld(Path(made))
        monkeypatch.setenv(build.CONTROL, str(world.control.folder))
        yield world
        world.close()
