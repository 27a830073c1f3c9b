"""Where SGLang's experts are, by our planner: its start from a file, its rebalancing, and its maps after a loss.

SGLang has no registry of placement algorithms (a closed enum and one function), so `install` exchanges that function; the start needs no
exchange: `--init-expert-location FILE` takes what `start_file` writes. Written from the sources of sgl-project/sglang, files
python/sglang/srt/eplb/{expert_location,eplb_algorithms/__init__,eplb_algorithms/elasticity_aware}.py as of November 2026, and tested by
their recorded signatures and shapes: SGLang has no build for machines without a GPU.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts.ahead import uncovered
from dynamo_gpu_ft.experts.base import Aim, Domains, Mode, Placement

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("dynamo_gpu_ft.engines.sglang")
_said: set[str] = set()


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """The tensors of SGLang's `ExpertLocationMetadata`, on the CPU, int64.

    physical_to_logical_map                [layers, physical]; an empty or dead slot says 0, as SGLang's own elastic algorithm has it
    logical_to_all_physical_map            [layers, logical, physical], padded with -1; live slots alone
    logical_to_all_physical_map_num_valid  [layers, logical]
    logical_to_rank_dispatch_physical_map  [layers, logical] for one rank, as `ep_dispatch_algorithm == "static"` uses it"""

    physical_to_logical_map: Any
    logical_to_all_physical_map: Any
    logical_to_all_physical_map_num_valid: Any
    logical_to_rank_dispatch_physical_map: Any


def location(placement: Placement, *, rank: int, dead: Iterable[int] = ()) -> Location:
    """SGLang's tensors for `placement` with the ranks `dead` gone, as rank `rank` has them.

    Raises `PlacementError` while an expert has no live slot: SGLang's maps cannot say so (it dispatches to whatever the map holds), so
    repair first or mask the router."""
    left = placement.without(dead)
    lost = uncovered(left)
    if lost:
        raise PlacementError(
            "SGLang's maps cannot leave an expert without a slot",
            value=f"{len(lost)} of them, first (layer, expert) {lost[0]}",
            rule="every expert has a live slot",
            remedy="experts.planner.repair, then this",
        )
    physical, logical, counts = _maps(left, left.width)
    return Location(
        physical_to_logical_map=physical.clamp(min=0),
        logical_to_all_physical_map=logical,
        logical_to_all_physical_map_num_valid=counts,
        logical_to_rank_dispatch_physical_map=_dispatch(left, rank),
    )


def _maps(placement: Placement, width: int | None) -> tuple[torch.Tensor, ...]:
    import torch

    p = placement

    def tensor(cells: bytes) -> torch.Tensor:
        return torch.frombuffer(bytearray(cells), dtype=torch.int32).long()

    return (
        tensor(p.table).view(p.layers, p.width),
        tensor(p.logical_to_physical(width)).view(p.layers, p.experts, -1),
        tensor(p.counts()).view(p.layers, p.experts),
    )


def _dispatch(placement: Placement, rank: int) -> torch.Tensor:
    """A copy on the rank itself, else copies by turns: rank r takes the (r + expert)-th, so that sources share them evenly."""
    import torch

    rows = []
    for layer in range(placement.layers):
        row = []
        for expert, slots in enumerate(placement.copies(layer)):
            own = [slot for slot in slots if slot // placement.slots == rank]
            row.append(own[0] if own else slots[(rank + expert) % len(slots)])
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64)


def start_file(placement: Placement) -> str:
    """JSON for `--init-expert-location`: SGLang starts with this placement. Raises `PlacementError` where a slot is empty."""
    rows = [list(row) for row in placement.rows()]
    if any(min(row) < 0 for row in rows):
        raise PlacementError(
            "SGLang cannot start with empty slots", rule="every slot holds an expert"
        )
    return json.dumps({"physical_to_logical_map": rows})


def rebalancer(stock: Any, mode: Mode, planner: Any = None) -> Any:
    """What stands in for `sglang.srt.eplb.eplb_algorithms.rebalance_experts`, with its signature; `stock` is asked, loudly and once per
    reason, where no placement survives the loss of a rank."""

    def rebalance_experts(
        tokens_per_expert: torch.Tensor,
        num_physical_experts: int,
        num_local_physical_experts: int,
        num_groups: int | None,
        num_nodes: int,
        algorithm: Any,
    ) -> tuple[torch.Tensor, ...]:
        try:
            make = planner or importlib.import_module("dynamo_gpu_ft.experts.planner").plan
            ranks = num_physical_experts // num_local_physical_experts
            loads = tokens_per_expert.sum(dim=0).round().long().tolist()
            made = _planned(make, loads, ranks, num_local_physical_experts, num_nodes, mode)
            physical, logical, counts = _maps(made.placement, None)
            return physical.clamp(min=0), logical, counts
        except Exception as error:
            _say_once(
                "NOT PROTECTED: experts are placed by SGLang's own algorithm, which may leave one without a live copy when a rank "
                f"dies: {error if isinstance(error, PlacementError) else f'{type(error).__name__}: {error}'}"
            )
        own: tuple[torch.Tensor, ...] = stock(
            tokens_per_expert=tokens_per_expert,
            num_physical_experts=num_physical_experts,
            num_local_physical_experts=num_local_physical_experts,
            num_groups=num_groups,
            num_nodes=num_nodes,
            algorithm=algorithm,
        )
        return own

    rebalance_experts.stock = stock  # type: ignore[attr-defined]
    return rebalance_experts


def _planned(
    make: Any, loads: list[list[int]], ranks: int, slots: int, nodes: int, mode: Mode
) -> Any:
    domains = Domains.regular(ranks, per_tray=1, per_node=max(1, ranks // nodes))
    given = {"ranks": ranks, "slots": slots, "domains": domains}
    if nodes > 1:
        try:
            return make(loads, aim=Aim(mode=mode, domain="node"), **given)
        except PlacementError as error:
            _say_once(f"experts survive the loss of a rank, not of a node: {error}")
    return make(loads, aim=Aim(mode=mode), **given)


def install(mode: Mode) -> None:
    """Exchanges SGLang's function in this process; can be repeated. Raises ImportError without SGLang."""
    algorithms: Any = importlib.import_module("sglang.srt.eplb.eplb_algorithms")
    own = algorithms.rebalance_experts
    algorithms.rebalance_experts = rebalancer(getattr(own, "stock", own), mode)


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        _log.warning("%s", text)
