"""The restore bench gives what it can, says what it lacks, and overwrites what it says it overwrites."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bench import restore_blocks, restore_copy, restore_peers, run
from bench.rows import row


def test_a_missing_environment_is_named_and_the_other_rows_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GFT_LMCACHE_PYTHON", str(tmp_path / "no" / "python"))
    there = [row("restore_blocks.arena.1", 1.0, "s", baseline=2.0)]
    monkeypatch.setattr(restore_copy, "rows", lambda options: there)
    target = tmp_path / "rows.json"
    assert run.main(["restore_blocks", "--json", str(target)]) == 2
    assert [each["name"] for each in json.loads(target.read_text())] == ["restore_blocks.arena.1"]
    assert "make bench-lmcache" in capsys.readouterr().err


def test_noise_keeps_names_sizes_and_headers(tmp_path: Path) -> None:
    chooser = random.Random(0)
    example, lmcache = restore_peers.Example(tmp_path), restore_peers.LMCache(tmp_path)
    header = (40).to_bytes(8, "little") + b"{" + b" " * 38 + b"}"
    (example.folder / "layer.safetensors").write_bytes(header + bytes(5000))
    (lmcache.folder / "chunk.data").write_bytes(bytes(3000))
    assert "1 safetensors" in example.spoil(chooser)
    assert "1 chunk" in lmcache.spoil(chooser)
    after = (example.folder / "layer.safetensors").read_bytes()
    assert after[:48] == header
    assert len(after) == 5048
    assert after[48:] != bytes(5000)
    noise = (lmcache.folder / "chunk.data").read_bytes()
    assert len(noise) == 3000
    assert noise != bytes(3000)


def test_answers_of_noise_are_counted_against_the_right_ones(tmp_path: Path) -> None:
    right = restore_blocks._Seen([1.0, 1.0], [[1, 2], [3, 4]], [0, 0])
    taken = restore_blocks._Seen([0.1, 0.1], [[0, 0], [3, 4]], [1024, 0])
    found = restore_blocks._spoiled(restore_peers.Example(tmp_path), taken, right, "everything")
    assert found.value == 0.5
    assert found.target is None
    assert "noise was taken for KV in 1 of 2 prompts" in found.note
    ours = restore_peers.Ours(tmp_path)
    assert restore_blocks._spoiled(ours, taken, right, "everything").met is False
