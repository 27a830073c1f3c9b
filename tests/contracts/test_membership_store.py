"""The `MembershipStore` contract on real stores: a folder, the TCP server with and without a folder, a real etcd; and the simulated one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from dynamo_gpu_ft.config import Config
from dynamo_gpu_ft.errors import ConfigError, StoreUnavailable
from dynamo_gpu_ft.recovery.membership.base import MembershipStore
from dynamo_gpu_ft.recovery.membership.open import open_store
from dynamo_gpu_ft.sim.membership import BreakableStore
from tests.contracts.membership_world import ROOT, membership, opened, server

REAL = ["file", "tcp", "tcp+folder", "etcd"]


class Place:
    def __init__(self, url: str, process: subprocess.Popen[str] | None) -> None:
        self.url, self.process = url, process
        self._memory = BreakableStore()

    def open(self, deadline_s: float = 5.0) -> MembershipStore:
        return self._memory if self.url == "memory" else opened(self.url, deadline_s)

    def child(self, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.contracts.membership_world", *args]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture(params=[*REAL, "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "memory":
        yield Place("memory", None)
        return
    with server(request.param, tmp_path) as (url, process):
        yield Place(url, process)


@pytest.fixture
def real(place: Place) -> Place:
    if place.url == "memory":
        pytest.skip("in one process only")
    return place


@pytest.fixture
def served(real: Place) -> Place:
    if real.process is None:
        pytest.skip("no process behind it")
    return real


def test_what_was_published_is_read_back_equal_by_every_handle(place: Place) -> None:
    store = place.open()
    assert store.read("e") is None
    first = structs.replace(membership(1), settled=False)
    assert store.publish(first)
    assert place.open().read("e") == first
    assert store.publish(membership(2, shards=300))
    assert place.open().read("e") == membership(2, shards=300)
    store.close()
    store.close()


def test_only_the_epoch_after_the_newest_is_accepted(place: Place) -> None:
    store = place.open()
    assert not store.publish(membership(2))
    assert store.publish(membership(1))
    for epoch in (1, 3, 9):
        assert not store.publish(membership(epoch, by="other"))
    assert store.read("e") == membership(1)
    assert store.publish(membership(2))
    assert not store.publish(membership(1))
    assert store.read("e") == membership(2)


def test_engines_do_not_see_each_other(place: Place) -> None:
    store = place.open()
    names = ["e", "e.1", "e-1", "E", "e.1.membership"]
    for name in names:
        assert store.publish(membership(1, engine=name))
    assert store.publish(membership(2, engine="e.1"))
    assert [store.read(name).epoch for name in names] == [1, 2, 1, 1, 1]  # type: ignore[union-attr]
    assert store.read("nobody") is None


def test_waiting_ends_with_the_newer_epoch_or_in_time(place: Place) -> None:
    store = place.open()
    store.publish(membership(1))
    assert store.wait_past("e", 0, 5.0) == membership(1)
    began = time.monotonic()
    assert store.wait_past("e", 1, 0.2) is None
    assert 0.15 < time.monotonic() - began < 3.0
    heard = []
    waiter = threading.Thread(target=lambda: heard.append(place.open().wait_past("e", 1, 30.0)))
    waiter.start()
    store.publish(membership(2))
    waiter.join(30.0)
    assert heard == [membership(2)]


def test_of_several_processes_that_publish_at_once_exactly_one_wins_each_epoch(
    real: Place,
) -> None:
    epochs = 60
    children = [real.child("compete", real.url, str(epochs)) for _ in range(4)]
    won: list[int] = []  # communicate() closes the pipes
    for child in children:
        out, _ = child.communicate(timeout=100)
        assert child.returncode == 0
        won += map(int, out.split())
    assert sorted(won) == list(range(1, epochs + 1))
    newest = real.open().read("e")
    assert newest is not None
    assert newest.epoch == epochs


def test_a_writer_killed_at_any_moment_loses_nothing_and_leaves_nothing_half(
    real: Place, rng: random.Random
) -> None:
    store, told = real.open(), 0
    for _ in range(8):
        with real.child("publish", real.url) as child:
            assert child.stdout is not None
            first = child.stdout.readline()  # it is at it
            threading.Event().wait(rng.uniform(0, 0.05))
            child.kill()
            lines = [first, *child.stdout.read().splitlines()]
        told = max([told, *(int(line.split()[0]) for line in lines if line.split()[1:] == ["1"])])
        newest = store.read("e")
        assert newest is not None
        assert told <= newest.epoch <= told + 1, "what was told is there, at most one more"
        assert len(newest.members) in (50, 2)
        # What it asked last may still be on its way to the server; it can win one epoch from us, and no more.
        if not store.publish(membership(newest.epoch + 1)):
            newest = store.read("e")
            assert newest is not None
            assert newest.epoch == told + 1
            assert store.publish(membership(newest.epoch + 1))
        told = newest.epoch + 1


def test_a_stopped_writer_holds_nobody_up_and_is_refused_when_it_goes_on(
    real: Place, rng: random.Random
) -> None:
    store = real.open()
    with real.child("publish", real.url) as child:
        assert child.stdout is not None
        child.stdout.readline()
        threading.Event().wait(rng.uniform(0, 0.05))
        os.kill(child.pid, signal.SIGSTOP)
        mine = []
        for _ in range(5):
            newest = store.read("e")
            assert newest is not None
            began = time.monotonic()
            # Its last publication may still be on its way to the server; it can win one epoch from us, and no more.
            if store.publish(membership(newest.epoch + 1, by="new")):
                mine.append(newest.epoch + 1)
            assert time.monotonic() - began < 3.0
        assert len(mine) >= 4
        os.kill(child.pid, signal.SIGCONT)
        child.stdout.readline()
        child.kill()
        rest = child.stdout.read()
    won = {int(line.split()[0]) for line in rest.splitlines() if line.endswith(" 1")}
    assert not won & set(mine)


@pytest.mark.parametrize("name", ["", "../e", "a/b", ".e", "e\n", "x" * 101, "e e"])
def test_a_name_that_is_none_is_refused(real: Place, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        real.open().read(name)
    with pytest.raises(ConfigError, match="name"):
        real.open().publish(membership(1, engine=name))


def test_a_membership_that_cannot_be_is_refused(real: Place) -> None:
    store, good = real.open(), membership(1)
    twice = structs.replace(good, members=(*good.members, good.members[0]))
    gap = structs.replace(good, members=good.members[1:])
    for wrong in (twice, gap, membership(0), structs.replace(good, shards=1)):
        with pytest.raises(ValueError, match="shards|ranks|epoch"):
            store.publish(wrong)
    assert store.read("e") is None


def test_a_server_that_is_stopped_is_told_within_the_deadline(served: Place) -> None:
    assert served.process is not None
    store = served.open(deadline_s=0.5)
    store.publish(membership(1))
    os.kill(served.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, served.process.pid, os.WSTOPPED | os.WNOWAIT)  # each of its threads
    calls = (
        lambda: store.read("e"),
        lambda: store.publish(membership(2)),
        lambda: store.wait_past("e", 5, 0.2),
    )
    for call in calls:
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            call()
        assert time.monotonic() - began < 3.0
    os.kill(served.process.pid, signal.SIGCONT)
    # The publication may have been carried out or not: reading finds out, and the next one is accepted.
    patient = served.open(deadline_s=20.0)
    newest = patient.read("e")
    assert newest in (membership(1), membership(2))
    assert newest is not None
    assert patient.wait_past("e", 1, 2.0) in (None, membership(2))


def test_a_server_that_is_gone_is_told_at_once(served: Place) -> None:
    assert served.process is not None
    store = served.open(deadline_s=5.0)
    served.process.kill()
    served.process.wait(10)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="127.0.0.1"):
        store.read("e")
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("text", ["file:", "tcp:x", "tcp::1", "etcd:h:0", "nfs:/x", "tcp:h:99999"])
def test_a_setting_that_names_no_store_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="names no store"):
        open_store(Config(membership=text))


def test_without_a_setting_memberships_lie_beside_the_arena(tmp_path: Path) -> None:
    store = open_store(Config(arena_dir=str(tmp_path)))
    assert store.publish(membership(1))
    assert len(list(tmp_path.glob("dynamo_gpu_ft-*.membership/e.1.membership"))) == 1


def test_without_its_package_etcd_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "etcd3gw", None)
    with pytest.raises(ConfigError, match="pip install etcd3gw"):
        open_store(Config(membership="etcd:127.0.0.1:2379"))
