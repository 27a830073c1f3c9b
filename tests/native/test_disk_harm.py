"""Folders of a disk log that were harmed between two lives: what is lost is refused or recomputed, the rest goes on.

Damage to single bytes and the mass of it are in tests/attacks and test_disk_log.py.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk_door import append_all, chain, core


@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "swapped", "link", "fifo", "copy"])
def test_harmed_segments_cost_their_blocks_and_nothing_else(
    open_log: Callable[..., Any], rng: random.Random, path: Path, harm: str
) -> None:
    log = open_log(segment_bytes=1 << 18)
    blocks = chain(log, rng, 100)
    append_all(log, blocks)
    assert log.close()
    first, second = sorted(name for name in path.iterdir() if name.name.startswith("seg-"))[:2]
    if harm == "cut":
        os.truncate(first, first.stat().st_size // 2)
    elif harm == "empty":
        os.truncate(first, 0)
    elif harm == "swapped":
        aside = path / "aside"
        first.rename(aside)
        second.rename(first)
        aside.rename(second)
    elif harm == "copy":
        (path / "seg-00000001-000000ff").write_bytes(first.read_bytes())
        (path / "seg-00000001-000000ff").chmod(0o600)
    else:
        first.unlink()
        if harm == "link":
            first.symlink_to(second)
        elif harm == "fifo":
            os.mkfifo(first, 0o600)
    for how in ({"read_only": True}, {}):  # one after the other: a writer tidies up
        where = open_log(**how)
        right = 0
        for key, payload in blocks:
            entry = where.find_link(key.link)
            try:
                right += entry is not None and where.read(entry) == payload
            except core.CoreError as error:
                assert error.code in ("not_found", "damaged", "digest", "invalid")
        assert right == 100 if harm == "copy" else 50 <= right < 100
        if not where.stats()["writable"]:
            continue
        missing = [b for b in blocks if where.find_link(b[0].link) is None]
        append_all(where, missing)
        assert all(where.read(where.find_link(k.link)) == p for k, p in blocks)


@pytest.mark.parametrize("lost", ["super-*", "sum-*", "*-a", "*-b"])
def test_lost_superblocks_and_summaries_are_made_up_for_by_the_segments(
    open_log: Callable[..., Any], rng: random.Random, path: Path, lost: str
) -> None:
    log = open_log(segment_bytes=1 << 18)
    blocks = chain(log, rng, 100)
    append_all(log, blocks)
    assert log.close()
    for name in path.glob(lost):
        name.write_bytes(rng.randbytes(name.stat().st_size)) if rng.random() < 0.5 else (
            name.unlink()
        )
    log = open_log()
    for key, payload in blocks:
        assert log.read(log.find_link(key.link)) == payload


def test_what_is_not_a_log_of_ours_is_refused(
    open_log: Callable[..., Any], path: Path, tmp_path: Path
) -> None:
    with pytest.raises(core.CoreError) as caught:
        open_log(read_only=True)
    assert caught.value.code == "not_found"
    assert not path.exists()
    path.mkdir(parents=True)
    path.chmod(0o755)
    with pytest.raises(core.CoreError) as caught:
        open_log()
    assert caught.value.code == "invalid"
    assert "755" in str(caught.value)
    path.rmdir()
    path.symlink_to(tmp_path)
    with pytest.raises(core.CoreError) as caught:
        open_log()
    assert caught.value.code == "invalid"
    path.unlink()
    path.mkdir(mode=0o700)
    with pytest.raises(core.CoreError) as caught:
        open_log(read_only=True)
    assert caught.value.code == "not_found"
    for wrong in (
        {"segment_bytes": 4096},
        {"cap_bytes": 4096},
        {"depth": 0},
        {"compress": "gzip"},
        {"backend": "magic"},
    ):
        with pytest.raises(core.CoreError) as caught:
            open_log(**wrong)
        assert caught.value.code == "invalid", wrong
    with pytest.raises(core.CoreError) as caught:
        open_log(digest="md5")
    assert caught.value.code == "mismatch"
