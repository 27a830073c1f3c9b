"""How good plans of redundant experts are beside EPLB at equal slots, what they survive, what a rebalance moves, and how long planning takes.

Balance is mean / max of the ranks' loads, averaged over the layers; survival counts losses over all layers jointly. Loads are made to
order (Zipf, k-hot, drifting), so every figure but the times is the same on every machine.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from bench import eplb
from bench.experts_bounds import bound
from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft.errors import PlacementError
from dynamo_gpu_ft.experts import planner, traces
from dynamo_gpu_ft.experts.base import Aim, Certificate, Domains, Placement

BALANCE = 0.97
#: One expert of DeepSeek-V3 in FP8.
EXPERT_BYTES = 42 << 20
EXPERTS = 256
LOADS = {
    "zipf0.3": {"alpha": "0.3"},
    "zipf0.6": {"alpha": "0.6"},
    "zipf1.0": {"alpha": "1.0"},
    "khot": {"kind": "khot"},
}
#: Layers that are not alike: each has its own exponent, or its own number and share of hot experts.
UNEVEN = ("zipf0.7-1.3", "khot20-77")
Loads = list[list[int]]


def measure(options: Options) -> list[Row]:
    layers = 8 if options.quick else 58
    rows = list(balances(options, layers))
    rows += moved(options, layers)
    rows += times(options)
    rows += rebalances(options)
    return rows


def made(layers: int, experts: int = EXPERTS, **wish: object) -> Loads:
    return traces.loads(traces.Recipe(layers=layers, experts=experts, **wish))  # type: ignore[arg-type]


def uneven(kind: str, layers: int = 58) -> Loads:
    turns = [(i * 37) % 58 for i in range(layers)]  # of neighbours, none is like the other
    if kind == UNEVEN[0]:
        each = [{"alpha": f"0.{70 + t}" if t < 30 else f"1.{t - 30:02}"} for t in turns]
        return [made(1, seed=i, **wish)[0] for i, wish in enumerate(each)]
    return [
        made(1, kind="khot", hot=20 + t, hot_percent=70 + i % 25, seed=i)[0]
        for i, t in enumerate(turns)
    ]


def balances(options: Options, layers: int) -> Iterator[Row]:
    """Every kind of load, group size and redundancy. Instant where the slots allow it, else refill, else without any aim."""
    theirs = eplb.of_vllm()
    if theirs is None:
        options.lacking.append("vLLM's own balancer: vLLM is not installed")
    for name, wish in LOADS.items():
        loads = made(layers, **wish)
        for ranks in (8, 32) if options.quick else (8, 16, 32, 64, 72):
            options.say(f"{name}, EP {ranks}")
            for slots in _sizes(ranks):
                yield _balance(name, loads, ranks, slots, theirs)
    for name in UNEVEN:
        options.say(name)
        for ranks in (32, 64, 72):
            yield _balance(name, uneven(name, layers), ranks, _full(ranks), theirs)


def _sizes(ranks: int) -> list[int]:
    """Slots per rank: no extra where experts divide, one extra, half as many again, all twice, and with one more for each rank on top
    (E + G extra slots, or the next number that ranks divide)."""
    once, twice = -(-EXPERTS // ranks), -(-2 * EXPERTS // ranks)
    return sorted({once, once + 1, -(-3 * EXPERTS // (2 * ranks)), twice, _full(ranks)})


def _full(ranks: int) -> int:
    return -(-(2 * EXPERTS + ranks) // ranks)


def _balance(
    name: str,
    loads: Loads,
    ranks: int,
    slots: int,
    theirs: Callable[..., list[list[int]]] | None,
) -> Row:
    domains = Domains.regular(ranks)
    aim = _aim(ranks, slots, domains)
    found = planner.plan(loads, ranks=ranks, slots=slots, domains=domains, aim=aim).certificate
    base = _judged(eplb.rebalanced(loads, slots, ranks), loads, ranks, domains)
    full = slots == _full(ranks)
    floor = aim.losses + 1 if aim.mode == "instant" else 1
    layers = loads if name in UNEVEN else loads[:1]
    limit = statistics.mean(bound([layer], ranks, slots, floor) for layer in layers)
    ours, other = _mean(found), _mean(base)
    note = [
        f"{aim.mode if aim.losses else 'no aim'}; least of a layer {min(found.balance) / 1e6:.3f} (EPLB {min(base.balance) / 1e6:.3f}); "
        f"survives {_survival(found)} (EPLB {_survival(base)})"
    ]
    if limit < 0.9999:
        note.append(f"no placement with these copies can be above {limit:.3f}")
    if theirs is not None and slots == _sizes(ranks)[1]:
        vllm = _judged(theirs(loads, slots, ranks), loads, ranks, domains)
        note.append(f"vLLM's balancer {_mean(vllm):.3f}, survives {_survival(vllm)}")
    return row(
        f"experts_plan.{name}.ep{ranks}.r{ranks * slots - EXPERTS}",
        ours,
        "balance",
        baseline=other,
        target=BALANCE if full else None,
        note="; ".join(note),
    )


def _aim(ranks: int, slots: int, domains: Domains) -> Aim:
    """The most that these slots allow."""
    level = "node" if len(domains.members("node")) > 1 else "gpu"
    wishes = [Aim(domain=level), Aim(), Aim(mode="refill"), Aim(mode="refill", losses=0)]  # type: ignore[arg-type]
    for aim in wishes:
        try:
            planner.feasible(EXPERTS, ranks, slots, domains, aim)
        except PlacementError:
            continue
        return aim
    raise AssertionError("no room for one copy of each expert")


def _judged(
    rows: Sequence[Sequence[int]], loads: Loads, ranks: int, domains: Domains
) -> Certificate:
    placement = Placement.of_rows(rows, experts=EXPERTS, ranks=ranks)
    return planner.certify(placement, loads, domains=domains)


def _mean(found: Certificate) -> float:
    return statistics.mean(found.balance) / 1e6


def _survival(found: Certificate) -> str:
    parts = (("one", found.one), ("node", found.domains["node"]), ("two", found.two))
    return ", ".join(f"{name} {survived}/{every}" for name, (survived, every) in parts)


def moved(options: Options, layers: int) -> list[Row]:
    """Bytes of a rebalance after loads have drifted, with and without a budget, beside EPLB, which does not know the old placement."""
    rows = []
    ranks, theirs = 32, eplb.of_vllm()
    for slots, extra in ((9, "r32"), (17, "r288")):
        domains = Domains.regular(ranks)
        aim = _aim(ranks, slots, domains)
        for budget in (None, EXPERT_BYTES * layers * ranks // 2):
            label = "free" if budget is None else "budget"
            options.say(f"drift {extra} {label}")
            recipe = traces.Recipe(layers=layers, experts=EXPERTS, alpha="0.6", drift=10)
            ours: list[float] = []
            others: list[float] = []
            vllm: list[float] = []
            balance, stale = [], []
            old = rows_before = rows_vllm = None
            for loads in traces.windows(recipe, 3 if options.quick else 6):
                if old is not None:
                    stale.append(_mean(planner.certify(old, loads, domains=domains, aim=aim)))
                plan = planner.plan(loads, ranks=ranks, slots=slots, domains=domains, aim=aim, old=old,
                                    budget_bytes=budget, expert_bytes=EXPERT_BYTES)  # fmt: skip
                again = eplb.rebalanced(loads, slots, ranks)
                kept = theirs(loads, slots, ranks, rows_vllm) if theirs else None
                if old is not None:
                    ours.append(plan.certificate.bytes)
                    others.append(_changed(rows_before, again) * EXPERT_BYTES)
                    vllm += [_changed(rows_vllm, kept) * EXPERT_BYTES] if kept else []
                    balance.append(_mean(plan.certificate))
                old, rows_before, rows_vllm = plan.placement, again, kept
            mine, base = statistics.mean(ours) / (1 << 30), statistics.mean(others) / (1 << 30)
            rows.append(
                row(
                    f"experts_plan.drift.{extra}.{label}", mine, "GiB", baseline=base, ratio=base / max(mine, 1e-9),
                    note=f"per rebalance, EP 32, Zipf 0.6, a tenth of the order of hotness new each time; balance {statistics.mean(stale):.3f} "
                    f"before, {statistics.mean(balance):.3f} after"
                    + ("" if budget is None else f"; budget {budget / (1 << 30):.1f} GiB")
                    + (f"; vLLM's balancer moves {statistics.mean(vllm) / (1 << 30):.4g} GiB" if vllm else ""),
                )
            )  # fmt: skip
    return rows


def _changed(before: list[list[int]] | None, after: list[list[int]]) -> int:
    assert before is not None
    return sum(
        a != b for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)
    )


def times(options: Options) -> list[Row]:
    """Processor time of the one thread, from Python to Python, certificate included; beside EPLB of as many slots in Python and in vLLM."""
    rows = []
    refill, node = Aim(mode="refill"), Aim(domain="node")
    cases: list[tuple[str, str, int, int, int, Aim, float]] = [
        ("58x288", "zipf0.6", 256, 32, 9, refill, 0.010),
        ("58x544", "zipf0.6", 256, 32, 17, node, 0.010),
    ]
    if not options.quick:
        cases += [
            ("58x288.zipf1.0", "zipf1.0", 256, 32, 9, refill, 0.010),
            ("58x544.zipf1.0", "zipf1.0", 256, 32, 17, node, 0.010),
            ("58x528.zipf1.0.ep16", "zipf1.0", 256, 16, 33, node, 0.010),
            ("58x576.zipf1.0.ep64", "zipf1.0", 256, 64, 9, node, 0.010),
            ("58x648.khot.ep72", "khot", 256, 72, 9, node, 0.010),
            ("58x2048.e512.ep1024", "zipf0.6", 512, 1024, 2, node, 1.0),
        ]
        for kind in UNEVEN:
            cases += [
                (f"58x288.{kind}", kind, 256, 32, 9, refill, 0.010),
                (f"58x544.{kind}", kind, 256, 32, 17, node, 0.010),
                (f"58x576.{kind}.ep64", kind, 256, 64, 9, node, 0.010),
                (f"58x648.{kind}.ep72", kind, 256, 72, 9, node, 0.010),
            ]
    theirs = eplb.of_vllm()
    for name, kind, experts, ranks, slots, aim, goal in cases:
        options.say(f"time of {name}")
        loads = uneven(kind) if kind in UNEVEN else made(58, experts, **LOADS[kind])
        took, base, vllm = _took(loads, ranks, slots, aim, theirs)
        mine = statistics.median(took)
        rows.append(
            row(
                f"experts_plan.time.{name}", mine * 1e3, "ms", baseline=base[0] * 1e3, ratio=goal / mine, target=1.0,
                note=f"{spread([t * 1e3 for t in took])}; processor time; ratio: to the goal of {goal * 1e3:g} ms; baseline: EPLB in Python"
                + (f"; vLLM's in numpy {vllm[0] * 1e3:.4g} ms" if vllm else ""),
            )
        )  # fmt: skip
    return rows


def rebalances(options: Options) -> list[Row]:
    """Processor time of planning on from an old placement, moves listed; a tenth of the order of hotness has changed."""
    rows = []
    before, now = traces.windows(traces.Recipe(alpha="0.6", drift=10), 2)
    for name, slots, aim in (("58x288", 9, Aim(mode="refill")), ("58x544", 17, Aim(domain="node"))):
        options.say(f"time of a rebalance of {name}")
        domains = Domains.regular(32)
        wish: dict[str, Any] = {"ranks": 32, "slots": slots, "domains": domains, "aim": aim}
        wish["old"] = planner.plan(before, **wish).placement
        took = _timed(partial(planner.plan, now, **wish), 5)
        count = len(planner.plan(now, **wish).moves)
        mine = statistics.median(took)
        rows.append(
            row(
                f"experts_plan.time.rebalance.{name}", mine * 1e3, "ms", ratio=0.010 / mine,
                note=f"{spread([t * 1e3 for t in took])}; processor time, {count} moves, no budget; ratio: to 10 ms, which is the goal of a plan",
            )
        )  # fmt: skip
    return rows


def _took(
    loads: Loads, ranks: int, slots: int, aim: Aim, theirs: Callable[..., object] | None
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of our plan, of EPLB and of vLLM's balancer."""
    domains = Domains.regular(ranks)
    return (
        _timed(lambda: planner.plan(loads, ranks=ranks, slots=slots, domains=domains, aim=aim), 5),
        _timed(lambda: eplb.rebalanced(loads, slots, ranks), 1),
        _timed(lambda: theirs(loads, slots, ranks), 1) if theirs else [],
    )


def _timed(do: Callable[[], object], rounds: int) -> list[float]:
    found = []
    for _ in range(rounds):
        began = time.thread_time()
        do()
        found.append(time.thread_time() - began)
    return found
