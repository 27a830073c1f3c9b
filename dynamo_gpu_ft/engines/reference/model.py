"""One shard of a Llama or Mixtral model, computed a tile of rows at a time.

A rank calls `Stage.run` for every tile of a step. All products see exactly `tile` rows, however many are in use: libraries choose
their order of adding by the sizes, and so a row's bits do not depend on its company.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from dynamo_gpu_ft.engines.reference import needs
from dynamo_gpu_ft.engines.reference.attention import attend, rope_tables, rotate
from dynamo_gpu_ft.engines.reference.pieces import Pieces
from dynamo_gpu_ft.engines.reference.shape import Shape
from dynamo_gpu_ft.engines.reference.split import Cut
from dynamo_gpu_ft.kernels.router import RouterMask


class Joint(Protocol):
    """What the shards of one stage do together. Blocks until all take part; raises when one is gone."""

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """The sum of everybody's part, added in the order of the shards: the same bits on all of them."""

    def join(self, part: torch.Tensor) -> torch.Tensor:
        """Everybody's columns side by side, in the order of the shards."""


@dataclass(frozen=True, slots=True)
class Tile:
    """`tile` rows: token, position, the cache block and the place in it where the row's KV goes, and the blocks of its context.

    int64 [rows], tables [rows, n]. Rows that are not in use read and write block 0, which belongs to nobody."""

    tokens: torch.Tensor
    positions: torch.Tensor
    blocks: torch.Tensor
    places: torch.Tensor
    tables: torch.Tensor


