"""Tells the event stream what a coordinator does: every transition, step, death, plan and end, one event each.

The journal, the log and the metrics listen there; `journal.py` reads it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dynamo_gpu_ft.events import (
    EventStream,
    GroupRecovered,
    MemberDied,
    Planned,
    StateChanged,
    StepDone,
)
from dynamo_gpu_ft.recovery.group.account import Outcome, Run
from dynamo_gpu_ft.recovery.group.plan import Plan
from dynamo_gpu_ft.recovery.group.states import Happening, State


class Teller:
    """Nothing here raises: a full disk under the journal does not stop a recovery."""

    def __init__(self, engine: str, events: EventStream, clock: Callable[[], float]) -> None:
        self.engine, self._events, self._clock = engine, events, clock

    def moved(self, run: Run, epoch: int, former: State, state: State) -> None:
        self._events.emit(
            StateChanged(
                engine=self.engine,
                epoch=epoch,
                former=former.value,
                happening=run.happening.value,
                state=state.value,
                lost=tuple(sorted(run.dead)),
                reason=run.reason,
            )
        )

    def died(self, epoch: int, shard: int, why: str) -> float:
        """Returns the wall-clock second that the journal gives for it."""
        now = time.time()
        self._events.emit(
            MemberDied(time=now, engine=self.engine, epoch=epoch, shard=shard, reason=why)
        )
        return now

    def planned(self, epoch: int, plan: Plan) -> None:
        self._events.emit(
            Planned(
                engine=self.engine,
                epoch=epoch,
                kind=plan.kind.value,
                lost=plan.lost,
                ranks=plan.ranks,
                cost_s=plan.cost_s,
                reason=plan.reason,
            )
        )

    @contextmanager
    def step(self, name: str, epoch: int) -> Iterator[None]:
        """The step runs inside; how long it took is told, also when it raises."""
        began, detail = self._clock(), ""
        try:
            yield
        except BaseException as error:
            detail = f"{type(error).__name__}: {error}"
            raise
        finally:
            took = self._clock() - began
            self._events.emit(
                StepDone(epoch=epoch, step=name, duration_s=took, ok=not detail, detail=detail)
            )

    def ended(self, outcome: Outcome, happening: Happening) -> None:
        word = outcome.state.value
        if happening in (Happening.CLEARED, Happening.SUPERSEDED):
            word = happening.value
        self._events.emit(
            GroupRecovered(
                engine=self.engine,
                epoch=outcome.membership.epoch,
                kind=outcome.kind.value if outcome.kind else "none",
                outcome=word,
                duration_s=outcome.duration_s,
                reason=outcome.reason,
            )
        )
