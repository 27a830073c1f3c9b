"""What people are shown of a heartbeat file: the slots that a process took, and why a file cannot be shown."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from door import core


def test_every_slot_that_a_process_took_says_what_it_does(folder: Path) -> None:
    path = str(folder / "beats")
    stepping, idle = core.Beat(path, rank=0, ranks=4), core.Beat(path, rank=2, ranks=4)
    for _ in range(3):
        stepping.begin(5)
    first, second = core.look_at_heartbeats(path)
    assert (first["rank"], first["phase"], first["kind"], first["step"]) == (0, "step", 5, 3)
    assert (second["rank"], second["phase"], second["step"]) == (2, "idle", 0)
    assert first["pid"] == second["pid"] == os.getpid()
    assert 0 <= time.monotonic() - first["began"] < 20
    idle.busy(60)
    assert core.look_at_heartbeats(path)[1]["phase"] == "busy"


def test_a_file_that_is_none_is_refused_and_none_is_made(folder: Path) -> None:
    with pytest.raises(core.CoreError) as missing:
        core.look_at_heartbeats(str(folder / "none"))
    assert missing.value.code == "not_found"
    assert not (folder / "none").exists()
    wrong = folder / "wrong"
    wrong.write_bytes(b"x" * 4096)
    wrong.chmod(0o600)
    with pytest.raises(core.CoreError) as damaged:
        core.look_at_heartbeats(str(wrong))
    assert damaged.value.code == "damaged"