class Stage:
    """The layers of one cut. `cache` is [heads, blocks, layers, 2, block tokens, head_dim] (see kv.py)."""

    def __init__(
        self,
        shape: Shape,
        cut: Cut,
        weights: dict[str, torch.Tensor],
        cache: torch.Tensor,
        pieces: Pieces | None = None,
    ) -> None:
        self._shape, self._cut, self._cache = shape, cut, cache
        self._weights, self._pieces = weights, pieces or Pieces()
        #: Layer's name -> bool [experts], where not all experts may be asked: a row takes the next best of those, of sum 1 among them.
        self.live: dict[str, torch.Tensor] = {}
        self._router = RouterMask(cache.device) if shape.experts else None
        self._all = _everywhere(shape.experts, cache.device)
        self._cos, self._sin = rope_tables(
            shape.rope, shape.head_dim, shape.positions, cache.device
        )

    @torch.inference_mode()
    def run(
        self, tile: Tile, joint: Joint, hidden: torch.Tensor | None, *, logits: bool
    ) -> torch.Tensor:
        """Through this stage's layers: from token ids (first stage) or the former stage's `hidden` to hidden states [rows, hidden],
        or, in the last stage if asked, to logits [rows, vocabulary] in float32."""
        state = self._embed(tile.tokens, joint) if hidden is None else hidden
        cos, sin = self._cos[tile.positions], self._sin[tile.positions]
        tables = self._pieces.widened(tile.tables)
        places = (tile.blocks, tile.places, tables, tile.positions, cos, sin)
        for index, layer in enumerate(range(*self._cut.layers)):
            name = f"model.layers.{layer}"
            attention, mlp = partial(self._attention, name, index), partial(self._mlp, name)
            part = self._pieces.run((name, "attention"), attention, state, *places)
            state = state + joint.sum(part)
            if self._shape.experts:  # which of them are asked is decided by what the router says
                part = self._experts(name, self._norm(state, _after_attention(name)))
            else:
                part = self._pieces.run((name, "mlp"), mlp, state)
            state = state + joint.sum(part)
        if not (self._cut.last and logits):
            return state
        head = needs.EMBED if self._shape.tied else needs.HEAD
        return joint.join(self._linear(self._norm(state, needs.NORM), head)).float()

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self._weights[name].t()

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._shape.eps)
        return self._weights[name] * (wide * scale).to(x.dtype)

    def _embed(self, tokens: torch.Tensor, joint: Joint) -> torch.Tensor:
        """Each shard looks up its own part of the vocabulary and gives zeros for the rest, which changes no bit of the sum."""
        table, (begin, to) = self._weights[needs.EMBED], self._cut.vocab
        if begin == to:
            return joint.sum(table.new_zeros(len(tokens), self._shape.hidden))
        own = (tokens >= begin) & (tokens < to)
        rows = table[(tokens - begin).clamp(0, to - begin - 1)]
        return joint.sum(torch.where(own[:, None], rows, torch.zeros_like(rows)))

    def _attention(
        self,
        name: str,
        layer: int,
        state: torch.Tensor,
        blocks: torch.Tensor,
        places: torch.Tensor,
        tables: torch.Tensor,
        positions: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        x = self._norm(state, f"{name}.input_layernorm.weight")
        rows, heads = len(x), self._cut.heads[1] - self._cut.heads[0]
        group, dim = self._shape.group, self._shape.head_dim
        if heads == 0:
            return x.new_zeros(rows, self._shape.hidden)
        q = self._linear(x, f"{name}.self_attn.q_proj.weight").view(rows, heads * group, dim)
        k = self._linear(x, f"{name}.self_attn.k_proj.weight").view(rows, heads, dim)
        v = self._linear(x, f"{name}.self_attn.v_proj.weight").view(rows, heads, dim)
        q, k = rotate(q.float(), cos, sin), rotate(k.float(), cos, sin).to(self._cache.dtype)
        keys, values = self._cache[:, :, layer, 0], self._cache[:, :, layer, 1]
        keys[:, blocks, places] = k.transpose(0, 1)
        values[:, blocks, places] = v.transpose(0, 1).to(self._cache.dtype)
        out = attend(q.view(rows, heads, group, dim), keys, values, tables, positions)
        out = out.reshape(rows, heads * group * dim).to(x.dtype)
        return self._linear(out, f"{name}.self_attn.o_proj.weight")

    def _mlp(self, name: str, state: torch.Tensor) -> torch.Tensor:
        x = self._norm(state, _after_attention(name))
        gate = self._linear(x, f"{name}.mlp.gate_proj.weight")
        up = self._linear(x, f"{name}.mlp.up_proj.weight")
        return self._linear(torch.nn.functional.silu(gate) * up, f"{name}.mlp.down_proj.weight")

    def _experts(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Every expert that some row wants sees all rows; a row takes its own experts' answers in the order of the experts."""
        moe = f"{name}.block_sparse_moe"
        logits, live = self._linear(x, f"{moe}.gate.weight").float(), self.live.get(name)
        count = self._shape.chosen if live is None else min(self._shape.chosen, int(live.sum()))
        assert self._router is not None
        chosen, _, top, _ = self._router.route(
            logits, *self._all, count, self._shape.experts, alive=None if live is None else live.to(torch.uint8)
        )  # fmt: skip
        # A row with a logit that is not a number has no experts: -1, of weight 0.
        at, weight = chosen.clamp(min=0).to(torch.int64), x.new_zeros(len(x), self._shape.experts)
        weight.scatter_(1, at, top.to(x.dtype))
        total = torch.zeros_like(x)
        for expert in range(self._shape.experts):
            at = f"{moe}.experts.{expert}"
            column = weight[:, expert : expert + 1]
            if x.device.type == "cpu" and not bool(column.any()):
                continue
            w1, w2, w3 = (self._weights[f"{at}.{w}.weight"] for w in ("w1", "w2", "w3"))
            total = total + expert_of(x, w1, w3, w2) * column
        return total


def _after_attention(layer: str) -> str:
    return f"{layer}.post_attention_layernorm.weight"


def _everywhere(experts: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The router's table, counts and index where each expert has one slot, of its own number: all of them are here."""
    slots = torch.arange(experts, dtype=torch.int32, device=device)
    return slots.view(1, -1, 1), torch.ones_like(slots).view(1, -1), slots.new_zeros(1)


def expert_of(
    x: torch.Tensor, w1: torch.Tensor, w3: torch.Tensor, w2: torch.Tensor
) -> torch.Tensor:
    """One expert's answer to rows [tile, hidden]; w1 and w3 [inner, hidden], w2 [hidden, inner]."""
    return (torch.nn.functional.silu(x @ w1.t()) * (x @ w3.t())) @ w2.t()
