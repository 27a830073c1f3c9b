"""Plays a loss through, stage by stage: before, after it, after the repair, after rebalancing; for our plan and, beside it, for EPLB's.

Pure: a placement and loads in, facts and heat maps out. `experts.py` reads files and prints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts import change, others, planner
from dynamo_gpu_ft.experts.base import Aim, Certificate, Domains, Placement
from dynamo_gpu_ft.experts.spread import Spread, spread

Loads = list[list[int]]
PPM = 10**6


@dataclass(frozen=True, slots=True)
class Loss:
    """What is played through: `dead` ranks of these domains, under these loads."""

    loads: Loads
    domains: Domains
    dead: tuple[int, ...]
    expert_bytes: int
    aim: Aim

    @property
    def alive(self) -> list[bool]:
        return [rank not in self.dead for rank in range(self.domains.ranks)]


@dataclass(slots=True)
class Played:
    """`stages`: facts of each, in order; `shown`: what heat maps draw; `why`: why the loss was not repaired."""

    stages: list[dict[str, Any]]
    shown: list[tuple[str, Spread]]
    why: str = ""

    def add(
        self, name: str, placement: Placement, loss: Loss, *, moved: Sequence[int] = ()
    ) -> None:
        """`moved`: bytes that each rank has received for this stage."""
        gone = () if name == "before" else loss.dead
        alive = None if name == "before" else loss.alive
        left = placement.without(gone) if gone else placement
        found = planner.certify(left, loss.loads, domains=loss.domains, aim=loss.aim, alive=alive)
        seen = spread(left, loss.loads, gone)
        self.shown.append((name, seen))
        self.stages.append({"stage": name} | _facts(left, found, seen, moved))

    @property
    def facts(self) -> dict[str, Any]:
        """The stages, and the figures asked for most by names of their own."""
        before, after, *later = self.stages
        named = {
            "balance": before["balance"],
            "balance_after_loss": after["balance"],
            "lost_experts": after["lost_experts"],
            "lost_tokens_percent": after["lost_tokens_percent"],
        }
        for stage, name in zip(later, ("repaired", "rebalanced"), strict=False):
            named |= {
                f"balance_{name}": stage["balance"],
                f"bytes_{name}": stage["bytes"],
                f"bytes_{name}_worst_rank": stage["bytes_worst_rank"],
            }
        return named | {"stages": self.stages}


def _facts(
    placement: Placement, found: Certificate, seen: Spread, moved: Sequence[int]
) -> dict[str, Any]:
    return {
        "balance": round(sum(found.balance) / len(found.balance) / PPM, 4),
        "balance_min": round(min(found.balance) / PPM, 4),
        "lost_experts": sum(not s for x in range(placement.layers) for s in placement.copies(x)),
        "lost_tokens_percent": round(100 * seen.lost_share, 3),
        "survives_one_rank": list(found.one),
        "survives_domains": {name: list(each) for name, each in found.domains.items()},
        "bytes": sum(moved),
        "bytes_worst_rank": max(moved, default=0),
    }


def ours(
    placement: Placement, loss: Loss, budget_bytes: int | None
) -> tuple[Played, dict[str, Any]]:
    """Our placement; with the facts of the recovery: the aim that the slots left allow, what the budget left missing, steps of the change."""
    played = _begun(placement, loss)
    try:
        found = planner.recover(
            placement, loss.loads, alive=loss.alive, domains=loss.domains, aim=loss.aim,
            budget_bytes=budget_bytes, expert_bytes=loss.expert_bytes,
        )  # fmt: skip
    except PlacementError as error:
        played.why = str(error)
        return played, {}
    repaired, rebalanced = found.repaired.placement, found.rebalanced.placement
    played.add("repair", repaired, loss, moved=_received(placement.without(loss.dead), repaired, loss))  # fmt: skip
    played.add("rebalance", rebalanced, loss, moved=_received(repaired, rebalanced, loss))
    return played, {
        "aim_after": {"mode": found.aim.mode, "losses": found.aim.losses, "domain": found.aim.domain},
        "missing_copies": found.missing,
        "steps": len(change.steps(repaired, rebalanced)),
    }  # fmt: skip


def eplb(placement: Placement, loss: Loss) -> Played:
    """EPLB in slots as many as `placement` has: its plan, the repair that vLLM's fault tolerance makes, EPLB anew on the ranks that live."""
    sizes = {"experts": placement.experts, "ranks": placement.ranks}
    start = Placement.of_rows(others.rebalanced(loss.loads, placement.slots, placement.ranks), **sizes)  # fmt: skip
    played = _begun(start, loss)
    dead = set(loss.dead)
    try:
        rows = [others.most_redundant(list(row), dead, start.slots) for row in start.rows()]
    except ValueError as error:
        played.why = f"EPLB's: {error}"
        return played
    repaired = Placement.of_rows(rows, **sizes)
    anew = Placement.of_rows(_on_survivors(start, loss), **sizes)
    played.add("repair", repaired, loss, moved=_received(start.without(dead), repaired, loss))
    played.add("rebalance", anew, loss, moved=_received(repaired, anew, loss))
    return played


def _on_survivors(start: Placement, loss: Loss) -> list[list[int]]:
    living = [rank for rank, lives in enumerate(loss.alive) if lives]
    rows = []
    for row in others.rebalanced(loss.loads, start.slots, len(living)):
        wide = [-1] * start.width
        for place, rank in enumerate(living):
            wide[rank * start.slots : (rank + 1) * start.slots] = row[place * start.slots : (place + 1) * start.slots]  # fmt: skip
        rows.append(wide)
    return rows


def _begun(placement: Placement, loss: Loss) -> Played:
    played = Played(stages=[], shown=[])
    played.add("before", placement, loss)
    played.add("loss", placement, loss)
    return played


def _received(old: Placement, new: Placement, loss: Loss) -> list[int]:
    """Bytes for each rank: its slots that have another expert than before."""
    counts = [0] * new.ranks
    for before, after in zip(old.rows(), new.rows(), strict=True):
        for slot, expert in enumerate(after):
            counts[slot // new.slots] += expert >= 0 and expert != before[slot]
    return [count * loss.expert_bytes for count in counts]


#: What `--beside` can name.
BESIDE: dict[str, Callable[[Placement, Loss], Played]] = {"eplb": eplb}
