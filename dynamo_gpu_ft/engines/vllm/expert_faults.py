"""A dead rank in vLLM's expert maps: its slots are unreachable at once, lost experts come back, the maps change when the weights are there.

Called between steps on every survivor with the same plan, which each works out for itself. No communication with the dead: vLLM's own
weight transfer is point to point, and no map that it gets here names a slot of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo_gpu_ft.engines.vllm import compat
from dynamo_gpu_ft.engines.vllm.experts import as_map
from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts.ahead import uncovered
from dynamo_gpu_ft.experts.base import EMPTY, Placement, Plan

if TYPE_CHECKING:
    import torch

Refill = Callable[[int, int, "Sequence[torch.Tensor]"], None]
"""(layer, expert, the slot's weights): writes the expert's weights into them, from host memory or the checkpoint; raises if it cannot."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a loss means: the map that holds at once, and (layer, expert) that no live slot has until the refill.

    NOTE: vLLM's router sends tokens of an uncovered expert to slot -1, where they are dropped without renormalising. Hold the step back,
    or mask the router, while `uncovered` is not empty; in `instant` mode it is empty."""

    masked: Placement
    uncovered: tuple[tuple[int, int], ...]


def placement_of(physical_to_logical: torch.Tensor, *, experts: int, ranks: int) -> Placement:
    """vLLM's map [layers, physical experts] as a placement."""
    return Placement.of_rows(physical_to_logical.tolist(), experts=experts, ranks=ranks)


def maps_of(
    placement: Placement, width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(physical_to_logical [layers, physical], logical_to_physical [layers, experts, width], logical_replica_count [layers, experts]),
    int64, padded with -1: what vLLM's `compute_logical_maps` makes of the first."""
    import torch

    p = placement
    logical = torch.frombuffer(bytearray(p.logical_to_physical(width)), dtype=torch.int32).long()
    counts = torch.frombuffer(bytearray(p.counts()), dtype=torch.int32).long()
    return as_map(p), logical.view(p.layers, p.experts, -1), counts.view(p.layers, p.experts)


def mask(model_state: Any, dead: Iterable[int], *, ranks: int) -> Answer:
    """Makes the slots of the ranks `dead` unreachable in vLLM's maps, in place: captured graphs go on reading the same tensors."""
    now = model_state.physical_to_logical_map
    experts = model_state.logical_replica_count.shape[1]
    masked = placement_of(now, experts=experts, ranks=ranks).without(dead)
    compat.commit_expert_maps(model_state, as_map(masked))
    return Answer(masked=masked, uncovered=uncovered(masked))


def apply(
    model_state: Any,
    masked: Placement,
    plan: Plan,
    *,
    group: Any,
    refill: Refill,
    agree: Callable[[], None],
) -> None:
    """Brings vLLM from `masked` to `plan.placement`: weights first, maps last.

    Slots that get other weights are unreachable meanwhile. Experts with a live copy come by vLLM's own transfer over `group`; the others
    by `refill`, on the rank that gets them. `agree` returns when every survivor has come so far, and raises when one will not: then, and
    when `refill` raises, no slot whose weights may be half there is reachable. Blocks for the transfers; raises what those raise."""
    target = plan.placement
    if (masked.layers, masked.width, masked.experts) != (
        target.layers,
        target.width,
        target.experts,
    ):
        raise PlacementError(
            "a repair does not fit vLLM's maps",
            value=(target.layers, target.width, target.experts),
            rule=f"layers, physical and logical experts as now: {(masked.layers, masked.width, masked.experts)}",
        )
    old, new = as_map(masked), as_map(target)
    compat.commit_expert_maps(model_state, old.masked_fill(old != new, EMPTY))
    weights = model_state.model.expert_weights
    compat.move_expert_weights(model_state, old, new, group)
    first = group.rank() * target.slots
    for move in plan.moves:
        # A slot that vLLM found no sender for has been given what its buffer held.
        if move.source == EMPTY and first <= move.slot < first + target.slots:
            refill(move.layer, move.expert, [w[move.slot - first] for w in weights[move.layer]])
    agree()
    compat.commit_expert_maps(model_state, new)
