"""The layers of an expert-parallel rank: attention of its own rows over the whole model's heads, experts by `Exchange`.

Bits do not depend on the placement: a slot computes `tile` rows at a time whoever sent them, and a row adds its experts' answers in the
order of the experts, as the single process does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dynamo_gpu_ft.engines.reference.experts.exchange import Exchange
from dynamo_gpu_ft.engines.reference.experts.routes import Map, targets
from dynamo_gpu_ft.engines.reference.model import Joint, Stage, Tile, choose, expert_of
from dynamo_gpu_ft.experts.gap import Gap, router_gap

#: Weights of one routable slot: w1, w3 [inner, hidden], w2 [hidden, inner]; None for one that is not `expert`'s now.
Slot = Callable[[int, int, int], "tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None"]


class Alone:
    """`Joint` of a rank that has all heads, columns and words."""

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        return part

    def join(self, part: torch.Tensor) -> torch.Tensor:
        return part


class ExpertStage(Stage):
    """`slot(layer, slot, expert)` looks at the store each time that rows come. `counts` [layers, slots] and `refused` are of one step."""

    def __init__(self, *given: Any, own: int, slots: int, tile: int, slot: Slot) -> None:
        super().__init__(*given)
        self._own, self._slots, self._tile, self._slot = own, slots, tile, slot
        self._copies: dict[str, list[list[int]]] = {}
        self._numbers = {f"model.layers.{i}": i for i in range(*self._cut.layers)}
        self.exchange: Exchange | None = None
        self.touched: Callable[[str], None] = lambda point: None
        self.begin()

    def begin(self) -> None:
        self.counts = torch.zeros((len(self._numbers), self._slots), dtype=torch.int32)
        self.refused: set[tuple[int, int]] = set()
        self.gap = Gap()
        self._used = 0

    def route(self, routes: Map) -> None:
        for name, layer in self._numbers.items():
            copies = routes.copies(layer)
            self._copies[name] = copies
            self.live.pop(name, None)
            if not all(copies):
                self.live[name] = torch.tensor([bool(each) for each in copies])

    def rows(self, tile: Tile, used: int, *, logits: bool) -> torch.Tensor:
        """One round with rows of our own: the first `used` of the tile."""
        self._used = used
        alone: Joint = Alone()
        return self.run(tile, alone, None, logits=logits)

    @torch.inference_mode()
    def attend_others(self) -> None:
        """One round without: only what others send is computed."""
        nothing = self._cache.new_zeros((0, self._shape.hidden))
        for name in self._numbers:
            self._swap(name, nothing, [])

    def _experts(self, name: str, x: torch.Tensor) -> torch.Tensor:
        gate = self._linear(x, f"{name}.block_sparse_moe.gate.weight").float()
        top, chosen = choose(gate, self._shape.chosen, self.live.get(name))
        used, shares = self._used, top.to(x.dtype)
        live = self.live.get(name)
        self.gap += Gap(used) if live is None else router_gap(gate[:used], live, self._shape.chosen)
        picked = chosen[:used].tolist()
        asked = x[:used].repeat_interleave(chosen.shape[1], dim=0)
        places = targets(picked, self._copies[name], self._slots, self._own)
        answers = self._swap(name, asked, places).view(used, chosen.shape[1], -1)
        total = torch.zeros_like(x)
        order = chosen[:used].argsort(dim=1)
        for place in range(chosen.shape[1]):
            at = order[:, place]
            rows = torch.arange(used)
            total[:used] += answers[rows, at] * shares[rows, at][:, None]
        return total

    def _swap(
        self, name: str, rows: torch.Tensor, places: list[tuple[int, int, int]]
    ) -> torch.Tensor:
        assert self.exchange is not None
        layer = self._numbers[name]

        def answer(wanted: list[tuple[int, int]], came: torch.Tensor) -> torch.Tensor:
            self.touched("expert")
            out = torch.zeros_like(came)
            for slot, expert in sorted(set(wanted)):
                at = [i for i, each in enumerate(wanted) if each == (slot, expert)]
                weights = self._slot(layer, slot, expert)
                if weights is None:
                    self.refused.add((layer, slot))
                    continue
                self.counts[layer, slot] += len(at)
                for begin in range(0, len(at), self._tile):
                    part = at[begin : begin + self._tile]
                    tile = came.new_zeros((self._tile, came.shape[1]))
                    tile[: len(part)] = came[part]
                    out[part] = expert_of(tile, *weights)[: len(part)]
            return out

        return self.exchange.run(rows, places, answer, self.touched)
