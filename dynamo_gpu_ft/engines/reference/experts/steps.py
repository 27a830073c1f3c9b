"""A step of the expert-parallel ranks as orders and answers: what is sent to whom, and what it gave when all have answered.

Pure. The driver sends usual steps; the group sends the one that validates a recovery, in which the canary goes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dynamo_gpu_ft.engines.reference.experts import messages as tell
from dynamo_gpu_ft.engines.reference.experts.traffic import Mask, ShardPlan


@dataclass(frozen=True, slots=True)
class Step:
    """`answers` of all ranks to `plans`, computed while what `mask` says could not be routed to."""

    plans: Mapping[int, ShardPlan]
    answers: Mapping[int, tell.Stepped]
    mask: Mask

    @property
    def drawn(self) -> dict[str, int]:
        return {name: t for answer in self.answers.values() for name, t in answer.drawn.items()}

    @property
    def gaps(self) -> dict[str, int]:
        return {name: n for answer in self.answers.values() for name, n in answer.gaps.items()}


def orders(
    shards: Iterable[int], plans: Mapping[int, ShardPlan], *, epoch: int, number: int, tile: int, scrub: int, canary: bool = False
) -> dict[int, tell.Forward]:  # fmt: skip
    """For each of `shards`; those without a plan compute what others send to them."""
    most = max((plan.rows for plan in plans.values()), default=0)
    rounds = -(-(most + canary) // tile)
    nothing = ShardPlan()
    return {
        shard: tell.Forward(
            epoch=epoch, number=number, rounds=rounds, scrub=scrub, canary=canary,
            pieces=plans.get(shard, nothing).pieces, gone=plans.get(shard, nothing).gone, sealed=plans.get(shard, nothing).due,
        )
        for shard in shards
    }  # fmt: skip


def hurt(answers: Mapping[int, tell.Stepped]) -> dict[int, set[tuple[int, int]]]:
    """Shard -> (layer, slot) that rows met without right bytes, or none at all: with any, the step's results are void."""
    found = {shard: {*a.refused, *a.damaged} for shard, a in answers.items()}
    return {shard: slots for shard, slots in found.items() if slots}
