"""The store of the in-process wrapper: every wait for it ends, and it ends with the last of its ranks."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from dynamo_gpu_ft.errors import NvrxError
from dynamo_gpu_ft.nvrx.inprocess import store


@pytest.mark.parametrize("held", ["store.alive", "store.founder"])
def test_a_rank_that_is_stopped_while_it_starts_the_store_does_not_hold_the_others_for_ever(
    tmp_path: Path, held: str
) -> None:
    with (tmp_path / held).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(NvrxError, match="another rank did not start the store in time"):
            store.join(str(tmp_path), timeout_s=0.1)
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("does", "words"), [("sleep 100", "no port in time"), ("exit 3", "exit status 3")]
)
def test_a_store_that_does_not_start_is_ended_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, does: str, words: str
) -> None:
    server = tmp_path / "server"
    server.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec {does}\n"
        if "sleep" in does
        else f"#!/bin/sh\n{does}\n"
    )
    server.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(server))
    with pytest.raises(NvrxError, match=words):
        store.join(str(tmp_path), timeout_s=1.0)
    if (pid := tmp_path / "pid").exists():
        assert not Path(f"/proc/{int(pid.read_text())}").exists()


def test_the_store_ends_with_the_last_that_holds_it_and_leaves_no_port_behind(
    tmp_path: Path,
) -> None:
    folder = str(tmp_path)
    with (tmp_path / "store.alive").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_SH)
        serving = threading.Thread(target=store.serve, args=(folder,), daemon=True)
        serving.start()
        port = tmp_path / "store.port"
        deadline = time.monotonic() + 60
        while not port.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found, life = store.join(folder, timeout_s=10)
        assert found == int(port.read_text())
    serving.join(1.2)  # two looks of the store
    assert serving.is_alive(), "somebody holds it still"
    os.close(life)
    serving.join(60)
    assert not serving.is_alive()
    assert not port.exists()
