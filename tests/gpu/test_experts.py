"""Experts on a real GPU: the router mask against its reference, a map that changes under a captured graph, refill into device rows."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("native", "unit")]
from expert_world import Source, manifest  # noqa: E402
from router_cases import agree, case_of  # noqa: E402

from dynamo_gpu_ft.experts import ahead  # noqa: E402
from dynamo_gpu_ft.experts.base import Domains, Placement, Plan  # noqa: E402
from dynamo_gpu_ft.experts.device_rows import DeviceRows, pinned  # noqa: E402
from dynamo_gpu_ft.experts.records import Geometry  # noqa: E402
from dynamo_gpu_ft.experts.refill import Want, refill  # noqa: E402
from dynamo_gpu_ft.experts.store import SlotStore  # noqa: E402
from dynamo_gpu_ft.experts.tables import FailoverTables  # noqa: E402
from dynamo_gpu_ft.kernels import router_reference as reference  # noqa: E402
from dynamo_gpu_ft.kernels.router import RouterMask  # noqa: E402

pytestmark = pytest.mark.gpu
LAYERS, EXPERTS, RANKS = 3, 16, 8


def on_device(case: dict[str, Any]) -> dict[str, Any]:
    moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in case.items()}
    return {**moved, "loss": torch.tensor([case["loss"]], dtype=torch.int32, device="cuda")}


def test_the_router_mask_does_what_the_reference_does(rng: random.Random) -> None:
    mask = RouterMask("cuda")
    assert mask.way in ("built", "nvrtc", "triton"), mask.why
    for number in range(80):
        case = case_of(rng, broken=number % 3 == 2)
        *out, results = mask.route(**on_device(case))
        agree(reference.route(**case), (*(tensor.cpu() for tensor in out), results.tolist()), case)


def test_triton_does_what_the_reference_does(rng: random.Random) -> None:
    triton_router = pytest.importorskip("dynamo_gpu_ft.kernels.triton_router")
    for number in range(30):
        case = case_of(rng, broken=number % 3 == 2)
        *out, results = triton_router.route(**on_device(case))
        agree(reference.route(**case), (*(tensor.cpu() for tensor in out), results.tolist()), case)


def no_repair(placement: Placement, alive: tuple[int, ...]) -> Plan:
    gone = set(range(placement.ranks)) - set(alive)
    return Plan(placement=placement.without(gone), moves=(), certificate=None)  # type: ignore[arg-type]


def paired() -> Placement:
    row = [e for half in range(2) for e in range(EXPERTS)]
    return Placement.of_rows([row] * LAYERS, experts=EXPERTS, ranks=RANKS)


def test_a_loss_changes_what_a_captured_graph_does_without_capturing_again(
    rng: random.Random,
) -> None:
    place, mask = paired(), RouterMask("cuda")
    assert mask.way in ("built", "nvrtc"), mask.why
    foreseen = ahead.all_of(place, Domains.regular(RANKS, per_tray=1, per_node=4), no_repair)
    tables = FailoverTables(place, foreseen, rank=0, width=2, device="cuda")
    logits = torch.randn(
        64, EXPERTS, generator=torch.Generator().manual_seed(rng.randrange(2**31))
    ).cuda()
    results = torch.zeros(3, dtype=torch.int64, device="cuda")

    def step() -> list[Any]:
        out = [
            mask.route(
                logits,
                tables.logical[:, layer],
                tables.counts[:, layer],
                tables.index,
                4,
                place.width,
                results=results,
            )
            for layer in range(LAYERS)
        ]
        return [
            (logical, slots, weights, tables.slots_of(0, logical))
            for logical, slots, weights, _ in out
        ]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen = step()

    for number, loss in enumerate((None, *tables.losses, None)):
        tables.restore(epoch=number)
        if loss is not None:
            assert tables.lose(loss.dead, epoch=number)
        results.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert int(results[0]) == 0
        dead = set(loss.dead) if loss else set()
        for layer, (logical, slots, weights, looked_up) in enumerate(seen):
            said = reference.route(
                logits.cpu(),
                tables.logical[:, layer].cpu(),
                tables.counts[:, layer].cpu(),
                tables.entry,
                4,
                place.width,
            )
            assert torch.equal(logical.cpu(), said.logical)
            assert torch.equal(slots.cpu(), said.slots)
            assert torch.allclose(weights.cpu(), said.weights, rtol=2e-6)
            assert not {int(s) // place.slots for s in slots.flatten()} & dead
            assert layer or torch.equal(looked_up, slots)
    twice = foreseen[0].masked.without([RANKS - 1])
    tables.publish(twice, epoch=99)
    graph.replay()
    torch.cuda.synchronize()
    assert not {int(s) // place.slots for s in seen[0][1].flatten()} & {0, RANKS - 1}


def test_experts_are_refilled_into_device_memory_and_a_flipped_bit_there_is_found() -> None:
    shape = Geometry(2, 3, 4, 1 << 20, rank=0)
    image = torch.zeros((2, 4, 1 << 20), dtype=torch.uint8, device="cuda")
    rows = DeviceRows(shape, image)
    store = SlotStore(shape, rows)
    wants = [Want(layer, slot, slot + 1) for layer in range(2) for slot in range(3)]
    done = refill(store, wants, [Source("liar", "lying"), Source("host")], manifest(2, 8, 1 << 20),
                  epoch=1, deadline_s=60, room=pinned)  # fmt: skip
    assert done.complete, done.left
    assert store.routable(1) == (1, 2, 3)
    assert store.scrub() == []
    image[1, store.row_of(1)[0], 4097] ^= 4
    torch.cuda.synchronize()
    assert store.scrub() == [(1, 0, 1)]
    assert image.data_ptr() == rows.image.data_ptr()
