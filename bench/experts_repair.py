"""How well experts are balanced once those of a lost rank are in other ranks' slots, what that moves and how long deciding it takes.

Every single rank is lost in turn, from the same placement. Beside it the rules that engines use today, written from their description:
the first duplicate gives way, or the most redundant expert of each rank in turn; and EPLB from nothing on the survivors. Where every expert has
two copies nothing has to be repaired; there it is measured what bringing copies and balance back takes.
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
#: Of EPLB anew on the ranks that live.
BESIDE = 0.97
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
    for name, ranks, slots in _doubled(options.quick):
        options.say(f"{name}, EP {ranks}, recovery")
        rows += _recoveries(name, made(layers, **LOADS[name]), ranks, slots)
    return rows


def _doubled(quick: bool) -> list[tuple[str, int, int]]:
    """Two copies of each expert and one slot more on each rank."""
    if quick:
        return [("zipf0.6", 32, 17)]
    return [(n, 32, 17) for n in LOADS] + [
        ("zipf0.6", 64, 9),
        ("zipf1.0", 64, 9),
        ("zipf0.6", 72, 9),
    ]


def _recoveries(name: str, loads: Loads, ranks: int, slots: int) -> list[Row]:
    """Every eighth rank is lost in turn; nothing is orphaned, its copies come back and the ranks that live are balanced again."""
    domains, aim = Domains.regular(ranks), Aim(domain="node")
    start = planner.plan(loads, ranks=ranks, slots=slots, domains=domains, aim=aim).placement
    lost, found, least, moved, took = [], [], [], [], []
    for dead in range(0, ranks, 8):
        alive = [rank != dead for rank in range(ranks)]
        before = planner.certify(start, loads, domains=domains, alive=alive)
        began = time.thread_time()
        after = planner.recover(start, loads, alive=alive, domains=domains, aim=aim, expert_bytes=EXPERT_BYTES)  # fmt: skip
        took.append(time.thread_time() - began)
        certificate = after.rebalanced.certificate
        assert after.missing == 0
        assert certificate.one == (ranks - 1, ranks - 1)
        lost.append(statistics.mean(before.balance) / 1e6)
        found.append(statistics.mean(certificate.balance) / 1e6)
        least.append(min(certificate.balance) / 1e6)
        moved.append(certificate.bytes / (1 << 30))
    anew, gone = _anew(loads, ranks, slots), slots * len(loads) * EXPERT_BYTES / (1 << 30)
    everything = gone * (ranks - 1)
    label = f"experts_repair.recover.{name}.ep{ranks}"
    return [
        row(
            f"{label}.balance", statistics.mean(found), "balance", baseline=anew, target=BESIDE,
            note=f"two copies of each expert on distinct nodes and {slots * ranks - 2 * EXPERTS} slots more; after the loss {statistics.mean(lost):.3f}; "
            f"least of a layer {min(least):.3f}; survives any rank again; baseline: EPLB anew on the survivors, which survives none",
        ),
        row(
            f"{label}.moved", statistics.mean(moved), "GiB", baseline=everything, ratio=everything / statistics.mean(moved),
            note=f"no budget; the lost rank held {gone:.3g} GiB; baseline: all slots of the survivors, which planning anew changes nearly all of",
        ),
        row(
            f"{label}.time", statistics.median(took) * 1e3, "ms",
            note=f"{spread([t * 1e3 for t in took])}, processor time, Python to Python: repair, recovery, moves and certificates of both",
        ),
    ]  # fmt: skip


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
