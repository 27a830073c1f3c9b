"""Our planner in the place of vLLM's own policy for expert load balancing: replicas that survive a rank or a node, balanced as well.

Installed by the general plugin when the setting `experts` asks for it. vLLM's configuration allows no policy but "default", so what
that name stands for is exchanged; vLLM's own is kept and takes over, loudly and once per reason, where ours has no answer.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dynamo_gpu_ft.engines.vllm import compat
from dynamo_gpu_ft.errors import ConfigError, PlacementError
from dynamo_gpu_ft.experts.base import EMPTY, Aim, Domains, Mode, Placement, Plan

if TYPE_CHECKING:
    import torch

MODES = ("instant", "refill")
_log = logging.getLogger("dynamo_gpu_ft.engines.vllm")
_said: set[str] = set()

Planner = Callable[..., Plan]


def install(mode: str) -> bool:
    """Exchanges vLLM's policy for ours in this process; can be repeated. True when ours is in place. Raises `ConfigError` for a mode
    that is none."""
    if mode not in MODES:
        raise ConfigError(
            "configuration key 'experts' is malformed",
            value=mode,
            rule="instant, refill, or vllm for its own policy",
        )
    policies = compat.eplb_policies()
    policies["default"] = policy(getattr(policies["default"], "stock", policies["default"]), mode)
    return True


def policy(stock: Any, mode: str, planner: Planner | None = None) -> Any:
    """A subclass of vLLM's policy `stock` that plans with ours. `planner` as `experts.planner.plan`, which is the default."""

    class GpuFtEplbPolicy(stock):
        """Same inputs on every rank give the same map: integers alone, no communication."""

        @classmethod
        def rebalance_experts(
            cls,
            weight: torch.Tensor,
            num_replicas: int,
            num_groups: int,
            num_nodes: int,
            num_ranks: int,
            old_global_expert_indices: torch.Tensor | None = None,
        ) -> torch.Tensor:
            old = old_global_expert_indices
            try:
                return planned(planner, weight, num_replicas, num_nodes, num_ranks, old, mode)
            except Exception as error:
                _say_once(
                    f"NOT PROTECTED: experts are placed by vLLM's own policy, which may leave one without a live copy when a rank "
                    f"dies: {error if isinstance(error, PlacementError) else f'{type(error).__name__}: {error}'}"
                )
            return super().rebalance_experts(
                weight, num_replicas, num_groups, num_nodes, num_ranks, old
            )

    GpuFtEplbPolicy.stock = stock
    return GpuFtEplbPolicy


def planned(
    planner: Any,
    weight: torch.Tensor,
    replicas: int,
    nodes: int,
    ranks: int,
    old: torch.Tensor | None,
    mode: str,
) -> torch.Tensor:
    """int64 [layers, replicas] on the CPU. Of several nodes the loss of each is survived; where that cannot be, said once, of each rank.

    weight  tokens [layers, experts]     old  [layers, physical experts] as placed now; -1: a slot that holds nothing
    Raises `PlacementError` where no placement survives the loss of a rank."""
    if planner is None:
        # Only where it is used: the plugin is imported in every process of every vLLM.
        planner = importlib.import_module("dynamo_gpu_ft.experts.planner").plan
    loads = weight.round().long().tolist() if weight.is_floating_point() else weight.tolist()
    domains = Domains.regular(ranks, per_tray=1, per_node=ranks // nodes)
    kind: Mode = "refill" if mode == "refill" else "instant"
    given: dict[str, Any] = {"ranks": ranks, "slots": replicas // ranks, "domains": domains}
    if old is not None:
        rows = [_fitted(row, replicas) for row in old.tolist()]
        given["old"] = Placement.of_rows(rows, experts=len(loads[0]), ranks=ranks)
    if nodes > 1:
        try:
            return as_map(planner(loads, aim=Aim(mode=kind, domain="node"), **given).placement)
        except PlacementError as error:
            _say_once(f"experts survive the loss of a rank, not of a node: {error}")
    return as_map(planner(loads, aim=Aim(mode=kind), **given).placement)


def as_map(placement: Placement) -> torch.Tensor:
    """physical_to_logical as vLLM has it: int64 [layers, physical experts], -1 for empty and dead slots."""
    import torch

    flat = torch.frombuffer(bytearray(placement.table), dtype=torch.int32)
    return flat.long().view(placement.layers, placement.width)


def _fitted(row: Sequence[int], replicas: int) -> list[int]:
    # vLLM shrinks by giving up the last ranks and grows by adding empty ones at the end.
    return [*row[:replicas], *[EMPTY] * (replicas - len(row))]


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        _log.warning("%s", text)
