"""How well experts are balanced once those of a lost rank are in other ranks' slots, what that moves and how long deciding it takes.

Every single rank is lost in turn, from the same placement. Beside it the rules that engines use today, written from their description:
the first duplicate gives way, or the most redundant expert of each rank in turn; and EPLB from nothing on the survivors.
"""

import statistics
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

from bench import eplb
from bench.experts_plan import EXPERT_BYTES, EXPERTS, LOADS, Loads, made
from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft import native
from dynamo_gpu_ft.experts import planner
from dynamo_gpu_ft.experts.base import LEVELS, Aim, Certificate, Domains, Placement

BALANCE, WORST, SECONDS = 0.85, 2.0, 0.002
REFILL = Aim(mode="refill")


def measure(options: Options) -> list[Row]:
    layers = 8 if options.quick else 58
    cases = [("zipf0.6", 32, 9)]
    if not options.quick:
        cases += [(name, 32, 9) for name in ("zipf0.3", "zipf1.0", "khot")]
        cases += [("zipf0.6", 8, 37), ("zipf0.6", 16, 18), ("zipf0.6", 64, 5), ("zipf0.6", 72, 4)]
    rows: list[Row] = []
    for name, ranks, slots in cases:
        loads = made(layers, **LOADS[name])
        domains = Domains.regular(ranks)
        mine = planner.plan(loads, ranks=ranks, slots=slots, domains=domains, aim=REFILL).placement
        theirs = Placement.of_rows(
            eplb.rebalanced(loads, slots, ranks), experts=EXPERTS, ranks=ranks
        )
        for start, placement in (("plan", mine), ("eplb", theirs)):
            options.say(f"{name}, EP {ranks}, from {start}")
            named = (name, ranks, slots) == cases[0]
            rows += _losses(f"{name}.ep{ranks}.from_{start}", placement, loads, domains, named)
    return rows


def _losses(
    name: str, placement: Placement, loads: Loads, domains: Domains, named: bool
) -> list[Row]:
    ranks, slots = placement.ranks, placement.slots
    balance, least, worst, took, inside, spare = [], [], [], [], [], 0
    others: dict[str, list[float]] = {"first duplicate": [], "most redundant": [], "EPLB anew": []}
    for dead in range(ranks):
        alive = [rank != dead for rank in range(ranks)]
        began = time.thread_time()
        plan = planner.repair(
            placement, loads, alive=alive, domains=domains, expert_bytes=EXPERT_BYTES
        )
        took.append(time.thread_time() - began)
        inside.append(_decision(placement, loads, alive, domains))
        found = plan.certificate
        assert min(found.copies) >= 1
        balance.append(statistics.mean(found.balance) / 1e6)
        least.append(min(found.balance) / 1e6)
        spare += found.bytes // EXPERT_BYTES - _orphans(placement, dead)
        if found.bytes:
            worst.append(found.worst / (found.bytes / (ranks - 1)))
        if dead % 8 == 0:
            rules: dict[str, Callable[[list[int], set[int], int], list[int]]] = {
                "first duplicate": eplb.first_duplicate,
                "most redundant": eplb.most_redundant,
            }
            for label, rule in rules.items():
                rows = [
                    rule(list(placement.row(layer)), {dead}, slots)
                    for layer in range(placement.layers)
                ]
                others[label].append(_mean(rows, loads, alive, domains))
            others["EPLB anew"].append(_anew(loads, ranks, slots))
    mine, base = statistics.mean(balance), max(statistics.mean(others[k]) for k in list(others)[:2])
    text = ", ".join(f"{k} {statistics.mean(v):.3f}" for k, v in others.items() if v)
    return [
        row(
            f"experts_repair.{name}.balance", mine, "balance", baseline=base, ratio=mine / BALANCE if named else None,
            target=1.0 if named else None,
            note=f"mean over layers and all {ranks} losses; least of a layer {min(least):.3f}; {text}"
            + (f"; ratio: to the goal of {BALANCE}" if named else ""),
        ),
        row(
            f"experts_repair.{name}.worst", max(worst, default=0.0), "x mean", ratio=WORST / max(worst, default=WORST),
            target=1.0 if named else None,
            note=f"bytes of the rank that receives most, worst of all losses; moves that are no orphans: {spare}; "
            f"{_orphans(placement, 0) * EXPERT_BYTES / (1 << 30):.3g} GiB for rank 0",
        ),
        row(
            f"experts_repair.{name}.time", statistics.median(inside) * 1e3, "ms", ratio=SECONDS / statistics.median(inside),
            target=1.0 if named else None,
            note=f"{spread([t * 1e3 for t in inside])}, processor time of the decision in the core; with loads read, moves listed and certificate "
            f"made, Python to Python, {spread([t * 1e3 for t in took])}; ratio: to 2 ms",
        ),
    ]  # fmt: skip


def _decision(placement: Placement, loads: Loads, alive: list[bool], domains: Domains) -> float:
    """Seconds of the core's repair alone, its arguments at hand."""
    core = native.load()
    sizes = (placement.layers, placement.experts, placement.ranks, placement.slots, 1, 0, False)
    flat = array("q", chain.from_iterable(loads)).tobytes()
    levels = array("i", chain.from_iterable(domains.of(level) for level in LEVELS)).tobytes()
    began = time.thread_time()
    core.place_repair(sizes, flat, bytes(alive), levels, placement.table, 0)
    return time.thread_time() - began


def _orphans(placement: Placement, dead: int) -> int:
    """(layer, expert) pairs whose copies are all on rank `dead`."""
    count = 0
    for layer in range(placement.layers):
        cells = placement.row(layer)
        mine = Counter(cells[dead * placement.slots : (dead + 1) * placement.slots])
        every = Counter(cells)
        count += sum(expert >= 0 and every[expert] == here for expert, here in mine.items())
    return count


def _mean(
    rows: Sequence[Sequence[int]], loads: Loads, alive: list[bool], domains: Domains
) -> float:
    placement = Placement.of_rows(rows, experts=EXPERTS, ranks=len(alive))
    found: Certificate = planner.certify(placement, loads, domains=domains, alive=alive)
    return statistics.mean(found.balance) / 1e6


def _anew(loads: Loads, ranks: int, slots: int) -> float:
    """EPLB on the survivors, which moves nearly everything."""
    left = ranks - 1
    rows = eplb.rebalanced(loads, slots, left)
    return _mean(rows, loads, [True] * left, Domains.regular(left))
