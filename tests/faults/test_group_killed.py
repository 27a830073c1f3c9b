"""The coordinator's own death at every point of a recovery: the next one finishes it from store and journal; one only stopped is out."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dynamo_gpu_ft.recovery.group import journal
from dynamo_gpu_ft.recovery.group.account import Outcome
from dynamo_gpu_ft.recovery.group.states import State
from dynamo_gpu_ft.recovery.membership.file import FileStore
from tests.faults.group_on_disk import ENGINE, SHARDS, GroupOnDisk, coordinator, run

FEWEST = 40  # things that a recovery does, each with its before and after: fewer would mean that some are not counted


def begun(folder: Path, at: int, number: signal.Signals) -> Any:
    folder.mkdir()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.group_on_disk"])
    child = context.Process(target=run, args=(folder, at, number), daemon=True)
    child.start()
    return child


def ended(child: Any) -> int:
    child.join(60)
    assert child.exitcode is not None
    return int(child.exitcode)


def stopped(child: Any) -> bool:
    """Waits until it is, or until it has ended."""
    while child.is_alive():
        with open(f"/proc/{child.pid}/stat") as file:
            if file.read().rsplit(")", 1)[1].split()[0] == "T":
                return True
        child.join(0.001)
    return False


def finished_by_the_next(folder: Path) -> Outcome:
    """A new coordinator takes over and recovers; what has to be true then is checked."""
    before = FileStore(folder / "store").read(ENGINE)
    assert before is not None
    new = coordinator(folder, "new")
    with GroupOnDisk(folder, "new").world() as world:
        world["taken"] = "new"  # the members answer the newcomer, whoever it was before
    assert new.take_over(journal.read(str(folder / "journal"))) == before
    outcome = new.recover()
    assert outcome.state is State.SERVING
    membership = outcome.membership
    assert sorted(m.shard for m in membership.members) == list(range(SHARDS))
    assert membership == FileStore(folder / "store").read(ENGINE)
    group = GroupOnDisk(folder, "new")
    assert group.members() == membership.members
    with group.world() as world:
        assert (world["running"], world["dead"]) == (True, [])
        assert world["pids"]["0"] == 100, "who was never lost is who it was"
        assert world["pids"]["2"] == 102
    stood = journal.standing(ENGINE, journal.read(str(folder / "journal")))
    assert (stood.state, stood.unfinished) == (State.SERVING, False)
    return outcome


@pytest.mark.timeout(240)
def test_a_coordinator_killed_anywhere_is_followed_by_one_that_finishes_the_recovery(
    tmp_path: Path,
) -> None:
    at = 0
    while True:
        folder = tmp_path / str(at)
        status = ended(begun(folder, at, signal.SIGKILL))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        finished_by_the_next(folder)
        at += 1
    assert at >= FEWEST


@pytest.mark.timeout(240)
def test_a_coordinator_stopped_anywhere_is_overtaken_and_changes_nothing_when_it_goes_on(
    tmp_path: Path,
) -> None:
    at, superseded = 0, 0
    while True:
        folder = tmp_path / str(at)
        child = begun(folder, at, signal.SIGSTOP)
        if not stopped(child):
            assert ended(child) == 0
            break
        outcome = finished_by_the_next(folder)
        os.kill(child.pid, signal.SIGCONT)
        status = ended(child)
        superseded += status == 3
        with GroupOnDisk(folder, "look").world() as world:
            assert world["epoch"] in (outcome.membership.epoch, 1)
            assert world["running"]
            assert not [entry for entry in world["log"] if isinstance(entry, str)], "abandoned"
        assert FileStore(folder / "store").read(ENGINE) == outcome.membership
        # It may have been at its very end, where nothing is left to be refused.
        assert status in (0, 3), at
        at += 1
    assert superseded > at / 2
