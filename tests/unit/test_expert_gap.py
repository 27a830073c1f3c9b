"""What a masked router costs is measured exactly, and exported under declared names."""

from __future__ import annotations

import math
import random
import socket

import prometheus_client
import pytest
from expert_world import Source, geometry, manifest

from dynamo_gpu_ft.experts import report
from dynamo_gpu_ft.experts.base import Placement
from dynamo_gpu_ft.experts.gap import Gap, model_kl, router_gap
from dynamo_gpu_ft.experts.refill import Want, refill
from dynamo_gpu_ft.experts.store import SlotStore
from dynamo_gpu_ft.kernels.router_reference import route
from dynamo_gpu_ft.metrics.recorder import Recorder

torch = pytest.importorskip("torch")


def test_the_routers_gap_is_that_of_the_definition(rng: random.Random) -> None:
    seed = torch.Generator().manual_seed(rng.randrange(2**31))
    logits, live = torch.randn(40, 12, generator=seed), torch.rand(12, generator=seed) < 0.7
    live[:3] = True

    def gap(rows: torch.Tensor) -> Gap:
        table = torch.arange(12, dtype=torch.int32).view(1, 12, 1)
        counts = torch.ones(1, 12, dtype=torch.int32)
        routed = route(rows, table, counts, 0, 3, 12, alive=live.to(torch.uint8))
        return router_gap(rows, live, routed.affected, routed.replaced)

    found = gap(logits)
    full = torch.softmax(logits.double(), 1)
    masked = torch.softmax(logits.double().masked_fill(~live, -math.inf), 1)[:, live]
    kl = (masked * (masked.log() - full[:, live].log())).sum()
    assert found.router_kl == pytest.approx(float(kl))
    assert found.lost_mass == pytest.approx(float(full[:, ~live].sum()))
    dead = {i for i in range(12) if not live[i]}
    hit = [len(dead & set(row)) for row in logits.topk(3, dim=1).indices.tolist()]
    assert (found.affected, found.replaced) == (sum(h > 0 for h in hit), sum(hit))
    parts = gap(logits[:7]) + gap(logits[7:])
    assert parts.kl == pytest.approx(found.kl)
    assert parts.share == found.share


def test_nothing_dead_is_no_gap() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones(4, dtype=torch.bool)
    assert router_gap(logits, everywhere, 0, 0).kl == 0.0
    assert router_gap(logits[:0], everywhere, 0, 0) == Gap()
    assert Gap().share == Gap().kl == 0.0
    assert model_kl(logits, logits) == 0.0
    assert model_kl(logits, logits.flip(1)) > 0


def test_refills_maps_and_gaps_are_exported() -> None:
    recorder = Recorder()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    recorder.start("driver", port=port)
    store, _ = SlotStore.in_memory(geometry())
    done = refill(
        store,
        [Want(0, 0, 1)],
        [Source("peer", "short"), Source("host")],
        manifest(2, 8),
        epoch=3,
        deadline_s=9,
    )
    report.of_refill(recorder, done, store.geometry.expert_bytes)
    report.of_scrub(recorder, [(0, 0, 1)])
    assert report.of_map(recorder, Placement.of_rows([[0, -1]], experts=3, ranks=1), epoch=3) == 2
    report.of_gap(recorder, Gap(10, 4, 5, 2.5, 1.0), model_kl=0.125)
    text = prometheus_client.generate_latest(recorder.registry).decode()
    recorder.stop()
    for line in (
        'experts_refilled_bytes_total{source="host"} 256.0', 'experts_passed_over_total{source="peer"} 1.0',
        "experts_damaged_total 1.0", "experts_uncovered 2.0", "experts_epoch 3.0", "experts_routed_tokens_total 10.0",
        "experts_affected_tokens_total 4.0", "experts_router_kl 0.25", "experts_model_kl 0.125",
    ):  # fmt: skip
        assert f"dynamo_gpu_ft_{line}" in text, line
