"""vLLM's own expert load balancer with our planner in it, over real gloo groups, and its maps and weights when a rank is killed.

vLLM refuses EPLB in its configuration on a CPU, and its router's mapping to physical experts is a GPU kernel; so EplbState, the policy
registry, the maps and the weight transfer run for real, without a model's forward pass. See eplb_rank.py for what stands in for torch.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from dynamo_gpu_ft.engines.vllm import compat, expert_faults, experts, plugin  # noqa: E402
from dynamo_gpu_ft.errors import ConfigError, PlacementError  # noqa: E402
from dynamo_gpu_ft.experts.base import Aim, Placement, Plan  # noqa: E402

SCRIPT = Path(__file__).with_name("eplb_rank.py")
LOADS = [[40, 3, 17, 5, 9, 1, 30, 2], [1, 2, 3, 4, 5, 6, 7, 80], [10] * 8]


def group(tmp_path: Path, ranks: int, **story: Any) -> list[dict[str, Any] | None]:
    """What each rank tells at the end; None for the killed one. Every wait inside has a deadline, and so has this one."""
    told = json.dumps({"nodes": 1, "loads": LOADS} | story)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with ExitStack() as files:
        processes = [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), str(rank), str(ranks), str(tmp_path), told],
                env=environment, stdout=subprocess.DEVNULL,
                stderr=files.enter_context((tmp_path / f"{rank}.err").open("wb")),
            )
            for rank in range(ranks)
        ]  # fmt: skip
    try:
        codes = [process.wait(100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    killed = story.get("kill", -1)
    for rank, code in enumerate(codes):
        expected = -signal.SIGKILL if rank == killed else 0
        assert code == expected, (tmp_path / f"{rank}.err").read_text()[-3000:]
    files = [tmp_path / f"{rank}.json" for rank in range(ranks)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def assert_weights_are_where_the_map_says(told: list[dict[str, Any] | None], key: str) -> None:
    for rank, one in enumerate(told):
        if one is None:
            continue
        physical = one[key]["maps"][0]
        slots = len(one[key]["holds"][0])
        for layer, row in enumerate(physical):
            assert one[key]["holds"][layer] == row[rank * slots : (rank + 1) * slots]


def reached(told: dict[str, Any], key: str) -> list[list[set[int]]]:
    """Per layer and expert the slots that vLLM's router may choose: the first `count` of the map."""
    _, logical, counts = told[key]["maps"]
    return [
        [set(slots[:n]) for slots, n in zip(*layer, strict=True)]
        for layer in zip(logical, counts, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.engine
def test_vllms_balancer_places_by_our_plan_and_a_killed_rank_leaves_no_expert_uncovered(
    tmp_path: Path,
) -> None:
    told = group(tmp_path, 4, slots=4, mode="instant", kill=1)
    alive = [one for one in told if one]
    assert len(alive) == 3
    assert {one["policy"] for one in alive} == {"GpuFtEplbPolicy"}
    assert_weights_are_where_the_map_says(told, "balanced")
    assert_weights_are_where_the_map_says(told, "repaired")
    for one in alive:
        assert one["balanced"]["maps"] == alive[0]["balanced"]["maps"]
        assert one["repaired"]["maps"] == alive[0]["repaired"]["maps"]
        assert one["uncovered"] == []
        assert one["refilled"] == []
        assert one["same_tensor"]
        for key in ("masked", "repaired"):
            for layer in one[key]["maps"][0]:
                assert layer[4:8] == [-1] * 4
            for layer in reached(one, key):
                assert all(slots and not slots & {4, 5, 6, 7} for slots in layer)


@pytest.mark.slow
@pytest.mark.engine
def test_lost_experts_come_back_into_slots_that_nobody_reaches_meanwhile(tmp_path: Path) -> None:
    """Refill, with copies between survivors too: vLLM's own transfer must do without the dead rank."""
    # Start of vLLM: slots 0..7 hold 0..7, then 0..3 again. Rank 1 of 3 dies with 4..7; 4..7 come in the place of second copies,
    # and expert 0 moves to a slot of its own.
    target = [[0, 1, 2, 4, -1, -1, -1, -1, 5, 6, 7, 3]] * 2 + [[4, 5, 0, 3, -1, -1, -1, -1, 1, 6, 2, 7]]  # fmt: skip
    told = group(tmp_path, 3, slots=4, kill=1, target=target, loads=[[0] * 8] * 3)
    for rank, one in enumerate(told):
        if one is None:
            continue
        assert one["policy"] == "DefaultEplbPolicy"
        assert one["repaired"]["maps"][0] == target
        lost = set(range(8)) - set(one["masked"]["maps"][0][0])
        assert sorted(one["uncovered"]) == sorted([layer, e] for layer in range(3) for e in range(8) if not reached(one, "masked")[layer][e])  # fmt: skip
        assert lost
        mine = range(rank * 4, rank * 4 + 4)
        expected = [[layer, e] for layer in range(3) for s, e in enumerate(target[layer]) if s in mine and [layer, e] in one["uncovered"]]  # fmt: skip
        assert sorted(one["refilled"]) == sorted(expected)
    assert_weights_are_where_the_map_says(told, "repaired")


def test_maps_are_those_that_vllm_computes_itself() -> None:
    from vllm.distributed.eplb.eplb_state import compute_logical_maps

    rows = [[0, 1, 2, -1, 2, 1], [2, -1, 0, 1, 0, 0]]
    placement = Placement.of_rows(rows, experts=4, ranks=3)
    physical, logical, counts = expert_faults.maps_of(placement)
    theirs = compute_logical_maps(physical, 4)
    assert torch.equal(logical, theirs[0])
    assert torch.equal(counts, theirs[1])
    assert expert_faults.placement_of(physical, experts=4, ranks=3) == placement


def test_a_refill_that_fails_leaves_half_written_slots_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    committed: list[Any] = []
    monkeypatch.setattr(compat, "commit_expert_maps", lambda _, m: committed.append(m.tolist()))
    monkeypatch.setattr(compat, "move_expert_weights", lambda *_: None)
    masked = Placement.of_rows([[0, 1, 0, -1, -1, -1]], experts=3, ranks=3)
    target = Placement.of_rows([[0, 1, 2, -1, -1, -1]], experts=3, ranks=3)

    class State:
        class model:  # noqa: N801 - as vLLM names the attribute
            expert_weights = ((torch.zeros(2, 1),),)

    class Group:
        @staticmethod
        def rank() -> int:
            return 1

    plan = _plan(target, [(0, 2, -1, 2)])

    def broken(layer: int, expert: int, tensors: Any) -> None:
        raise OSError("no host copy")

    arguments: dict[str, Any] = {"group": Group, "refill": broken, "agree": lambda: None}
    with pytest.raises(OSError, match="no host copy"):
        expert_faults.apply(State, masked, plan, **arguments)
    assert committed == [[[0, 1, -1, -1, -1, -1]]]
    with pytest.raises(PlacementError, match="does not fit"):
        other = Placement.of_rows([[0, 1, 2]], experts=3, ranks=3)
        expert_faults.apply(State, masked, _plan(other, []), **arguments)


def _plan(placement: Placement, moves: list[tuple[int, int, int, int]]) -> Plan:
    from dynamo_gpu_ft.experts.base import Certificate, Move

    nothing = Certificate(
        aim=Aim(), alive=(), copies=(), one=(0, 0), two=(0, 0), domains={}, room=0, balance=(), bytes=0, worst=0, digest="",
    )  # fmt: skip
    made = tuple(Move(*move, 1) for move in moves)
    return Plan(placement=placement, moves=made, certificate=nothing)


def test_several_nodes_ask_for_the_survival_of_each_and_the_old_map_is_handed_on() -> None:
    asked: list[dict[str, Any]] = []

    def planner(loads: Any, **given: Any) -> Plan:
        asked.append(given)
        return _plan(Placement.of_rows([[0, 1, 1, 0]], experts=2, ranks=4), [])

    ours = experts.policy(compat.eplb_policies()["default"], "instant", planner)
    old = torch.tensor([[0, 1, 0, 1, 1, 0]])
    found = ours.rebalance_experts(torch.tensor([[3.0, 4.0]]), 4, 1, 2, 4, old)
    assert found.tolist() == [[0, 1, 1, 0]]
    assert found.dtype == torch.int64
    assert asked[0]["aim"] == Aim(domain="node")
    assert asked[0]["domains"].node == (0, 0, 1, 1)
    assert asked[0]["old"].rows() == [(0, 1, 0, 1)]
    ours.rebalance_experts(torch.tensor([[3, 4]]), 4, 1, 1, 4, torch.tensor([[0, 1]]))
    assert asked[1]["aim"] == Aim()
    assert asked[1]["old"].rows() == [(0, 1, -1, -1)]


def test_where_no_placement_survives_vllms_own_policy_takes_over_and_says_why_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def planner(loads: Any, **given: Any) -> Plan:
        raise PlacementError("2 ranks with 0 extra slots cannot survive a loss (instant); 4 can")

    stock = compat.eplb_policies()["default"]
    ours = experts.policy(getattr(stock, "stock", stock), "instant", planner)
    weight = torch.tensor([[5, 1, 2, 3]])
    experts._said.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            found = ours.rebalance_experts(weight, 4, 1, 1, 2)
    assert torch.equal(found, stock.rebalance_experts(weight, 4, 1, 1, 2))
    said = [r.message for r in caplog.records if "NOT PROTECTED" in r.message]
    assert len(said) == 1
    assert "cannot survive a loss" in said[0]


def test_the_plugin_installs_what_the_setting_names_and_never_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policies = compat.eplb_policies()
    stock = policies["default"]
    monkeypatch.setitem(policies, "default", stock)
    plugin.register()
    assert policies["default"] is stock
    monkeypatch.setenv("DYN_GPU_FT_EXPERTS", "instant")
    for _ in range(2):
        plugin.register()
        assert policies["default"].stock is stock
    policies["default"] = stock
    monkeypatch.setenv("DYN_GPU_FT_EXPERTS", "sometimes")
    with caplog.at_level(logging.WARNING):
        plugin.register()
    assert policies["default"] is stock
    assert "instant, refill, or vllm" in caplog.text
    with pytest.raises(ConfigError):
        experts.install("")
