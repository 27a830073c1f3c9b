"""A group whose members are records in a file, so that it outlives its coordinator; run as a process, a coordinator that dies or stops
at the n-th thing that it does. Simulated: no rank is a process here."""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dynamo_gpu_ft.events import Event, EventStream, Journal
from dynamo_gpu_ft.recovery.group.base import Deadline
from dynamo_gpu_ft.recovery.group.coordinator import Coordinator
from dynamo_gpu_ft.recovery.group.plan import Plan, Policy
from dynamo_gpu_ft.recovery.membership.base import Member, Membership
from dynamo_gpu_ft.recovery.membership.file import FileStore

SHARDS, ENGINE = 3, "e"


class GroupOnDisk:
    """Every order carries its epoch, and members refuse an older one than they know: that is what a real adapter's members do."""

    def __init__(self, folder: Path, token: str) -> None:
        self._file, self.token = folder / "world.json", token

    @contextlib.contextmanager
    def world(self) -> Iterator[dict[str, Any]]:
        with open(self._file, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            world = json.loads(file.read() or "{}")
            yield world
            file.seek(0)
            file.truncate()
            file.write(json.dumps(world))
            file.flush()

    def found(self) -> tuple[Member, ...]:
        with self.world() as world:
            world |= {"pids": {str(s): 100 + s for s in range(SHARDS)}, "next": 200, "epoch": 1}
            world |= {"dead": [], "running": True, "log": []}
        return self.members()

    def members(self) -> tuple[Member, ...]:
        with self.world() as world:
            shards = sorted(map(int, world["pids"]))
            return tuple(
                Member(shard=s, rank=rank, pid=world["pids"][str(s)])
                for rank, s in enumerate(shards)
            )

    def kill(self, shard: int) -> None:
        with self.world() as world:
            world["dead"].append(shard)

    def lost(self) -> Mapping[int, str]:
        with self.world() as world:
            return dict.fromkeys(world["dead"], "exit")

    def standbys(self) -> int:
        return 9

    def quiesce(self, dead: frozenset[int], deadline: Deadline) -> None:
        with self.world() as world:
            self._leads(world)
            for shard in dead:
                world["pids"].pop(str(shard), None)
            world["dead"] = [shard for shard in world["dead"] if shard not in dead]
            world["running"] = False

    def rebuild(self, plan: Plan, epoch: int, deadline: Deadline) -> tuple[Member, ...]:
        with self.world() as world:
            if epoch <= world["epoch"]:
                raise RuntimeError(f"fenced: epoch {epoch} is older than {world['epoch']}")
            world["epoch"], world["by"] = epoch, self.token
            for shard in plan.lost:
                world["pids"][str(shard)] = world["next"]
                world["next"] += 1
        return self.members()

    def validate(self, membership: Membership, deadline: Deadline) -> None:
        with self.world() as world:
            self._of(world, membership)

    def commit(self, membership: Membership, deadline: Deadline) -> None:
        with self.world() as world:
            self._of(world, membership)
            world["running"] = True
            world["log"].append(membership.epoch)

    def abandon(self, reason: str) -> None:
        with self.world() as world:
            world["log"].append(reason)

    def _leads(self, world: dict[str, Any]) -> None:
        if world.get("by", self.token) != self.token and world.get("taken", "") != self.token:
            raise RuntimeError("fenced: another coordinator's members")

    def _of(self, world: dict[str, Any], membership: Membership) -> None:
        if membership.epoch != world["epoch"]:
            raise RuntimeError(f"fenced: epoch {membership.epoch}, not {world['epoch']}")


class Counted:
    """Passes everything on, and raises a signal in this process before or after the n-th call."""

    def __init__(self, at: int, number: int) -> None:
        self.left, self.number = at, number

    def strike(self) -> None:
        if self.left == 0:
            # To this thread: sent to the process, it would strike a moment later, perhaps with the lock of the world held.
            signal.pthread_kill(threading.get_ident(), self.number)
        self.left -= 1

    def around(self, what: Any, *names: str) -> Any:
        for name in names:
            setattr(what, name, self._counted(getattr(what, name)))
        return what

    def _counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.strike()
            result = real(*args)
            self.strike()
            return result

        return call

    def listen(self, event: Event) -> None:
        self.strike()


def coordinator(folder: Path, token: str, counted: Counted | None = None) -> Coordinator:
    group, store = GroupOnDisk(folder, token), FileStore(folder / "store")
    events = EventStream(Journal(str(folder / "journal")))
    if counted:
        counted.around(group, "lost", "standbys", "quiesce", "rebuild", "validate", "commit")
        counted.around(store, "read", "publish")
        events.add(counted.listen)
    policy = Policy(step_s=5.0, recovery_s=30.0, deaths=1000)
    return Coordinator(ENGINE, SHARDS, group, store, policy, events)


def main(folder: Path, at: int, number: int) -> int:
    """Exit status 0: SERVING before anything struck; 3: superseded; 4: failed."""
    group = GroupOnDisk(folder, "old")
    plain = coordinator(folder, "old")
    plain.found(group.found())
    counted = Counted(at, number)
    leading = coordinator(folder, "old", counted)
    leading.membership, leading.token = plain.membership, plain.token
    group.kill(1)
    outcome = leading.recover({1: "exit"})
    return 3 if outcome.superseded else 0 if outcome.state == "serving" else 4


def run(folder: Path, at: int, number: signal.Signals) -> None:
    """`main` as a process."""
    sys.exit(main(folder, at, number))
