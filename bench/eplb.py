"""Load balancers to compare with: the public EPLB algorithm and today's repairs (experts/others.py), and vLLM's own where it is there."""

from collections.abc import Callable, Sequence
from typing import Any

from dynamo_gpu_ft.experts.others import (
    Row,
    first_duplicate,
    most_redundant,
    rebalanced,
)

__all__ = ["first_duplicate", "most_redundant", "of_vllm", "rebalanced"]


def of_vllm() -> Callable[..., list[Row]] | None:
    """vLLM's default policy with its own function's work; None where vLLM is not installed."""
    try:
        import torch
        from vllm.distributed.eplb.policy.default import DefaultEplbPolicy
    except ImportError:
        return None

    def balance(
        loads: Sequence[Sequence[int]], slots: int, ranks: int, old: list[Row] | None = None
    ) -> list[Row]:
        before = None if old is None else torch.tensor(old)
        found: Any = DefaultEplbPolicy.rebalance_experts(
            torch.tensor(loads), slots * ranks, 1, 1, ranks, before
        )
        return [list(row) for row in found.tolist()]

    return balance
