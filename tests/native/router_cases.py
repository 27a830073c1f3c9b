"""Random routings for the router mask's versions: shapes, ties, dead experts, tables that lie; and what their answers must agree in."""

from __future__ import annotations

import random
from typing import Any

import torch

EXPERTS = (1, 4, 31, 33, 64, 128, 160, 256, 384, 512, 1024)


def table_of(rng: random.Random, losses: int, experts: int, width: int, physical: int) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Tables whose live entries come first, padded with -1; some experts have none."""
    table = torch.full((losses, experts, width), -1, dtype=torch.int32)
    counts = torch.zeros((losses, experts), dtype=torch.int32)
    share = rng.choice([0.0, 0.1, 0.4])
    for loss in range(losses):
        for expert in range(experts):
            if rng.random() < share:
                continue
            count = rng.randrange(1, width + 1)
            counts[loss, expert] = count
            for replica in range(count):
                table[loss, expert, replica] = rng.randrange(physical)
    return table, counts


def case_of(rng: random.Random, *, broken: bool, small: bool = False) -> dict[str, Any]:
    """Arguments of `route`. `broken`: one thing in it is wrong."""
    experts = rng.choice(EXPERTS[:7] if small else EXPERTS)
    topk, tokens = rng.randrange(1, min(experts, 8) + 1), rng.randrange(0, 5)
    losses, width, physical = rng.randrange(1, 4), rng.randrange(1, 4), experts * 2
    seed = torch.Generator().manual_seed(rng.randrange(2**31))
    logits = torch.randn(tokens, experts, generator=seed) * rng.choice([0.1, 1.0, 8.0])
    if rng.random() < 0.4:
        logits = logits.round()  # many ties, and -0 beside 0
    case: dict[str, Any] = {"logits": logits, "topk": topk, "physical": physical}
    case["table"], case["counts"] = table_of(rng, losses, experts, width, physical)
    case["loss"], case["flags"] = rng.randrange(losses), rng.randrange(4)
    case["first"] = rng.choice([0, 7, 4096])
    case["alive"], case["choose"] = None, None
    if rng.random() < 0.4:
        case["alive"] = (torch.rand(experts, generator=seed) < 0.9).to(torch.uint8)
    if rng.random() < 0.4:
        case["choose"] = torch.sigmoid(logits) + torch.rand(1, experts, generator=seed)
    if broken:
        _break(rng, case)
    return case


def _break(rng: random.Random, case: dict[str, Any]) -> None:
    fault = rng.choice(["loss", "low", "slot", "count", "nan", "dead", "topk"])
    if fault == "loss":
        case["loss"] = len(case["table"])
    elif fault == "low":
        case["loss"] = -1
    elif fault == "slot":
        case["table"][:, ::2] = case["physical"]
    elif fault == "count":
        case["counts"][:, ::3] = case["table"].shape[2] + 1
    elif fault == "nan" and len(case["logits"]):
        case["logits"][0, rng.randrange(case["logits"].shape[1])] = float("nan")
    elif fault == "dead":
        case["counts"].zero_()
    elif fault == "topk":
        case["topk"] = case["logits"].shape[1] + 1


def agree(said: Any, found: tuple[Any, Any, Any, list[int]], case: dict[str, Any]) -> None:
    """Choices, slots, error word and counts exactly; weights to a few units in the last place."""
    logical, slots, weights, results = found
    shown = {k: (tuple(v.shape) if hasattr(v, "shape") else v) for k, v in case.items()}
    assert results == [said.error, said.affected, said.replaced], (shown, results, said[3:])
    assert torch.equal(logical, said.logical), (shown, logical, said.logical)
    assert torch.equal(slots, said.slots), shown
    assert torch.allclose(weights, said.weights, rtol=2e-6, atol=1e-9), (
        shown,
        weights,
        said.weights,
    )
