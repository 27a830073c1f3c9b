"""One layer of an expert-parallel rank against the single process's, bit for bit, whatever experts are masked; and rows that are not numbers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from dynamo_gpu_ft.engines.reference.experts.exchange import Exchange  # noqa: E402
from dynamo_gpu_ft.engines.reference.experts.model import ExpertStage  # noqa: E402
from dynamo_gpu_ft.engines.reference.experts.routing import Routing  # noqa: E402
from dynamo_gpu_ft.experts.base import Placement  # noqa: E402
from tests.engines.reference_world import TILE, ThreadEngine, tiny_mixtral  # noqa: E402

EXPERTS, LAYERS, RANKS = 8, 2, 2
NAME = "model.layers.1"


class Both:
    """The plain stage, and a rank that has all weights and sends to itself."""

    def __init__(self, folder: Path) -> None:
        self.plain = ThreadEngine(tiny_mixtral(folder, experts=EXPERTS, layers=LAYERS)).stages[0]
        given = (self.plain._shape, self.plain._cut, self.plain._weights, self.plain._cache)
        self.rank = ExpertStage(*given, own=0, slots=EXPERTS, tile=TILE, slot=self._slot)
        self.rank.exchange = Exchange(None, [0], 0, TILE * 2)
        self.sent = 0
        self.rank.touched = self._touched

    def _slot(self, layer: int, slot: int, expert: int) -> Any:
        at = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
        return tuple(self.plain._weights[f"{at}.{w}.weight"] for w in ("w1", "w3", "w2"))

    def _touched(self, point: str) -> None:
        self.sent += point == "dispatch"

    def mask(self, dead: set[int]) -> None:
        """`dead` experts have their slots on rank 1 alone, which is lost."""
        live = [-1 if e in dead else e for e in range(EXPERTS)]
        routing = Routing(Placement.of_rows([[*live, *range(EXPERTS)]] * LAYERS, experts=EXPERTS, ranks=RANKS), 0)  # fmt: skip
        routing.lose([1], epoch=1)
        self.rank.follow(routing.tables)
        self.plain.live.pop(NAME, None)
        if dead:
            self.plain.live[NAME] = torch.tensor([e not in dead for e in range(EXPERTS)])

    @torch.inference_mode()
    def run(self, x: torch.Tensor, used: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.rank.begin()
        self.rank._used = used
        return self.plain._experts(NAME, x), self.rank._experts(NAME, x)

    @torch.inference_mode()
    def top(self, x: torch.Tensor) -> list[set[int]]:
        gate = x @ self.plain._weights[f"{NAME}.block_sparse_moe.gate.weight"].t()
        return [set(row) for row in gate.topk(2, dim=1).indices.tolist()]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("model"))


def test_a_masked_router_is_the_single_processs_and_counts_whom_it_affects(
    both: Both, rng: random.Random
) -> None:
    seed = torch.Generator().manual_seed(rng.randrange(2**31))
    for count in range(EXPERTS):
        dead, used = set(rng.sample(range(EXPERTS), count)), rng.randrange(1, TILE + 1)
        x = torch.randn(TILE, 64, generator=seed)
        both.mask(dead)
        plain, rank = both.run(x, used)
        assert torch.equal(rank[:used], plain[:used]), (dead, used)
        assert not rank[used:].any(), "rows that are not in use go nowhere"
        gap, hit = both.rank.gap, [len(top & dead) for top in both.top(x[:used])]
        assert (gap.tokens, gap.affected) == (used, sum(h > 0 for h in hit))
        assert gap.replaced == sum(hit) or count > EXPERTS - 2, "one expert has no next best"
        assert (gap.router_kl > 0) == bool(dead)
        assert int(both.rank.counts[1].sum()) == used * min(2, EXPERTS - count)


def test_a_row_that_is_not_a_number_goes_to_no_expert_and_leaves_the_others_alone(
    both: Both, rng: random.Random
) -> None:
    x = torch.randn(TILE, 64, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    both.mask({3})
    _, clean = both.run(x, TILE)
    x[5] = torch.nan
    plain, rank = both.run(x, TILE)
    others = [row for row in range(TILE) if row != 5]
    assert torch.equal(rank[others], clean[others])
    assert torch.equal(plain[others], clean[others])
    assert not rank[5].any()
    assert both.rank.gap.router_kl > 0, "and the measured divergence is a number"
