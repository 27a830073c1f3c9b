"""The folder of memberships under fire: killed between any two effects, torn and lying files, a full disk, a writer of long ago."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynamo_gpu_ft.errors import StoreUnavailable
from dynamo_gpu_ft.recovery.membership import file as file_module
from dynamo_gpu_ft.recovery.membership.file import KEPT, STALE_S, FileStore
from dynamo_gpu_ft.recovery.membership.wire import packed
from tests.contracts.membership_world import ROOT, membership


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    made = FileStore(tmp_path / "store")
    assert made.publish(membership(1))
    return made


def newest_file(store: FileStore) -> Path:
    return store._path("e", store._epochs("e")[-1])


def test_a_writer_killed_between_any_two_effects_leaves_the_old_epoch_or_the_new_one(
    store: FileStore,
) -> None:
    at = 0
    while True:
        newest = store.read("e")
        assert newest is not None
        command = [sys.executable, "-m", "tests.faults.membership_killed"]
        command += [str(store.folder), str(newest.epoch + 1), str(at)]
        status = subprocess.run(command, cwd=ROOT, check=False, timeout=60).returncode
        if status == 0:
            break
        assert status == -signal.SIGKILL
        after = store.read("e")
        assert after in (newest, membership(newest.epoch + 1))
        assert store.publish(membership(after.epoch + 1)), "nothing is in the way of the next"  # type: ignore[union-attr]
        at += 1
    assert at >= 8, "an effect was not counted"


@pytest.mark.parametrize("keep", [0, 1, 8, 9, 40, -1])
def test_a_torn_file_is_an_error_and_never_the_epoch_before(store: FileStore, keep: int) -> None:
    store.publish(membership(2))
    path = newest_file(store)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreUnavailable, match=r"damaged.*e\.2\.membership"):
        store.read("e")
    with pytest.raises(StoreUnavailable, match="damaged"):
        store.wait_past("e", 1, 0.0)
    # Who knows the epoch by itself goes on, and the engine is well again.
    assert store.publish(membership(3))
    assert store.read("e") == membership(3)


def test_a_file_with_any_bit_turned_is_refused(store: FileStore) -> None:
    path = newest_file(store)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(StoreUnavailable, match="damaged"):
            store.read("e")


@pytest.mark.parametrize(
    "lie",
    [
        packed(membership(7)),
        packed(membership(1, engine="other")),
        packed(membership(1)) * 2,
        b"00000000 {}\n",
        b"\n",
        b"0" * (2 << 20),
    ],
    ids=["other epoch", "other engine", "twice", "wrong checksum", "empty", "huge"],
)
def test_a_file_that_lies_is_refused(store: FileStore, lie: bytes) -> None:
    newest_file(store).write_bytes(lie)
    with pytest.raises(StoreUnavailable, match="damaged"):
        store.read("e")


def test_neither_a_pipe_nor_a_link_nor_a_folder_in_its_place_is_followed_or_waited_for(
    store: FileStore, tmp_path: Path
) -> None:
    path = newest_file(store)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    for make in (os.mkfifo, lambda p: os.symlink(elsewhere, p), os.mkdir):
        make(path)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="cannot read"):
            store.read("e")
        assert time.monotonic() - began < 1.0
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_a_full_disk_is_told_and_leaves_nothing_behind(store: FileStore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # the 65th byte does not fit
    try:
        with pytest.raises(StoreUnavailable, match="cannot write.*too large"):
            store.publish(membership(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in store.folder.iterdir()] == ["e.1.membership"]
    assert store.publish(membership(2))


@pytest.mark.parametrize(
    ("call", "number"), [("fsync", errno.EIO), ("link", errno.EPERM), ("open", errno.EROFS)]
)
def test_a_disk_that_fails_is_told_with_its_reason(
    store: FileStore, call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(file_module.os, call, fail)
        with pytest.raises(StoreUnavailable, match=os.strerror(number)):
            store.publish(membership(2))
    assert store.read("e") == membership(1)
    assert not list(store.folder.glob(".*"))


def test_a_link_whose_reply_was_lost_is_known_again(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def lost(source: str, target: str) -> None:
        real(source, target)
        raise FileExistsError(errno.EEXIST, "told twice")

    monkeypatch.setattr(file_module.os, "link", lost)
    assert store.publish(membership(2))


def test_a_writer_that_slept_until_its_epoch_was_forgotten_does_not_bring_it_back(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def after_a_long_sleep(source: Path, target: Path) -> None:
        monkeypatch.setattr(file_module.os, "link", real)
        for epoch in range(2, KEPT + 5):
            assert FileStore(store.folder).publish(membership(epoch, by="other"))
        real(source, target)

    monkeypatch.setattr(file_module.os, "link", after_a_long_sleep)
    assert not store.publish(membership(2))
    newest = store.read("e")
    assert newest is not None
    assert (newest.epoch, newest.by) == (KEPT + 4, "other")
    assert not (store.folder / "e.2.membership").exists()


def test_old_epochs_and_what_killed_writers_left_are_removed_in_time(store: FileStore) -> None:
    left, fresh = store.folder / ".e.dead.tmp", store.folder / ".e.alive.tmp"
    left.touch()
    fresh.touch()
    long_ago = time.time() - STALE_S - 5
    os.utime(left, (long_ago, long_ago))
    for epoch in range(2, KEPT + 20):
        store.publish(membership(epoch))
    assert len(store._epochs("e")) == KEPT + 1
    assert (left.exists(), fresh.exists()) == (False, True)


def test_files_are_for_their_owner_only_and_a_folder_of_everybodys_is_not_trusted(
    store: FileStore, tmp_path: Path
) -> None:
    assert newest_file(store).stat().st_mode & 0o077 == 0
    assert store.folder.stat().st_mode & 0o077 == 0
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(StoreUnavailable, match="trust"):
        FileStore(shared)


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match="cannot make the folder"):
        FileStore(tmp_path / "file" / "below")
    store = FileStore(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StoreUnavailable, match="gone"):
        store.read("e")
