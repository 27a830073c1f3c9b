"""Plans and losses as tables and, where nothing better can be drawn, as a heat map of characters. Pure: data in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamo_gpu_ft.cli.render import columns
from dynamo_gpu_ft.experts.base import Plan
from dynamo_gpu_ft.experts.spread import Spread
from dynamo_gpu_ft.units import format_bytes

SHADES = " ░▒▓█"
TITLES = {
    "before": "before",
    "loss": "after the loss",
    "repair": "after the repair",
    "rebalance": "after rebalancing",
}


def mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)


def facts_of_plan(plan: Plan) -> dict[str, Any]:
    p, c = plan.placement, plan.certificate
    return {
        "layers": p.layers,
        "experts": p.experts,
        "ranks": p.ranks,
        "slots_per_rank": p.slots,
        "redundant": p.width - p.experts,
        "mode": c.aim.mode,
        "losses": c.aim.losses,
        "domain": c.aim.domain,
        "fewest_copies": min(c.copies),
        "survives_one_rank": list(c.one),
        "survives_two_ranks": list(c.two),
        "survives_domains": {name: list(found) for name, found in c.domains.items()},
        "balance_mean": round(sum(c.balance) / len(c.balance) / 1e6, 4),
        "balance_min": round(min(c.balance) / 1e6, 4),
        "digest": c.digest,
    }


def plan_text(facts: dict[str, Any]) -> str:
    losses = {"one rank": facts["survives_one_rank"], "two ranks": facts["survives_two_ranks"]}
    losses |= {f"one {name}": found for name, found in facts["survives_domains"].items()}
    rows = [
        (name, survived, of, f"{100 * survived / of:.1f} %" if of else "-")
        for name, (survived, of) in losses.items()
    ]
    head = (
        f"{facts['layers']} layers, {facts['experts']} experts + {facts['redundant']} redundant on {facts['ranks']} ranks x "
        f"{facts['slots_per_rank']} slots; aim: {facts['mode']}, {facts['losses']} lost, any one {facts['domain']}"
    )
    tail = (
        f"fewest copies of an expert: {facts['fewest_copies']}; balance (mean/max load of ranks): {facts['balance_mean']:.3f}, "
        f"worst layer {facts['balance_min']:.3f}"
    )
    if facts.get("file"):
        tail += f"\nwritten to {facts['file']}"
    table = columns(("loss of", "survived at once", "of", "share"), rows)
    return f"{head}\n\n{table}\n\n{tail}"


def story_text(story: dict[str, Any], shown: Sequence[tuple[str, Spread]], *, plotted: bool) -> str:
    rows = [
        (
            name,
            TITLES[stage["stage"]],
            f"{stage['balance']:.3f}",
            f"{stage['balance_min']:.3f}",
            stage["lost_experts"],
            f"{stage['lost_tokens_percent']:.2f} %",
            "{} of {}".format(*stage["survives_one_rank"]),
            format_bytes(stage["bytes"]) if stage["bytes"] else "-",
            format_bytes(stage["bytes_worst_rank"]) if stage["bytes"] else "-",
        )
        for name, placement in story["placements"].items()
        for stage in placement["stages"]
    ]
    headers = ("placement by", "stage", "balance", "worst layer", "lost experts", "their tokens", "survives a rank", "moved", "worst rank")  # fmt: skip
    parts = [f"{' + '.join(story['killed'])} lost: ranks {', '.join(map(str, story['dead']))}"]
    parts.append(columns(headers, rows))
    if "not_repaired" in story:
        parts.append(f"not repaired: {story['not_repaired']}")
    else:
        parts.append(recovery_text(story["placements"]["dynamo_gpu_ft"]))
    if plotted:
        parts.append(f"heat map: {story['plot']}")
    else:
        parts.append(heat_text(shown, story["dead"]))
    return "\n\n".join(parts)


def recovery_text(facts: dict[str, Any]) -> str:
    """What rebalancing has reached, in a sentence."""
    aim = facts["aim_after"]
    text = f"rebalanced in {facts['steps']} steps of one layer each; the slots that are left allow: {aim['mode']}, {aim['losses']} lost, any one {aim['domain']}"
    if facts["missing_copies"]:
        text += f"; the budget leaves {facts['missing_copies']} experts of all layers without the copies for that"
    return text


def heat_text(shown: Sequence[tuple[str, Spread]], dead: Sequence[int], height: int = 12) -> str:
    """Load of each rank (columns) and group of layers (rows), shaded in steps of the mean; a dead rank is a column of x."""
    blocks = []
    for name, one in shown:
        groups = _groups(len(one.tokens), height)
        lines = []
        for group in groups:
            line = ""
            for rank in range(len(one.tokens[0])):
                if name != "before" and rank in dead:
                    line += "x"
                    continue
                ratio = sum(relative(one, layer, rank) for layer in group) / len(group)
                line += SHADES[min(len(SHADES) - 1, int(ratio * 2))]
            lines.append(f"  layers {group[0]:3d}-{group[-1]:<3d} |{line}|")
        blocks.append(f"{TITLES[name]}: balance {mean(one.balance):.3f}\n" + "\n".join(lines))
    legend = "load / mean: ' ' < 0.5 ░ < 1 ▒ < 1.5 ▓ < 2 █ more; x dead; one column per rank"
    return "\n\n".join([*blocks, legend])


def relative(one: Spread, layer: int, rank: int) -> float:
    """Load of a rank in a layer by the mean of the live ranks when no token is lost."""
    whole = sum(one.tokens[layer]) + one.lost[layer]
    return one.tokens[layer][rank] * len(one.alive) / whole if whole else 0.0


def _groups(layers: int, height: int) -> list[range]:
    step = max(1, -(-layers // height))
    return [range(begin, min(layers, begin + step)) for begin in range(0, layers, step)]
