"""What an uncovered expert costs while the router masks it: share of tokens affected, and how far router and model are from the full ones.

Measured where the logits are; `report` exports it. All in nats, mean over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Gap:
    """Of some tokens of one layer, or summed over layers. `router_kl` and `lost_mass` are sums over tokens, so that parts add up."""

    tokens: int = 0
    affected: int = 0
    replaced: int = 0
    router_kl: float = 0.0
    lost_mass: float = 0.0

    def __add__(self, other: Gap) -> Gap:
        return Gap(
            self.tokens + other.tokens, self.affected + other.affected, self.replaced + other.replaced,
            self.router_kl + other.router_kl, self.lost_mass + other.lost_mass,
        )  # fmt: skip

    @property
    def share(self) -> float:
        """Of the tokens, those whose own top-k has a dead expert."""
        return self.affected / self.tokens if self.tokens else 0.0

    @property
    def kl(self) -> float:
        return self.router_kl / self.tokens if self.tokens else 0.0


def router_gap(logits: torch.Tensor, live: torch.Tensor, affected: int, replaced: int) -> Gap:
    """`logits` [tokens, experts], `live` bool [experts]; `affected` and `replaced` as the router mask counted them. The divergence of the
    masked router's softmax from the full one's is exactly -log of the share that live experts have of the full one: no sampling. Infinite
    where a token has no live expert with any share; a token whose logits are not numbers adds nothing."""
    import torch

    if not len(logits):
        return Gap()
    wide = logits.double()
    full = torch.logsumexp(wide, 1)
    kept = torch.logsumexp(wide.masked_fill(~live, -torch.inf), 1)
    kl = full - kept
    lost = 1 - torch.exp(-kl)
    return Gap(len(logits), affected, replaced, float(kl.nansum()), float(lost.nansum()))


def model_kl(full: torch.Tensor, masked: torch.Tensor) -> float:
    """Mean KL(full || masked) of the models' output logits [tokens, vocabulary] for the same tokens: what the window does to the text."""
    import torch

    if not len(full):
        return 0.0
    p, q = torch.log_softmax(full.double(), 1), torch.log_softmax(masked.double(), 1)
    return float((p.exp() * (p - q)).sum(1).mean().clamp(min=0))
