"""Balances that no placement can be above, whoever makes it: what a planner is measured against where it cannot reach its goal.

Counting arguments on one layer, in floating point; each is a relaxation, so a bound may be out of reach, but never below what there is.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement

#: Loads that differ by less than this part count as one.
EQUAL = 1e-3
#: So many copies of hot experts on one rank are enumerated; beyond that any sum is taken to be possible.
ENUMERATED = 3


def bound(loads: Sequence[Sequence[int]], ranks: int, slots: int, floor: int) -> float:
    """A balance (mean / max) that no placement on `ranks` x `slots` with `floor` copies of each expert can be above. Of the first layer of
    `loads` [layers, experts]: for loads whose other layers are the same in another order."""
    layer = sorted(loads[0], reverse=True)
    mean = sum(layer) / ranks
    lowest = max(mean, _greatest_share(layer, ranks, slots, floor))
    peaks = [
        _least(lambda peak: _fits(layer, ranks, slots, floor, peak), lowest, float(sum(layer))),
        _least(_packs(layer, ranks, slots, floor), lowest, float(sum(layer))),
    ]
    return mean / max(peaks)


def _least(possible: Callable[[float], bool], low: float, high: float) -> float:
    """A peak below which nothing is possible, as near as 40 halvings come."""
    if possible(low):
        return low
    for _ in range(40):
        peak = (low + high) / 2
        low, high = (low, peak) if possible(peak) else (peak, high)
    return low


def _greatest_share(layer: Sequence[int], ranks: int, slots: int, floor: int) -> float:
    """No rank has less to do than one copy of the expert whose copies have most."""
    copies = [floor] * len(layer)
    for _ in range(ranks * slots - floor * len(layer)):
        busiest = max(range(len(layer)), key=lambda e: layer[e] / copies[e])
        if copies[busiest] == ranks:
            break
        copies[busiest] += 1
    return max(load / count for load, count in zip(layer, copies, strict=True))


def _fits(layer: Sequence[int], ranks: int, slots: int, floor: int, peak: float) -> bool:
    """False when no rank can stay at `peak` or below. For each number of hottest experts: their copies have only so many slots, because the
    others need `floor` each; a copy has at most as much to do as whole copies allow below `peak`; and a rank's other slots hold copies that
    have less to do. So much and no more can be done by all ranks, best when the hot copies are spread evenly."""
    whole, largest = sum(layer), 0.0
    for hot in range(1, len(layer)):
        load = layer[hot - 1]
        largest = max(largest, load / max(floor, math.ceil(load / peak)))
        each, more = divmod(ranks * slots - floor * (len(layer) - hot), ranks)
        if each >= slots:
            return True
        cold = layer[hot] / floor
        able = [min(peak, n * largest + (slots - n) * cold) for n in (each, each + 1)]
        if (ranks - more) * able[0] + more * able[1] < whole * (1 - 1e-12):
            return False
    return True


def _packs(layer: Sequence[int], ranks: int, slots: int, floor: int) -> Callable[[float], bool]:
    """The same question where the hottest experts are all as hot: a copy of one is then one of few sizes, load / whole number.

    A rank holds k such copies, which do h, and below `peak` leaves so much for its other slots. Those need at least the coldest expert's
    share with `floor` copies each; a rank that has less for them needs slots beyond `floor` copies elsewhere: each such slot makes the
    shares of others smaller by as much as one of them, however it is used. So a rank costs k slots and what it lacks, all ranks together may
    cost what coverage leaves, and what they do is to be all that hot experts do. The best mixture of ranks is a linear programme in one
    variable: the hull of (cost, h)."""
    hot = sum(load >= layer[0] * (1 - EQUAL) for load in layer)
    room, work = ranks * slots - floor * (len(layer) - hot), sum(layer[:hot])
    if not layer[0] or hot == len(layer) or not layer[-1]:
        return lambda peak: True
    least, over = layer[hot - 1], layer[0] / layer[hot - 1]
    cold = layer[-1] / floor
    sizes = [least / copies for copies in range(floor, min(ranks, room) + 1)]
    sums = [
        sorted({sum(some) for some in combinations_with_replacement(sizes, k)})
        for k in range(min(slots, ENUMERATED) + 1)
    ]

    def points(peak: float) -> list[tuple[float, float]]:
        found = []
        for k in range(slots + 1):
            free = peak - (slots - k) * cold
            if k < len(sums):
                at, last = bisect_right(sums[k], free), bisect_right(sums[k], peak) - 1
                able = {sums[k][i] for i in (at - 1, at, last) if 0 <= i <= last}
            else:
                able = {min(h, k * sizes[0]) for h in (free, peak) if h >= 0}
            found += [(k + max(0.0, h - free) / cold, h) for h in able]
        return found

    def possible(peak: float) -> bool:
        mean, every = room / ranks, points(peak)
        left = [(c, h) for c, h in every if c <= mean]
        right = [(c, h) for c, h in every if c > mean]
        best = max((h for _, h in left), default=0.0)
        for a, low in left:
            for b, high in right:
                best = max(best, low + (high - low) * (mean - a) / (b - a))
        return ranks * best * over >= work * (1 - 1e-9)

    return possible
