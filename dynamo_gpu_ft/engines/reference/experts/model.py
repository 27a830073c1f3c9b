"""The layers of an expert-parallel rank: attention of its own rows over the whole model's heads, experts by `Exchange`.

Bits do not depend on the placement: a slot computes `tile` rows at a time whoever sent them, and a row adds its experts' answers in the
order of the experts, as the single process does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from dynamo_gpu_ft.engines.reference.experts.exchange import Exchange
from dynamo_gpu_ft.engines.reference.model import Joint, Stage, Tile, expert_of
from dynamo_gpu_ft.experts.gap import Gap, router_gap
from dynamo_gpu_ft.experts.tables import FailoverTables
from dynamo_gpu_ft.kernels.router_reference import NOT_A_NUMBER

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
        self._tables: FailoverTables | None = None
        self._numbers = {f"model.layers.{i}": i for i in range(*self._cut.layers)}
        self.exchange: Exchange | None = None
        self.touched: Callable[[str], None] = lambda point: None
        self.begin()

    def begin(self) -> None:
        self.counts = torch.zeros((len(self._numbers), self._slots), dtype=torch.int32)
        self.refused: set[tuple[int, int]] = set()
        self.gap = Gap()
        self._used = 0

    def follow(self, tables: FailoverTables) -> None:
        """Another map holds in `tables`, which rows are routed by from now on."""
        self._tables = tables
        self._live = tables.counts[tables.entry] > 0
        self._many: list[int] = self._live.sum(1).tolist()

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
        used, layer, tables = self._used, self._numbers[name], self._tables
        assert tables is not None
        assert self._router is not None
        gate[used:] = torch.nan  # rows that are not in use go nowhere and are not counted
        few = min(self._shape.chosen, self._many[layer])
        chosen, slots, top, results = self._router.route(
            gate, tables.logical[:, layer], tables.counts[:, layer], tables.index, few, tables.placement.width, first=self._own
        )  # fmt: skip
        (error, affected, replaced), places, experts = _read(
            results, slots[:used].contiguous(), chosen[:used].contiguous()
        )
        if wrong := error & ~NOT_A_NUMBER:
            raise RuntimeError(f"the router mask met a map that cannot be: error word {wrong}")
        if self._many[layer] < self._shape.experts:
            hit = used if few < self._shape.chosen else affected  # nobody has all of its own
            self.gap += router_gap(gate[:used], self._live[layer], hit, replaced)
        else:
            self.gap += Gap(used)
        shares = top.to(x.dtype)
        answers = self._asked(name, x[:used], places, experts)
        total, rows = torch.zeros_like(x), torch.arange(used, device=x.device)
        order = chosen[:used].argsort(dim=1)
        for place in range(chosen.shape[1]):
            at = order[:, place]
            total[:used] += answers[rows, at] * shares[rows, at][:, None]
        return total

    def _asked(
        self, name: str, x: torch.Tensor, slots: Sequence[int], experts: Sequence[int]
    ) -> torch.Tensor:
        """Answers [rows, experts of a row, hidden] of `slots` and `experts` [rows x experts of a row]; zeros for a row with no experts, one
        whose logits are not numbers."""
        there = [i for i, slot in enumerate(slots) if slot >= 0]
        every = x.repeat_interleave(len(slots) // max(1, len(x)), dim=0)
        places = [(*divmod(slots[i], self._slots), experts[i]) for i in there]
        answers = torch.zeros_like(every)
        answers[there] = self._swap(name, every[there], places)
        return answers.view(len(x), -1, x.shape[1])

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


def _read(*tensors: torch.Tensor) -> list[list[int]]:
    """What is in small integer tensors, row after row: one wait for the device, and not one for each."""
    flat = torch.cat([each.flatten().to(torch.int64) for each in tensors]).tolist()
    ends = list(accumulate(each.numel() for each in tensors))
    return [flat[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
