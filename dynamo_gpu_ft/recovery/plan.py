"""What to do after an engine's death: a pure function of how often it died lately, and the limits.

`recovery.executor` carries the answer out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynamo_gpu_ft.config import Config


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the engine again after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End in FAILED with this reason."""

    reason: str


def after_death(
    deaths: Sequence[float], *, now: float, recovery_began: float, config: Config
) -> Restart | GiveUp:
    """`deaths` are the monotonic times of this and earlier deaths (failed starts count), newest last.

    The first restart in a window is immediate, later ones back off; too many, or a recovery past its deadline, gives up."""
    if now - recovery_began > config.recovery_deadline_s:
        return GiveUp(
            f"no engine within {config.recovery_deadline_s:g} s of the death (recovery_deadline_s)"
        )
    recent = sum(1 for t in deaths if now - t <= config.restart_window_s)
    if recent > config.max_restarts:
        return GiveUp(
            f"{recent} deaths within {config.restart_window_s:g} s, more than max_restarts = {config.max_restarts}"
        )
    if recent <= 1:
        return Restart(0.0)
    delay = config.backoff_initial_s * 2 ** min(recent - 2, 60)
    return Restart(min(delay, config.backoff_max_s))
