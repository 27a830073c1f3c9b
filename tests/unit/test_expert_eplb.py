"""`rebalance_experts` has EPLB's shapes and consistent maps, and survives what its slots allow."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from placement_world import zipf

from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts.base import Aim, Domains, Placement
from dynamo_gpu_ft.experts.eplb import rebalance_experts
from dynamo_gpu_ft.experts.planner import certify


def consistent(physical: Any, logical: Any, counts: Any, experts: int) -> None:
    for row, slots, count in zip(physical, logical, counts, strict=True):
        assert len(slots) == len(count) == experts
        for expert in range(experts):
            where = [slot for slot, e in enumerate(row) if e == expert]
            assert count[expert] == len(where) >= 1
            assert [s for s in slots[expert] if s >= 0] == where
            assert len(slots[expert]) == max(map(max, counts))


def test_maps_have_eplbs_shapes_and_agree() -> None:
    physical, logical, counts = rebalance_experts(zipf(3, 12, 0.8), 16, 4, 2, 8)
    assert [len(row) for row in physical] == [16] * 3
    consistent(physical, logical, counts, 12)


@pytest.mark.parametrize(
    ("replicas", "one", "node"), [(72, 8, 2), (64, 0, 0)], ids=["room for two", "too little"]
)
def test_what_the_slots_allow_is_survived(replicas: int, one: int, node: int) -> None:
    loads = zipf(2, 36, 0.6)
    physical, _, _ = rebalance_experts(loads, replicas, 1, 2, 8)
    placement = Placement.of_rows(physical, experts=36, ranks=8)
    found = certify(
        placement, loads, domains=Domains.regular(8, per_node=4), aim=Aim(mode="refill")
    )
    assert found.one[0] >= one
    assert found.domains["node"][0] >= node


def test_tensors_come_back_as_tensors_of_the_same_answer() -> None:
    torch = pytest.importorskip("torch")
    loads = zipf(3, 12, 0.8)
    plain = rebalance_experts(loads, 16, 4, 2, 8)
    for weight in (torch.tensor(loads), torch.tensor(loads, dtype=torch.float32)):
        found = rebalance_experts(weight, 16, 4, 2, 8)
        assert all(each.dtype == torch.int64 for each in found)
        assert [each.tolist() for each in found] == list(plain)


def test_fractions_are_loads_as_well() -> None:
    loads = [[load / 3e9 for load in row] for row in zipf(2, 12, 0.8)]
    assert rebalance_experts(loads, 16, 1, 1, 8) == rebalance_experts(
        [[load * 2.0**70 for load in row] for row in loads], 16, 1, 1, 8
    )


@pytest.mark.parametrize(
    ("weight", "sizes"),
    [
        ([[1, 2, 3]], (4, 1, 1, 3)),
        ([[1, 2, 3]], (4, 1, 3, 4)),
        ([[1, 2, 3]], (2, 1, 1, 2)),
        ([[1, 2, 3]], (8, 1, 1, 2)),
        ([[1, 2, 3]], (0, 1, 1, 2)),
        ([[1, -2, 3]], (4, 1, 1, 2)),
        ([[1, float("nan"), 3]], (4, 1, 1, 2)),
        ([[1, float("inf"), 3]], (4, 1, 1, 2)),
        ([[1, "2", 3]], (4, 1, 1, 2)),
        ([], (4, 1, 1, 2)),
        ([[]], (4, 1, 1, 2)),
    ],
)
def test_sizes_and_weights_that_cannot_be_are_refused(weight: Any, sizes: tuple[int, ...]) -> None:
    with pytest.raises(PlacementError):
        rebalance_experts(weight, *sizes)


def test_torch_is_not_imported_for_lists() -> None:
    program = (
        "import sys; from dynamo_gpu_ft.experts.eplb import rebalance_experts as r; "
        "r([[1, 2]], 4, 1, 1, 2); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
