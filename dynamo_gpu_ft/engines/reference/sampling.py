"""From logits to a token: greedy, or a draw that depends on (seed, request, position) alone.

Whoever draws a position, before or after a recovery, on any rank, draws the same token: there is no generator whose state could be lost.
"""

from __future__ import annotations

import hashlib
import struct

import msgspec
import torch


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """`temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep all tokens. `stop` ends a request behind one of these tokens."""

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        good = self.max_tokens >= 1 and self.temperature >= 0 and self.top_k >= 0
        if not (good and 0 < self.top_p <= 1 and -(2**63) <= self.seed < 2**63):
            raise ValueError(f"sampling out of range: {self}")


def uniform(seed: int, request: str, position: int) -> float:
    """The one number in [0, 1) that belongs to this position of this request."""
    words = hashlib.blake2b(
        struct.pack("<qq", seed, position) + request.encode(), digest_size=8, person=b"gft-draw"
    )
    return int.from_bytes(words.digest(), "little") / 2**64


def draw(logits: torch.Tensor, sampling: Sampling, request: str, position: int) -> int:
    """The token at `position`, from float32 `logits` [vocabulary]."""
    if sampling.temperature == 0:
        return int(torch.argmax(logits))
    scaled = logits.double() / sampling.temperature
    shares, order = torch.softmax(scaled, dim=-1).sort(descending=True, stable=True)
    if sampling.top_k:
        shares, order = shares[: sampling.top_k], order[: sampling.top_k]
    reached = shares.cumsum(0)
    if sampling.top_p < 1:
        # The first token stays, and all before which less than top_p is reached.
        keep = int(((reached - shares) < sampling.top_p * float(reached[-1])).sum())
        shares, order, reached = shares[:keep], order[:keep], reached[:keep]
    wanted = uniform(sampling.seed, request, position) * float(reached[-1])
    return int(order[min(int((reached <= wanted).sum()), len(order) - 1)])
