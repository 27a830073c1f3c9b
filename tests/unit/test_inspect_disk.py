"""`dynamo-gpu-ft inspect FOLDER`: what a disk log holds, and records that do not hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft import native
from dynamo_gpu_ft.cli.main import main

core = native.load()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of five blocks of one shard."""
    log = core.DiskLog.open(str(tmp_path / "log"), segment_bytes=1 << 18)
    namespace = log.add_namespace(b'{"engine": {"model": "inspected"}}')
    for number in range(5):
        data = b"%d" % number * 5000
        key = core.DiskKey.seal(
            namespace=namespace,
            shard=2,
            position=0,
            epoch=7,
            block_hash=b"%d" % number,
            parent_link=namespace,
            payload=data,
        )
        log.append(key, data, number)
    assert log.flush()
    assert log.close()
    return tmp_path / "log"


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_sound_log_is_shown_and_verified(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(folder), "--verify", "--json"]) == 0
    found = answer(capsys)
    assert found["records"] == 5
    assert found["epoch"] == 7
    assert found["blocks"][0]["shard"] == 2
    assert found["blocks"][0]["blocks"] == 5
    assert found["verify"]["results"] == {"ok": 5}
    assert not found["verify"]["bad"]
    assert main(["inspect", str(folder), "--verify"]) == 0
    assert "model=inspected" in capsys.readouterr().out


def test_a_damaged_record_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (segment,) = folder.glob("seg-*")
    data = bytearray(segment.read_bytes())
    data[data.index(b"3333")] ^= 1
    segment.write_bytes(data)
    assert main(["inspect", str(folder), "--verify", "--json"]) == 1
    (bad,) = answer(capsys)["verify"]["bad"]
    assert bad["block_hash"] == b"3".hex()
    assert bad["result"] == "digest"


def test_a_folder_that_is_no_log_is_not_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o700)
    assert main(["inspect", str(tmp_path), "--json"]) == 2
    assert answer(capsys)["error"] == "not_found"
