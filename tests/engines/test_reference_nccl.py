"""The reference engine over NCCL, by a simulated library: the tokens that it has over gloo, and ranks lost in the midst of a collective."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.cli.models import tiny_llama  # noqa: E402
from dynamo_gpu_ft.engines.reference.driver import Engine  # noqa: E402
from dynamo_gpu_ft.engines.reference.experts.exchange import Exchange  # noqa: E402
from dynamo_gpu_ft.engines.reference.joint import Group  # noqa: E402
from dynamo_gpu_ft.engines.reference.options import Options  # noqa: E402
from dynamo_gpu_ft.errors import ConfigError  # noqa: E402
from dynamo_gpu_ft.sim.nccl import build  # noqa: E402
from tests.engines import expert_world  # noqa: E402
from tests.engines.reference_drill import DEADLINE_S, Drill, Fault, prompts  # noqa: E402
from tests.engines.reference_world import ThreadEngine, tiny_mixtral  # noqa: E402

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


def over_nccl() -> dict[str, Any]:
    return {"backend": "nccl", "nccl_library": str(build.library())}


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    """What one process has, for the prompts of seed 1."""
    torch.set_num_threads(1)
    engine = ThreadEngine(tiny_llama())
    return [engine.generate(prompt, 24) for prompt in prompts(1)]


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_tokens_are_the_same_and_a_rank_lost_in_a_collective_is_replaced(
    memory_folder: Path, alone: list[list[int]], tp: int, pp: int
) -> None:
    how = {"tp": tp, "pp": pp, "standbys": 1, "arena_name": f"nccl{tp}"}
    with Drill(tiny_llama(), memory_folder, **how, **over_nccl()) as drill:
        assert drill.run(1).tokens == alone
        for kind, shard in (("kill", 1), ("stop", 0)):
            report = drill.run(1, [Fault(kind, "collective", shard)])
            assert not report.failed
            assert report.tokens == alone
            assert [death.shard for death in report.deaths] == [shard]
            assert report.kept == {shard: False, 1 - shard: True}
            assert report.longest_step_s < DEADLINE_S
    assert not list(Path("/dev/shm").glob("simulated-nccl-*"))


def test_a_rank_lost_while_communicators_are_made_is_replaced_too(
    memory_folder: Path, alone: list[list[int]]
) -> None:
    with Drill(tiny_llama(), memory_folder, tp=2, arena_name="rebuild", **over_nccl()) as drill:
        report = drill.run(1, [Fault("kill", "decode", 1), Fault("kill", "rebuild", 0)])
        assert not report.failed
        assert report.tokens == alone
        assert {death.shard for death in report.deaths} == {0, 1}


def test_expert_parallel_ranks_go_on_without_one_that_was_lost_in_an_exchange(
    memory_folder: Path,
) -> None:
    model = tiny_mixtral(memory_folder / "model", experts=8)
    oracle = expert_world.Oracle(model)
    with expert_world.Drill(
        model, memory_folder, ep=4, slots=4, name="nccl-ep", **over_nccl()
    ) as drill:
        expert_world.judge(oracle, drill.run(1), instant=True)
        for kind, point, shard in (("kill", "combine", 2), ("stop", "dispatch", 1)):
            report = drill.run(2, [expert_world.Fault(kind, point, shard)])
            expert_world.judge(oracle, report, instant=True)
            assert [death.shard for death in report.deaths] == [shard]
            assert report.pids == dict.fromkeys({0, 1, 2, 3} - {shard}, True)
            drill.whole()
        expert_world.judge(oracle, drill.run(3), instant=True)


class Seen:
    """A communicator that notes where the tensors lie that it gets."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def all_gather(self, tensor: Any) -> list[Any]:
        self.places.append(tensor.device.type)
        return [tensor, tensor]

    def all_to_all(self, out: Any, tensor: Any) -> None:
        self.places += [out.device.type, tensor.device.type]

    def send(self, tensor: Any, to: int) -> None:
        self.places.append(tensor.device.type)

    recv = send


def test_tensors_go_to_nccl_from_where_they_lie_without_a_copy_in_host_memory() -> None:
    group, seen, rows = (
        Group(),
        Seen(),
        torch.ones(2, 4, device="meta"),
    )  # a device, but for its memory
    group._comms, group.on_device, group.widths = {"stage": seen, "pipe": seen}, True, [4, 4]  # type: ignore[dict-item]
    assert group.sum(rows).device == group.take(rows, 0).device == rows.device
    assert group.join_columns(rows).shape == (2, 8)
    group.give(rows, 1)
    exchange = Exchange(seen, [0, 1], 0, 1, on_device=True)  # type: ignore[arg-type]
    assert exchange._swap(rows.view(2, 1, 4), None)[0].device == rows.device
    assert seen.places == ["meta"] * 6
    group.on_device = False
    with pytest.raises(NotImplementedError, match="meta"):  # there is nothing to be copied
        group.sum(rows)


def test_an_engine_whose_ranks_cannot_have_the_back_end_does_not_begin_to_start(
    memory_folder: Path,
) -> None:
    settings = {"arena_dir": str(memory_folder)}
    for backend, why in (("mpi", "one of gloo, nccl"), ("nccl", "no simulated NCCL is named")):
        with pytest.raises(ConfigError, match=why):
            Engine(Options(model=str(tiny_llama()), backend=backend, settings=settings))
    for device in ("tpu", *(() if torch.backends.cuda.is_built() else ("cuda",))):
        with pytest.raises(ConfigError, match="ranks cannot compute on this device"):
            Engine(Options(model=str(tiny_llama()), device=device, settings=settings))
    assert not list(memory_folder.iterdir())
