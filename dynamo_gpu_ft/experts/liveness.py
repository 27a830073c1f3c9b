"""Which ranks may be sent tokens: membership, health verdicts and what the communication kernels themselves noticed, joined into one answer.

Pure: engines call it once per epoch or when a source changes, push the answer back into the kernels (`masks`), and select tables by it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

Seen = Literal["active", "masked", "unknown"]


@dataclass(frozen=True, slots=True)
class Liveness:
    """`alive`: ranks to send to, ascending. `why`: reason for each other rank. `report`: ranks that a kernel gave up on while membership
    still has them: for recovery to look at, since one late answer is no death. `epoch` is membership's."""

    epoch: int
    alive: tuple[int, ...]
    why: dict[int, str]
    report: tuple[int, ...] = ()

    def mask(self, ranks: int) -> list[int]:
        """1 for each rank that is sent to, 0 else."""
        return [int(rank in self.alive) for rank in range(ranks)]


def join(
    epoch: int,
    ranks: int,
    members: Collection[int],
    condemned: Mapping[int, str],
    masks: Mapping[str, Mapping[int, Seen]],
) -> Liveness:
    """`members`: ranks of membership's newest epoch; `condemned`: rank -> verdict under which it cannot be used; `masks`: kernel library ->
    what it says of each rank.

    A rank is alive if it is a member, is not condemned, and no library masked it. "unknown" (a library that cannot be asked, or has never
    been connected to the rank) takes nobody out, and never brings anybody in either: membership alone does."""
    why: dict[int, str] = {}
    report = []
    for rank in range(ranks):
        by = sorted(name for name, seen in masks.items() if seen.get(rank, "unknown") == "masked")
        if rank not in members:
            why[rank] = f"not a member in epoch {epoch}"
        elif rank in condemned:
            why[rank] = condemned[rank]
        elif by:
            why[rank] = f"masked by {', '.join(by)}"
            report.append(rank)
    alive = tuple(rank for rank in range(ranks) if rank not in why)
    return Liveness(epoch, alive, why, tuple(report))
