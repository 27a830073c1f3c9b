"""Asking ranks and waiting for their replies as the coordinator's contract wants it: all of them, or who is to blame that some are missing.

Between the steps of the group adapters and the processes of `crew.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from dynamo_gpu_ft.engines.reference.crew import Crew, Process
from dynamo_gpu_ft.recovery.group.base import Deadline, MembersLost, StandbyLost

#: After a broken communicator: how long to wait for the sign of who broke it.
GRACE_S = 1.0


class Asking:
    """Orders out, replies in, for one crew."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    def ask(
        self,
        asked: Mapping[int, Process],
        order: Any,
        kind: type,
        deadline: Deadline,
        which: Callable[[Any], bool] = lambda m: True,
        epoch: int = -1,
    ) -> dict[int, Any]:
        for process in asked.values():
            process.send(order)
        return self.answers(asked, kind, deadline, {}, which, epoch)

    def answers(
        self,
        asked: Mapping[int, Process],
        kind: type,
        deadline: Deadline,
        fresh: Mapping[int, Process],
        which: Callable[[Any], bool] = lambda m: True,
        epoch: int = -1,
    ) -> dict[int, Any]:
        """All replies of `kind`, or the contract's exceptions: `fresh` are replacements, whose loss is no member's."""
        members = self._crew.members
        found = self._crew.collect(
            asked,
            lambda m: isinstance(m, kind) and which(m),
            deadline.at,
            watched=members.values(),
            epoch=epoch,
        )
        if len(found) == len(asked):
            return found
        self._wait_for_a_culprit([*asked.values(), *members.values()], deadline)
        if lost := {s: p.why for s, p in members.items() if p.why and s not in fresh}:
            raise MembersLost(lost)
        if gone := {s: p.why for s, p in fresh.items() if p.why}:
            raise StandbyLost(", ".join(f"shard {s}: {why}" for s, why in gone.items()))
        if deadline.left_s <= 0:
            raise TimeoutError(f"{sorted(set(asked) - set(found))} gave no {kind.__name__} in time")
        raise RuntimeError("a communicator broke and all its members live")

    def _wait_for_a_culprit(self, processes: list[Process], deadline: Deadline) -> None:
        """A broken communicator is noticed by its members before its cause is; the cause shows within a moment, if it is a death."""
        until = min(deadline.at, time.monotonic() + GRACE_S)
        while not any(p.why for p in processes) and time.monotonic() < until:
            self._crew.collect({}, lambda m: False, 0.0)
            time.sleep(0.002)
