"""Routing loads made to order: Zipf, k-hot or flat, correlated between layers, drifting from window to window; the same everywhere.

Gives the planner, its benches and the command line something to plan for where no trace is at hand; `trace_files` reads recorded ones.
Integers and correctly rounded decimals alone, so a seed means the same loads on every machine and every Python.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import msgspec

from dynamo_gpu_ft.errors import PlacementError

Loads = list[list[int]]
_CONTEXT = decimal.Context(prec=30)
_SCALE = 1 << 48


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What kind of loads: `tokens` choices of an expert per layer and window, spread over `experts`.

    kind        zipf: the i-th hottest gets 1 / i**alpha; khot: `hot` experts get `hot_percent` of all, evenly; flat: all the same
    correlated  percent of the order of hotness that a layer has from the one before it; 0: each its own, 100: all the same
    drift       percent of the order that changes from one window to the next
    """

    layers: int = 58
    experts: int = 256
    tokens: int = 1 << 20
    kind: Literal["zipf", "khot", "flat"] = "zipf"
    alpha: str = "0.6"
    hot: int = 32
    hot_percent: int = 90
    correlated: int = 0
    drift: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("layers", 1, 1 << 16),
            ("experts", 1, 1 << 16),
            ("tokens", 0, 1 << 48),
            ("hot", 1, self.experts),
            ("hot_percent", 0, 100),
            ("correlated", 0, 100),
            ("drift", 0, 100),
        ):
            value = getattr(self, name)
            if not low <= value <= high and not (name == "hot" and self.kind != "khot"):
                raise PlacementError(
                    f"no loads can be made with this {name}",
                    value=value,
                    rule=f"{name} lies between {low} and {high}",
                )
        _exponent(self.alpha)


def windows(recipe: Recipe, count: int = 1) -> Iterator[Loads]:
    """Loads [layers][experts] of `count` windows, one after the other; each layer sums up to `recipe.tokens`."""
    draw = _Draws(recipe.seed)
    shares = _by_rank(recipe)
    orders = _first_orders(recipe, draw)
    for number in range(count):
        if number:
            for order in orders:
                _stir(order, recipe.drift, draw)
        yield [_placed(order, shares) for order in orders]


def loads(recipe: Recipe) -> Loads:
    """The first window."""
    return next(windows(recipe))


def _first_orders(recipe: Recipe, draw: _Draws) -> list[list[int]]:
    orders: list[list[int]] = []
    for _ in range(recipe.layers):
        order = list(orders[-1]) if orders else list(range(recipe.experts))
        _stir(order, 100 - recipe.correlated if orders else 100, draw)
        orders.append(order)
    return orders


def _placed(order: Sequence[int], shares: Sequence[int]) -> list[int]:
    row = [0] * len(order)
    for expert, share in zip(order, shares, strict=True):
        row[expert] = share
    return row


def _by_rank(recipe: Recipe) -> list[int]:
    """Tokens of the hottest expert, the next, and so on; sums up to all of them."""
    if recipe.kind == "zipf":
        return apportion(_zipf(recipe.experts, recipe.alpha), recipe.tokens)
    if recipe.kind == "flat" or recipe.hot == recipe.experts:
        return apportion([1] * recipe.experts, recipe.tokens)
    hot, cold = recipe.hot, recipe.experts - recipe.hot
    much = recipe.tokens * recipe.hot_percent // 100
    return apportion([1] * hot, much) + apportion([1] * cold, recipe.tokens - much)


def apportion(weights: Sequence[int], total: int) -> list[int]:
    """`total` split in proportion to whole `weights`; what rounding leaves goes to the largest remainders, the first of equals."""
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    left = total - sum(shares)
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[:left]:
        shares[i] += 1
    return shares


@lru_cache(maxsize=16)
def _zipf(experts: int, alpha: str) -> tuple[int, ...]:
    # exp and ln of `decimal` are correctly rounded by definition; libm's pow is not the same everywhere.
    exponent = _exponent(alpha)
    scaled = (
        _CONTEXT.multiply(
            _CONTEXT.exp(_CONTEXT.multiply(-exponent, _CONTEXT.ln(decimal.Decimal(i)))), _SCALE
        )
        for i in range(1, experts + 1)
    )
    return tuple(max(1, int(value)) for value in scaled)


def _exponent(alpha: str) -> decimal.Decimal:
    try:
        value = decimal.Decimal(alpha)
    except decimal.InvalidOperation:
        value = decimal.Decimal(-1)
    if not 0 <= value <= 4:
        raise PlacementError(
            "no Zipf loads have this exponent",
            value=alpha,
            rule="a number between 0 and 4",
            remedy="0.6",
        )
    return value


def _stir(order: list[int], percent: int, draw: _Draws) -> None:
    """Shuffles so many percent of the places, drawn at random, among themselves."""
    places = list(range(len(order)))
    draw.shuffle(places)
    chosen = sorted(places[: len(order) * percent // 100])
    values = [order[i] for i in chosen]
    draw.shuffle(values)
    for i, value in zip(chosen, values, strict=True):
        order[i] = value


class _Draws:
    """SplitMix64, written out so that no library decides what a seed means."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def below(self, bound: int) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) * bound) >> 64

    def shuffle(self, values: list[int]) -> None:
        for i in range(len(values) - 1, 0, -1):
            j = self.below(i + 1)
            values[i], values[j] = values[j], values[i]


_MASK = (1 << 64) - 1
