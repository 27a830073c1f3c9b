"""Our placements in SGLang's shapes, by its recorded signatures: no SGLang runs without a GPU."""

import json
import logging
import sys
import types
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.engines.sglang import experts  # noqa: E402
from dynamo_gpu_ft.errors import PlacementError  # noqa: E402
from dynamo_gpu_ft.experts.base import Aim, Certificate, Placement, Plan  # noqa: E402

PAIRS = Placement.of_rows([[0, 1, 2, 3, 0, 1, 2, 3], [3, 2, 1, 0, 3, 2, 1, 0]], experts=4, ranks=4)


def test_the_tensors_have_the_shapes_that_expert_location_metadata_asserts() -> None:
    found = experts.location(PAIRS, rank=1)
    layers, physical = found.physical_to_logical_map.shape
    assert found.logical_to_all_physical_map.shape == (layers, 4, physical)
    assert found.logical_to_all_physical_map_num_valid.shape == (layers, 4)
    assert found.logical_to_rank_dispatch_physical_map.shape == (layers, 4)
    assert all(t.dtype == torch.int64 for t in (found.physical_to_logical_map, found.logical_to_all_physical_map))  # fmt: skip
    for layer in range(layers):
        for expert in range(4):
            row = found.logical_to_all_physical_map[layer, expert]
            valid = int(found.logical_to_all_physical_map_num_valid[layer, expert])
            assert valid == int(torch.count_nonzero(row != -1))
            assert (row[valid:] == -1).all()
            assert all(found.physical_to_logical_map[layer, s] == expert for s in row[:valid])


def test_after_a_loss_no_map_leads_to_the_dead_rank_and_no_index_is_negative() -> None:
    for dead in range(4):
        for rank in range(4):
            found = experts.location(PAIRS, rank=rank, dead=[dead])
            gone = {2 * dead, 2 * dead + 1}
            assert int(found.physical_to_logical_map.min()) == 0
            reached = set(found.logical_to_all_physical_map.flatten().tolist())
            assert not reached & gone
            assert not set(found.logical_to_rank_dispatch_physical_map.flatten().tolist()) & gone


def test_each_rank_is_sent_to_its_own_copy_and_else_the_copies_share_the_ranks() -> None:
    own = experts.location(PAIRS, rank=2).logical_to_rank_dispatch_physical_map[0].tolist()
    assert own[:2] == [4, 5]
    chosen = [experts.location(PAIRS, rank=r).logical_to_rank_dispatch_physical_map[0][0].item() for r in (1, 3)]  # fmt: skip
    assert len(chosen) == 2
    assert set(chosen) <= {0, 4}


def test_an_uncovered_expert_and_an_empty_slot_are_refused_with_what_to_do() -> None:
    single = Placement.of_rows([[0, 1, 2, 3]], experts=4, ranks=4)
    with pytest.raises(PlacementError, match="repair"):
        experts.location(single, rank=0, dead=[1])
    with pytest.raises(PlacementError, match="every slot holds"):
        experts.start_file(single.without([1]))
    assert json.loads(experts.start_file(single)) == {"physical_to_logical_map": [[0, 1, 2, 3]]}


def _plan(placement: Placement) -> Plan:
    nothing = Certificate(
        aim=Aim(), alive=(), copies=(), one=(0, 0), two=(0, 0), domains={}, room=0, balance=(), bytes=0, worst=0, digest="",
    )  # fmt: skip
    return Plan(placement=placement, moves=(), certificate=nothing)


def test_the_exchanged_function_sums_passes_and_asks_for_the_survival_of_a_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def planner(loads: Any, **given: Any) -> Plan:
        asked.append((loads, given))
        return _plan(PAIRS)

    def stock(**_: Any) -> Any:
        raise AssertionError("not asked")

    module = types.ModuleType("sglang.srt.eplb.eplb_algorithms")
    module.rebalance_experts = stock  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sglang.srt.eplb.eplb_algorithms", module)
    for name in ("sglang", "sglang.srt", "sglang.srt.eplb"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for _ in range(2):
        experts.install("instant")
        assert module.rebalance_experts.stock is stock
    ours = experts.rebalancer(stock, "instant", planner)
    count = torch.tensor([[[1, 2, 3, 4]] * 2, [[10, 0, 0, 0]] * 2])
    physical, logical, counts = ours(
        tokens_per_expert=count, num_physical_experts=8, num_local_physical_experts=2, num_groups=None, num_nodes=2, algorithm=None,
    )  # fmt: skip
    assert asked[0][0] == [[11, 2, 3, 4]] * 2
    assert asked[0][1]["aim"] == Aim(domain="node")
    assert physical.tolist() == [list(row) for row in PAIRS.rows()]
    assert logical.shape == (2, 4, 2)
    assert counts.tolist() == [[2] * 4] * 2


def test_where_nothing_survives_sglangs_own_algorithm_is_asked_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def planner(loads: Any, **given: Any) -> Plan:
        raise PlacementError("4 ranks with 0 extra slots cannot survive a loss (instant); 4 can")

    experts._said.clear()
    ours = experts.rebalancer(lambda **given: given["num_groups"], "instant", planner)
    with caplog.at_level(logging.WARNING):
        assert [ours(torch.ones(1, 1, 4), 4, 1, 7, 1, None) for _ in range(2)] == [7, 7]
    assert [r.message.count("cannot survive a loss") for r in caplog.records] == [1]
