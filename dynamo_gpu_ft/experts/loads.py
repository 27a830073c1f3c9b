"""How much each logical expert of each layer is used: over a window and with exponential decay, in integers, the same on every rank.

Engines feed physical counts or top-k ids once per step or every few; the planner takes `decayed` or `windowed` summed over the ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from dynamo_gpu_ft.errors import PlacementError

if TYPE_CHECKING:
    import torch

#: Decayed loads carry this many binary places, so that a token does not vanish by rounding in the step after it came.
PLACES = 16


class LoadState(msgspec.Struct, frozen=True):
    """What is kept over a restart: flat [layers x experts]; `steps` oldest first."""

    layers: int
    experts: int
    window: int
    half_life: int
    decayed: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]


class Loads:
    """Tokens per [layers, experts] of the newest `window` observations, and with a weight that halves every `half_life` of them."""

    def __init__(
        self, layers: int, experts: int, *, window: int = 100, half_life: int = 32
    ) -> None:
        if min(layers, experts, window, half_life) < 1:
            raise _wrong(
                "sizes of load statistics", (layers, experts, window, half_life), "all above 0"
            )
        self.layers, self.experts, self.window, self.half_life = layers, experts, window, half_life
        # 2^-1/half_life in binary places; a product and a shift, so that no machine rounds differently.
        self._keep = round((1 << PLACES) * 0.5 ** (1 / half_life))
        self._steps: deque[tuple[int, ...]] = deque(maxlen=window)
        self._sum = [0] * (layers * experts)
        self._decayed = [0] * (layers * experts)

    def observe(self, counts: Sequence[Sequence[int]]) -> None:
        """Tokens per [layer][logical expert] since the last call."""
        if len(counts) != self.layers or any(len(row) != self.experts for row in counts):
            raise _wrong(
                "counts of another shape",
                [len(row) for row in counts][:3],
                f"{self.layers} x {self.experts}",
            )
        flat = tuple(int(n) for row in counts for n in row)
        if min(flat) < 0:
            raise _wrong("a negative count", min(flat), "tokens are counted from 0")
        old = self._steps[0] if len(self._steps) == self.window else None
        self._steps.append(flat)
        gone = old if old is not None else (0,) * len(flat)
        self._sum = [s + n - o for s, n, o in zip(self._sum, flat, gone, strict=True)]
        self._decayed = [
            (d * self._keep >> PLACES) + (n << PLACES)
            for d, n in zip(self._decayed, flat, strict=True)
        ]

    def observe_physical(
        self, counts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]
    ) -> None:
        """Tokens per [layer][physical slot], with the physical-to-logical rows under which they ran; empty slots count for nobody."""
        self.observe(
            [logical(row, map_, self.experts) for row, map_ in zip(counts, rows, strict=True)]
        )

    def windowed(self) -> list[list[int]]:
        return self._shaped(self._sum)

    def decayed(self) -> list[list[int]]:
        """Rounded to whole tokens; an expert that was ever used lately keeps at least 1."""
        return self._shaped([-(-d >> PLACES) for d in self._decayed])

    def snapshot(self) -> bytes:
        state = LoadState(
            self.layers, self.experts, self.window, self.half_life, tuple(self._decayed), tuple(self._steps)
        )  # fmt: skip
        return msgspec.msgpack.encode(state)

    @classmethod
    def restore(cls, data: bytes) -> Loads:
        """Raises `PlacementError` for bytes that no `snapshot` gave."""
        try:
            state = msgspec.msgpack.decode(data, type=LoadState)
        except msgspec.MsgspecError as error:
            raise _wrong("kept load statistics", str(error), "bytes of `snapshot`") from error
        found = cls(state.layers, state.experts, window=state.window, half_life=state.half_life)
        size = state.layers * state.experts
        if len(state.decayed) != size or any(len(step) != size for step in state.steps):
            raise _wrong("kept load statistics", len(state.decayed), f"{size} numbers")
        found._decayed, found._steps = list(state.decayed), deque(state.steps, maxlen=state.window)
        found._sum = [sum(column) for column in zip(*state.steps, strict=True)] or [0] * size
        return found

    def _shaped(self, flat: Sequence[int]) -> list[list[int]]:
        width = self.experts
        return [list(flat[at : at + width]) for at in range(0, len(flat), width)]


def merge(loads: Iterable[Sequence[Sequence[int]]]) -> list[list[int]]:
    """The sum over ranks: integers, so the order of the ranks does not matter."""
    total: list[list[int]] = []
    for each in loads:
        total = total or [[0] * len(row) for row in each]
        total = [
            [a + b for a, b in zip(x, y, strict=True)] for x, y in zip(total, each, strict=True)
        ]
    return total


def logical(counts: Sequence[int], row: Sequence[int], experts: int) -> list[int]:
    """Physical counts of one layer as logical ones; `row` is its physical-to-logical map."""
    total = [0] * experts
    for count, expert in zip(counts, row, strict=True):
        if expert >= 0:
            total[expert] += int(count)
    return total


def count_ids(ids: torch.Tensor, experts: int) -> torch.Tensor:
    """Tokens per expert, int64 [experts], from top-k ids of any shape on any device; -1 counts for nobody. Waits for nothing, and its
    shapes are fixed, so it may be part of a captured graph."""
    import torch

    flat = ids.reshape(-1).to(torch.int64)
    inside = (flat >= 0) & (flat < experts)
    total = torch.zeros(experts + 1, dtype=torch.int64, device=ids.device)
    total.scatter_add_(0, torch.where(inside, flat, experts), torch.ones_like(flat))
    return total[:experts]


def _wrong(what: str, value: object, rule: str) -> PlacementError:
    return PlacementError(f"{what} cannot be used", value=value, rule=rule)
