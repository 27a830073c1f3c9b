"""`rebalance_experts` with EPLB's arguments and shapes, answered by our planner: a drop-in whose plans survive what their slots allow.

The aim is the most that fits: any node and rank at once, else any rank at once, else refill, else balance alone. Tensors in, tensors out;
nested sequences in, lists out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts import planner
from dynamo_gpu_ft.experts.base import Aim, Domains, Placement

#: Where the sum of a layer's loads is put when they are no whole numbers; the planner takes sums below 2^42.
SUM = 1 << 40
#: From the most that can be asked for to the least; the first that fits is taken.
AIMS = (
    Aim(domain="node"),
    Aim(),
    Aim(mode="refill", domain="node"),
    Aim(mode="refill"),
    Aim(mode="refill", losses=0),
)


def rebalance_experts(
    weight: Any, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Any, Any, Any]:
    """(physical to logical [layers, num_replicas], logical to physical [layers, experts, most copies] padded with -1, copies [layers,
    experts]) for `weight` [layers, experts]: loads, whole numbers or not.

    `num_replicas` physical experts lie on `num_gpus` ranks, in order, and these on `num_nodes` nodes. `num_groups` is accepted and not
    used: copies of one expert go to distinct nodes where they can, which is the opposite of keeping a group of experts inside one.
    Raises `PlacementError` for sizes that do not divide, fewer slots than experts, and weights that are no loads."""
    rows = _whole(weight)
    domains = _domains(num_replicas, num_groups, num_nodes, num_gpus, len(rows[0]))
    slots = num_replicas // num_gpus
    placement = planner.plan(
        rows, ranks=num_gpus, slots=slots, domains=domains,
        aim=best_aim(len(rows[0]), num_gpus, slots, domains),
    ).placement  # fmt: skip
    return _like(weight, placement)


def best_aim(experts: int, ranks: int, slots: int, domains: Domains) -> Aim:
    """The first of `AIMS` that fits. Raises `PlacementError` when there is not even room for one copy of each."""
    for aim in AIMS:
        try:
            planner.feasible(experts, ranks, slots, domains, aim)
        except PlacementError:
            if aim is AIMS[-1]:
                raise
        else:
            return aim
    raise AssertionError("the last aim either fits or raises")


def _domains(replicas: int, groups: int, nodes: int, ranks: int, experts: int) -> Domains:
    if min(replicas, groups, nodes, ranks) < 1 or replicas % ranks or ranks % nodes:
        raise PlacementError(
            "these sizes cannot be planned for",
            value={"num_replicas": replicas, "num_groups": groups, "num_nodes": nodes, "num_gpus": ranks},
            rule="num_replicas is a multiple of num_gpus, num_gpus of num_nodes, and all are above 0",
        )  # fmt: skip
    if not experts <= replicas <= experts * ranks:
        raise PlacementError(
            "physical experts do not fit the logical ones",
            value=(replicas, experts),
            rule=f"between {experts}, one of each, and {experts * ranks}, each on every rank",
        )
    size = ranks // nodes
    return Domains.regular(ranks, per_tray=size, per_node=size)


def _whole(weight: Any) -> list[list[int]]:
    """Loads as whole numbers: as they are, or all of a layer scaled to sum up to about `SUM`."""
    rows = weight.tolist() if hasattr(weight, "tolist") else [list(row) for row in weight]
    if not rows or not isinstance(rows[0], list) or not rows[0]:
        raise PlacementError(
            "weights cannot be used", value=rows, rule="they have the shape [layers, experts]"
        )
    return [_scaled(row, number) for number, row in enumerate(rows)]


def _scaled(row: Sequence[Any], layer: int) -> list[int]:
    for load in row:
        if not isinstance(load, (int, float)) or not math.isfinite(load) or load < 0:
            raise PlacementError(
                "a weight is no load",
                where=f"layer {layer}",
                value=load,
                rule="finite numbers, none negative",
            )
    exact = [Fraction(load) for load in row]
    total = sum(exact)
    if total < SUM and all(load.denominator == 1 for load in exact):
        return [int(load) for load in exact]
    # Fractions: how floats are rounded must not decide where experts go.
    return [int(load * SUM / total) for load in exact]


def _like(weight: Any, placement: Placement) -> tuple[Any, Any, Any]:
    rows = placement.rows()
    slots = [placement.copies(layer) for layer in range(placement.layers)]
    most = max(len(each) for layer in slots for each in layer)
    physical = [[each + [-1] * (most - len(each)) for each in layer] for layer in slots]
    counts = [[len(each) for each in layer] for layer in slots]
    if hasattr(weight, "new_tensor"):  # torch's, without importing it
        import torch

        return tuple(
            torch.tensor(found, dtype=torch.int64, device=weight.device)
            for found in (rows, physical, counts)
        )
    return [list(row) for row in rows], physical, counts
