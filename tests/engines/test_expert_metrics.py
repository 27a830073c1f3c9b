"""What a running expert-parallel engine tells of its experts: read from its port as Prometheus does, before, in and after a loss."""

from __future__ import annotations

import math
import os
import shutil
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.engines.reference.experts.slots import expert_bytes  # noqa: E402
from dynamo_gpu_ft.engines.reference.sampling import Sampling  # noqa: E402
from dynamo_gpu_ft.metrics import metrics  # noqa: E402
from tests.engines.expert_world import Drill, Fault, prompts  # noqa: E402
from tests.engines.reference_world import tiny_mixtral  # noqa: E402


@pytest.fixture
def folder() -> Iterator[Path]:
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    made = Path(tempfile.mkdtemp(prefix="gft-test-", dir=place))
    yield made
    metrics().stop()
    shutil.rmtree(made, ignore_errors=True)


def scrape(port: int) -> dict[str, float]:
    """Series of the port as {name{labels}, without the prefix: value}."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("dynamo_gpu_ft_"): float(value) for name, value in pairs}


def test_a_loss_its_cost_and_its_refill_are_read_from_the_drivers_port(folder: Path) -> None:
    model = tiny_mixtral(folder / "model", experts=8)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Drill(model, folder, ep=4, slots=3, name="figures", scrub=-1, metrics_port=port) as drill:
        engine = drill.engine
        size = expert_bytes(engine.shape, torch.float32)
        seen = scrape(port)
        assert seen["experts_uncovered"] == 0
        assert seen["experts_epoch"] == engine.group.epoch
        assert math.isnan(seen["experts_model_kl"]), "it is not measured"

        for prompt in prompts(1):
            engine.submit(prompt, Sampling(max_tokens=30))
        engine.step()
        drill.hurt(Fault("kill", "dispatch", 1))
        while not engine.mending.mask or not engine.gap.affected:
            engine.step()
        seen = scrape(port)
        assert seen["experts_uncovered"] == len(engine.group.map.uncovered()) > 0
        assert seen["experts_epoch"] == engine.group.epoch
        assert seen["experts_routed_tokens_total"] == engine.gap.tokens
        assert seen["experts_affected_tokens_total"] == engine.gap.affected > 0
        assert seen["experts_router_kl"] > 0
        assert seen['members_died_total{shard="1"}'] == 1
        assert seen["group_epoch"] == engine.group.epoch

        assert engine.settle(20)
        seen = scrape(port)
        assert seen["experts_uncovered"] == 0
        brought = {name: value for name, value in seen.items() if "refilled_bytes_total" in name}
        assert sum(brought.values()) == size * len(engine.mending.log) > 0
        assert seen["experts_refill_seconds_count"] >= 1
        assert seen["experts_damaged_total"] == 0

        drill.hurt(Fault("spoil", "", 2, times=4))
        while engine.busy:
            engine.step()
        assert engine.settle(20)
        seen = scrape(port)
        assert seen["experts_damaged_total"] == 1
        assert seen["experts_uncovered"] == 0
        assert seen["experts_router_kl"] == 0, "the newest tokens met no mask"
