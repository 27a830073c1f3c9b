"""Attention of a tile of rows over paged KV, one block after the other, so that a row's result depends on nothing but its own context.

Every row is its own little problem: products of one row with one block, always of the same sizes, added up in the order of the context.
What else is in the tile, and whether the row is prefilled or decoded, changes no bit; that is what makes a recomputation exact.
"""

from __future__ import annotations

import functools

import torch

from dynamo_gpu_ft.engines.reference.shape import Rope


@functools.lru_cache(maxsize=4)
def rope_tables(
    rope: Rope, head_dim: int, positions: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), float32 [positions, head_dim], as Hugging Face computes them; the same ones for every caller, who only reads."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32)
    inverse = 1.0 / (rope.theta ** (steps / head_dim))
    if rope.kind == "linear":
        inverse = inverse / rope.factor
    if rope.kind == "llama3":
        inverse = _llama3(inverse, rope)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * inverse[None, :]
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().to(device), both.sin().to(device)


def _llama3(inverse: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Long waves are slowed down by `factor`, short ones kept, those in between blended."""
    waves = 2 * torch.pi / inverse
    low = rope.original_positions / rope.low_freq_factor
    high = rope.original_positions / rope.high_freq_factor
    slowed = torch.where(waves > low, inverse / rope.factor, inverse)
    blend = (rope.original_positions / waves - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    mixed = (1 - blend) * slowed / rope.factor + blend * slowed
    between = (waves >= high) & (waves <= low)
    return torch.where(between, mixed, slowed)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [rows, heads, head_dim]; cos and sin [rows, head_dim]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos[:, None, :] + turned * sin[:, None, :]


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """queries [rows, heads, group, dim], keys and values [heads, blocks, tokens, dim] (one layer of the cache), tables [rows, n] of
    block numbers, positions [rows]: a row sees the tokens at positions up to its own. Result like `queries`, float32."""
    rows, heads, group, dim = queries.shape
    count, tokens = tables.shape[1], keys.shape[2]
    flat = tables.reshape(-1)
    gathered = (heads, rows, count, tokens, dim)
    # NOTE: index_select would first copy the whole layer, because the cache is not contiguous by layer.
    k, v = keys[:, flat].reshape(gathered).float(), values[:, flat].reshape(gathered).float()
    q = queries.float().transpose(0, 1)[:, :, None].expand(heads, rows, count, group, dim)
    every = heads * rows * count
    scores = torch.bmm(
        q.reshape(every, group, dim), k.reshape(every, tokens, dim).transpose(1, 2)
    ).view(heads, rows, count, group, tokens) * (dim**-0.5)
    at = torch.arange(count * tokens, device=tables.device).view(count, 1, tokens)
    seen = at[None] <= positions[:, None, None, None]
    scores = scores.masked_fill(~seen, -torch.inf)
    top = scores.amax(dim=(2, 4), keepdim=True)
    shares = (scores - top).exp()
    sums = shares.sum(-1)
    parts = torch.bmm(shares.view(every, group, tokens), v.reshape(every, tokens, dim)).view(
        heads, rows, count, group, dim
    )
    # NOTE: added block by block. A sum over all of them would be grouped by how many there are, and blocks that a longer row
    # needs would change the last bits of a shorter one beside it; adding zeros one by one does not.
    weight, total = sums[:, :, 0], parts[:, :, 0]
    for block in range(1, count):
        weight = weight + sums[:, :, block]
        total = total + parts[:, :, block]
    return (total / weight[..., None]).transpose(0, 1)
