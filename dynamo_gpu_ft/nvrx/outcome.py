"""How a launched job ended, and what to do after a rank was lost: pure, with the words and exit statuses a user sees.

Both back ends end in an `Outcome`; the built-in monitor asks `after_loss` after each loss, NVRx's launcher decides that by itself.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_gpu_ft.nvrx.limits import Limits
from dynamo_gpu_ft.nvrx.wishes import Wish, strongest
from dynamo_gpu_ft.recovery.plan import GiveUp, Restart, after_death

OK, PROBLEMS, COULD_NOT_RUN = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """`status` is this command's exit status; `reason` one sentence, empty when all ended well."""

    status: int
    reason: str = ""


def exit_words(rank: int, status: int) -> str:
    """`status` as `subprocess` gives it: negative for a signal."""
    if status >= 0:
        return f"rank {rank} exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"rank {rank} was ended by {name}"


def after_loss(
    losses: Sequence[float],
    statuses: Sequence[int],
    asked: Sequence[tuple[Wish, str]],
    *,
    now: float,
    reason: str,
    limits: Limits,
) -> Restart | Outcome:
    """losses    monotonic times of all losses, newest last;  statuses: with which the lost ranks ended, if by themselves
    asked     what ranks wished so far"""
    if limits.no_restart_code in statuses:
        return Outcome(limits.no_restart_code, f"not restarted: {reason}")
    wish, why = strongest(list(asked))
    if wish is Wish.DO_NOT_RESTART:
        return Outcome(limits.no_restart_code, f"not restarted: {why}")
    if wish is Wish.EXCLUDE_NODE:
        return Outcome(PROBLEMS, f"not restarted on this node: {why}")
    plan = after_death(losses, now=now, recovery_began=now, config=limits.config)
    if isinstance(plan, GiveUp):
        return Outcome(PROBLEMS, f"given up: {plan.reason}; the last: {reason}")
    return plan


def of_launcher(
    status: int, asked: Sequence[tuple[Wish, str]], *, limits: Limits, by_signal: int = 0
) -> Outcome:
    """What the end of NVRx's launcher means. `status` as `subprocess` gives it; `by_signal`: we told it to end, because of this.

    NOTE: 0.4.1 exits with 0 when its only node was excluded, and both exit with 1 when a rank asked for no restart; what ranks asked
    for tells these apart."""
    if by_signal:
        return Outcome(128 + by_signal, f"ended by {signal.Signals(by_signal).name}")
    wish, why = strongest(list(asked))
    if wish is Wish.DO_NOT_RESTART:
        return Outcome(limits.no_restart_code, f"not restarted: {why}")
    if status == limits.no_restart_code:
        return Outcome(status, "not restarted: NVRx's launcher says so")
    if wish is Wish.EXCLUDE_NODE:
        return Outcome(PROBLEMS, f"not restarted on this node: {why}")
    if status == 0:
        return Outcome(OK)
    what = f"status {status}" if status > 0 else f"signal {-status}"
    return Outcome(PROBLEMS, f"NVRx's launcher ended with {what}; its own log says why")
