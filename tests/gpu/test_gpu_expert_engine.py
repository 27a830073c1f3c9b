"""Four expert-parallel ranks of the reference engine on one GPU: the CPU's tokens when ranks die, and experts brought back to device memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
sys.path[:0] = [str(Path(__file__).parent)]
from test_gpu_reference import PATIENT, backend, opened  # noqa: E402

from tests.engines.expert_world import Drill, Fault, Oracle, judge  # noqa: E402
from tests.engines.reference_world import tiny_mixtral  # noqa: E402

__all__ = ["backend"]
pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mixtral(tmp_path_factory.mktemp("gpu-experts"), experts=8)


@pytest.fixture(scope="module")
def oracle(model: Path) -> Oracle:
    return Oracle(model)


@pytest.fixture
def how(backend: str) -> dict[str, Any]:
    return {"backend": backend, "device": "cuda", "devices": 1, "start_timeout_s": 120, **PATIENT}


def test_with_two_copies_a_killed_rank_costs_no_token_and_survivors_keep_their_context(
    how: dict[str, Any], model: Path, oracle: Oracle, memory_folder: Path
) -> None:
    with Drill(model, memory_folder, ep=4, slots=4, name="gpu-instant", **how) as drill:
        judge(oracle, drill.run(1), instant=True)
        for point, shard in (("dispatch", 1), ("expert", 2), ("combine", 3)):
            pids = {s: p.pid for s, p in drill.engine.crew.members.items() if s != shard}
            contexts = {s: opened(pid) for s, pid in pids.items()}
            assert all(contexts.values()), "the ranks are on the GPU"
            report = drill.run(2, [Fault("kill", point, shard)])
            judge(oracle, report, instant=True)
            assert [death.shard for death in report.deaths] == [shard]
            assert {s: opened(pid) for s, pid in pids.items()} == contexts
            print(f"{how['backend']}, {point}: {report.pause_s:.3f} s without a token, a step takes {report.usual_s:.3f} s")  # fmt: skip
            drill.whole()
        judge(oracle, drill.run(3), instant=True)


def test_lost_experts_are_refilled_from_host_copies_and_damage_on_the_device_is_found(
    how: dict[str, Any], model: Path, oracle: Oracle, memory_folder: Path
) -> None:
    with Drill(model, memory_folder, ep=4, slots=3, name="gpu-refill", scrub=-1, **how) as drill:
        report = drill.run(4, [Fault("kill", "expert", 2)])
        judge(oracle, report, instant=False)
        assert report.masked
        assert drill.engine.settle(30)
        assert drill.engine.covered
        log = drill.engine.mending.log
        assert {landed.source for stage, landed in log if stage == "refill"} == {"neighbour"}
        judge(oracle, drill.run(5), instant=True)
        drill.whole()
        report = drill.run(6, [Fault("spoil", "", 1, times=4)])
        judge(oracle, report, instant=False)
        assert not report.deaths
        assert drill.engine.settle(30)
        assert any("damaged" in why for why in drill.engine.mending.refused)
        judge(oracle, drill.run(7), instant=True)
