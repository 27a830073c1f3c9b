"""`Planning`: what is to be brought next, after a loss and behind it: orphans at once, then copies and balance; and what the next loss will ask for.

No messages, no processes: `mending` acts on it. What is not needed in this step is computed on threads of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Literal

from dynamo_gpu_ft.engines.reference.experts import repairs
from dynamo_gpu_ft.engines.reference.experts.behind import Behind
from dynamo_gpu_ft.engines.reference.experts.repairs import Wanted
from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts import ahead, planner
from dynamo_gpu_ft.experts.ahead import Ahead, Repair
from dynamo_gpu_ft.experts.base import Placement, Recovery

#: "refill" brings what is uncovered, "rebalance" leads to another placement.
Stage = Literal["", "refill", "rebalance"]


class Planning:
    """`aim`: what the engine's start placement meets, and every later one as far as the ranks that are left have room."""

    def __init__(
        self, homes: Placement, expert_bytes: int, budget_bytes: int | None, loads: Callable[[], Sequence[Sequence[int]]]
    ) -> None:  # fmt: skip
        """`budget_bytes`: of one round, see `next`. `loads`: tokens per [layer][expert] so far."""
        self.aim, self._domains = repairs.aim_of(homes), repairs.domains(homes.ranks)
        self._bytes, self._budget, self._loads = expert_bytes, budget_bytes, loads
        self._gone: frozenset[int] = frozenset()
        self._goal: Placement | None = None
        self._owed = self._more = False
        self._round: Behind[Recovery] = Behind("experts-recovery")
        self._next: Behind[tuple[Placement, tuple[Ahead, ...]]] = Behind("experts-ahead")
        self._asked: tuple[Placement, frozenset[int]] | None = None
        self._ahead: tuple[Ahead, ...] = ()

    @property
    def busy(self) -> bool:
        """Whether `next` will have more to say without anything new."""
        return self._goal is not None or self._owed or self._round.busy

    def begin(self, gone: Collection[int], *, owed: bool) -> None:
        """Other ranks than before are `gone`. `owed`: copies and balance are to be restored on those that are there."""
        self._gone, self._goal, self._owed, self._more = frozenset(gone), None, owed, False
        self._round.forget()

    def place(self, goal: Placement) -> None:
        """From now on towards `goal`, whatever the planner thinks of it, until ranks are lost or come back."""
        self._goal, self._owed, self._more = goal, False, False
        self._round.forget()

    def next(self, now: Placement, given_up: Collection[tuple[int, int, int]]) -> tuple[Stage, Wanted]:  # fmt: skip
        """What to bring when nothing is under way; ("", {}) if nothing, or not yet. Never blocks but to plan a loss that nobody foresaw.

        Orphans come first, all of them. Then rounds of `planner.recover`, each of at most the budget, follow one another until no copy is
        missing and the slots of a rank that came back are in use; a round's moves come in waves, none of which takes an expert's last copy away."""
        if ahead.uncovered(now):
            plan = self._foreseen(now).plan
            moves = repairs.wanted(plan.moves, now.slots) if plan else {}
            found = {at: expert for at, expert in moves.items() if at not in given_up}
            if not found:  # there is no room, or no source has it: the router stays masked
                self.begin(self._gone, owed=False)
            return ("refill", found) if found else ("", {})
        if self._goal is None:
            self._recover(now)
        if self._goal is None:
            return "", {}
        found = {a: e for a, e in repairs.wave(now, self._goal).items() if a not in given_up}
        if found:
            return "rebalance", found
        reached = _reached(now, self._goal)
        self._goal, self._owed, self._more = None, self._more and reached, False
        return "", {}

    def looking(self, now: Placement) -> bool:
        """Whether `look_ahead` has not yet said everything of this map."""
        return self._next.busy or self._asked != (now, self._gone)

    def look_ahead(self, now: Placement) -> tuple[Placement, tuple[Ahead, ...]] | None:
        """For every rank that `now` may lose next: the map that holds then, and its repair; once for each map, when it is ready. Never blocks."""
        if (found := self._next.answer()) is not None:
            self._ahead = found[1]
            return found
        if self._asked != (now, self._gone):
            self._asked, repair = (now, self._gone), self._repair()
            gone = tuple(self._gone)
            self._next.ask(lambda: (now, ahead.all_of(now, self._domains, repair, gone)))
        return None

    # -- details -------------------------------------------------------------------------------------------------------------

    def _repair(self) -> Repair:
        return ahead.by_planner(
            self._loads(), self._domains, expert_bytes=self._bytes, partial=True
        )

    def _foreseen(self, now: Placement) -> Ahead:
        loss = ahead.loss_of(self._gone)
        for each in self._ahead:
            if each.loss.dead == loss.dead and each.masked == now:
                return each
        return ahead.one(now, loss, self._repair())

    def _recover(self, now: Placement) -> None:
        try:
            found = self._round.answer()
        except PlacementError:  # no room for every expert: the router stays masked
            return
        if found is not None:
            self._goal = found.rebalanced.placement
            self._more = repairs.unfinished(found)
        elif self._owed:
            self._owed = False
            alive = [rank not in self._gone for rank in range(now.ranks)]
            self._round.ask(
                partial(
                    planner.recover, now, self._loads(), alive=alive, domains=self._domains, aim=self.aim,
                    budget_bytes=self._budget, expert_bytes=self._bytes,
                )
            )  # fmt: skip


def _reached(now: Placement, goal: Placement) -> bool:
    pairs = zip(now.rows(), goal.rows(), strict=True)
    return all(new in (old, -1) for a, b in pairs for old, new in zip(a, b, strict=True))
