"""The router mask once more in torch: what its CUDA source and its Triton version are held against, and what CPU engines run.

From router logits to live experts, weights and physical slots. No loops over tokens; not meant to be quick on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

SHAPE, INDEX, FEW_LIVE, NOT_A_NUMBER = 1, 2, 4, 8
SIGMOID, RENORMALISE = 1, 2
MAX_TOPK, MAX_EXPERTS = 32, 1024


class Routed(NamedTuple):
    """`logical`, `slots` int32 and `weights` float32 [tokens, topk], -1 and 0 for a token that breaks a rule; `error` says which.

    `affected`: tokens whose own top-k has a dead expert; `replaced`: how many such choices were replaced by the next best live one."""

    logical: torch.Tensor
    slots: torch.Tensor
    weights: torch.Tensor
    error: int
    affected: int
    replaced: int


def ranked(choose: torch.Tensor) -> torch.Tensor:
    """Columns of each row, the greatest number first, equal ones by column, the lower first."""
    import torch

    return torch.sort(choose, dim=1, descending=True, stable=True).indices


def route(
    logits: torch.Tensor,
    table: torch.Tensor,
    counts: torch.Tensor,
    loss: int,
    topk: int,
    physical: int,
    *,
    flags: int = RENORMALISE,
    choose: torch.Tensor | None = None,
    alive: torch.Tensor | None = None,
    first: int = 0,
) -> Routed:
    """`logits` float32 [tokens, experts]; `table` int32 [losses, experts, width] (logical to physical, padded -1), `counts` int32
    [losses, experts] its live entries; `loss` says which of them holds. `choose` orders the experts (a biased or grouped score), the
    logits if None. The replica of an expert is (first + row + expert) modulo its count: the same on every rank, in turn over tokens."""
    import torch

    tokens, experts = logits.shape
    width = table.shape[2]
    nothing = torch.full((tokens, max(topk, 0)), -1, dtype=torch.int32, device=logits.device)
    weightless = torch.zeros(nothing.shape, dtype=torch.float32, device=logits.device)
    if not (1 <= topk <= min(MAX_TOPK, experts) and experts <= MAX_EXPERTS and width >= 1):
        return Routed(nothing, nothing.clone(), weightless, SHAPE if tokens else 0, 0, 0)
    if not 0 <= loss < len(table):
        return Routed(nothing, nothing.clone(), weightless, INDEX if tokens else 0, 0, 0)
    count = counts[loss].to(torch.int64)
    live = count > 0 if alive is None else (count > 0) & alive.bool()
    order = logits if choose is None else choose
    wrong = logits.isnan().any(1)
    if choose is not None:
        wrong |= choose.isnan().any(1)
    lives = int(live.sum())
    if lives < topk:
        error = (NOT_A_NUMBER if bool(wrong.any()) else 0) | (0 if bool(wrong.all()) else FEW_LIVE)
        return Routed(nothing, nothing.clone(), weightless, error, 0, 0)
    columns = ranked(order)
    best, missing = columns[:, :topk], None
    if lives < experts:  # the live ones in front, in their order
        missing = (~live[best]).sum(1)
        best = columns.gather(
            1, (~live[columns]).to(torch.uint8).argsort(dim=1, stable=True)[:, :topk]
        )
    weights = _weights(logits, best, live, flags)

    rows = torch.arange(first, first + tokens, device=logits.device)[:, None]
    many = count[best]
    far = many > width
    slots = table[loss][best, ((rows + best) % many).masked_fill_(far, 0)]
    outside = (far | (slots < 0) | (slots >= physical)).any(1)
    logical, error = best.to(torch.int32), 0
    bad = wrong | outside
    if bool(bad.any()):
        error = (NOT_A_NUMBER if bool(wrong.any()) else 0) | (
            INDEX if bool((outside & ~wrong).any()) else 0
        )
        logical, slots, weights = (
            tensor.masked_fill(bad[:, None], value)
            for tensor, value in ((logical, -1), (slots, -1), (weights, 0.0))
        )
    if missing is None:
        return Routed(logical, slots, weights, error, 0, 0)
    missing = missing.masked_fill(bad, 0)
    return Routed(logical, slots, weights, error, int((missing > 0).sum()), int(missing.sum()))


def _weights(
    logits: torch.Tensor, best: torch.Tensor, live: torch.Tensor, flags: int
) -> torch.Tensor:
    import torch

    chosen = logits.gather(1, best)
    if flags & SIGMOID:
        weights = torch.sigmoid(chosen)
    elif flags & RENORMALISE:
        weights = torch.exp(chosen - chosen.max(1, keepdim=True).values)
    else:
        return torch.softmax(logits.masked_fill(~live, -torch.inf), 1).gather(1, best)
    return weights / weights.sum(1, keepdim=True) if flags & RENORMALISE else weights
