"""What to do at each loss, worked out before it happens: every single rank's and every node's, with the map that holds at once and the repair.

Pure data; `tables` keeps the maps on the device, `refill` gets the moves of the repair.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts import planner
from dynamo_gpu_ft.experts.base import Aim, Domains, Placement, Plan

Repair = Callable[[Placement, tuple[int, ...]], Plan]
"""(placement, ranks that are alive) -> the repaired plan; raises `PlacementError` where the slots left have no room."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Ranks that die together: `name` is "rank 3" or "node 1"."""

    name: str
    dead: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ahead:
    """For one loss: `masked` holds at once (dead slots are empty), `plan` is where the refill leads; None with the reason why not."""

    loss: Loss
    masked: Placement
    uncovered: tuple[tuple[int, int], ...]
    plan: Plan | None
    why: str = ""


def by_planner(
    loads: Any,
    domains: Domains,
    *,
    aim: Aim = Aim(mode="refill"),  # noqa: B008 - frozen
    expert_bytes: int = 1,
    partial: bool = False,
) -> Repair:
    """The planner's repair under these loads, which balances what is left; the same on every rank. `partial`: as far as there is room."""

    def repair(placement: Placement, alive: tuple[int, ...]) -> Plan:
        living = [rank in alive for rank in range(placement.ranks)]
        return planner.repair(
            placement, loads, alive=living, domains=domains, aim=aim, expert_bytes=expert_bytes, partial=partial
        )  # fmt: skip

    return repair


def losses(domains: Domains, gone: Collection[int] = ()) -> tuple[Loss, ...]:
    """Every single rank, then every node of more than one rank, each together with those that are `gone` already; not the loss of all."""
    ranks = [(f"rank {r}", (r,)) for r in range(domains.ranks) if r not in gone]
    nodes = [
        (f"node {n}", members)
        for n, members in domains.members("node").items()
        if len(set(members) - set(gone)) > 1
    ]
    found = (Loss(name, loss_of({*dead, *gone}).dead) for name, dead in (*ranks, *nodes))
    return tuple(loss for loss in found if len(loss.dead) < domains.ranks)


def uncovered(placement: Placement) -> tuple[tuple[int, int], ...]:
    """(layer, expert) without any copy."""
    return tuple(
        (layer, expert)
        for layer in range(placement.layers)
        for expert, slots in enumerate(placement.copies(layer))
        if not slots
    )


def one(placement: Placement, loss: Loss, repair: Repair) -> Ahead:
    """Also for a loss that was not foreseen: a second one, with all that are dead by then."""
    masked = placement.without(loss.dead)
    alive = tuple(r for r in range(placement.ranks) if r not in loss.dead)
    try:
        plan, why = repair(placement, alive), ""
    except PlacementError as error:
        plan, why = None, str(error)
    return Ahead(loss, masked, uncovered(masked), plan, why)


def all_of(
    placement: Placement, domains: Domains, repair: Repair, gone: Collection[int] = ()
) -> tuple[Ahead, ...]:
    return tuple(one(placement, loss, repair) for loss in losses(domains, gone))


def loss_of(dead: Iterable[int]) -> Loss:
    gone = tuple(sorted(set(dead)))
    return Loss(f"rank {gone[0]}" if len(gone) == 1 else "ranks " + ", ".join(map(str, gone)), gone)
