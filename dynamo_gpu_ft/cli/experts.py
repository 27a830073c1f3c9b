"""The `experts` command: plans where the experts of an MoE model go, checks what a plan says of itself, plays through a loss.

A view of the planner and its checker; touches no device. Exit codes: 0 ok; 1 a certificate that is not true, or a loss that leaves
experts without a copy; 2 could not run, which is also the answer to an aim that cannot be met, with what would do.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import msgspec

from dynamo_gpu_ft.cli import experts_view as view
from dynamo_gpu_ft.cli.experts_simulate import BESIDE, Loss, ours
from dynamo_gpu_ft.cli.render import as_json
from dynamo_gpu_ft.errors import CertificateError, PlacementError
from dynamo_gpu_ft.experts import checker, planner, trace_files, traces
from dynamo_gpu_ft.experts.base import LEVELS, Aim, Domains, Plan
from dynamo_gpu_ft.units import UnitError, parse

FORMAT = "dynamo_gpu_ft experts plan 1"
EXAMPLES = """examples:
  dynamo-gpu-ft experts plan --experts 256 --ranks 32 --redundant 288 --node 8 --domain node --to plan.json
  dynamo-gpu-ft experts check plan.json
  dynamo-gpu-ft experts simulate plan.json --kill rank:3 --plot loss.png
  dynamo-gpu-ft experts simulate plan.json --kill node:1 --json
  dynamo-gpu-ft experts simulate plan.json --kill rank:3 --budget 64GiB --beside eplb
  dynamo-gpu-ft experts plan --loads trace.npy --ranks 8 --redundant 72 --json"""


class PlanFile(msgspec.Struct, frozen=True, kw_only=True):
    """What `plan --to` writes: everything that is needed to check it again."""

    format: str
    loads: list[list[int]]
    domains: Domains
    plan: Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    kinds = parser.add_subparsers(title="what to do", metavar="plan|check|simulate", required=True, dest="what")  # fmt: skip
    plan = kinds.add_parser("plan", help="a placement with its certificate")
    plan.add_argument("--loads", metavar="FILE", help=f"recorded loads: {', '.join(trace_files.kinds())} or a folder; default: generated")  # fmt: skip
    plan.add_argument("--experts", type=int, help="experts per layer; default: of the file, or 256")
    plan.add_argument("--layers", type=int, default=58, help="generated loads: MoE layers; default %(default)s")  # fmt: skip
    plan.add_argument("--kind", choices=("zipf", "khot", "flat"), default="zipf", help="generated loads; default %(default)s")  # fmt: skip
    plan.add_argument("--alpha", default="0.6", help="exponent of zipf; default %(default)s")
    plan.add_argument("--seed", type=int, default=0)
    plan.add_argument("--ranks", type=int, default=32, help="expert-parallel ranks; default %(default)s")  # fmt: skip
    plan.add_argument("--redundant", type=int, default=288, help="slots of a layer beyond one per expert; default %(default)s")  # fmt: skip
    plan.add_argument("--node", type=int, default=8, help="ranks per node; default %(default)s")
    plan.add_argument("--tray", type=int, default=4, help="ranks per tray; default %(default)s")
    plan.add_argument("--mode", choices=("instant", "refill"), default="instant", help="copies that are there, or host copies; default %(default)s")  # fmt: skip
    plan.add_argument("--losses", type=int, default=1, help="ranks that may die; default %(default)s")  # fmt: skip
    plan.add_argument("--domain", choices=LEVELS, default="gpu", help="and any one of these; default %(default)s")  # fmt: skip
    plan.add_argument("--to", metavar="FILE", help="write the plan there, for check and simulate")
    check = kinds.add_parser("check", help="verify the certificate of a plan file")
    check.add_argument("plan", metavar="PLAN.json")
    simulate = kinds.add_parser(
        "simulate", help="kill ranks or nodes of a plan file, repair and rebalance it"
    )
    simulate.add_argument("plan", metavar="PLAN.json")
    simulate.add_argument("--kill", metavar="rank:N|node:N", action="append", required=True, help="can be repeated")  # fmt: skip
    simulate.add_argument("--expert-bytes", metavar="SIZE", type=_size, default=42 << 20, help="of one expert of one layer; default 42MiB")  # fmt: skip
    simulate.add_argument("--budget", metavar="SIZE", type=_size, help="bytes that repair and rebalancing may move together (experts without any copy move whatever it costs); default: what is worth it")  # fmt: skip
    simulate.add_argument("--beside", choices=sorted(BESIDE), action="append", default=[], help="play the same loss through with the public EPLB algorithm in as many slots")  # fmt: skip
    simulate.add_argument("--plot", metavar="FILE.png", help="a heat map; needs matplotlib. Without: in the terminal")  # fmt: skip
    for each in (plan, check, simulate):
        each.add_argument("--json", action="store_true", help="print the answer as JSON")


def run(args: argparse.Namespace) -> int:
    return {"plan": _plan, "check": _check, "simulate": _simulate}[args.what](args)


def _size(text: str) -> int:
    try:
        return int(parse("bytes", text))
    except UnitError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _plan(args: argparse.Namespace) -> int:
    if args.loads:
        loads = trace_files.read(args.loads, experts=args.experts)
    else:
        loads = traces.loads(traces.Recipe(layers=args.layers, experts=args.experts or 256, kind=args.kind, alpha=args.alpha, seed=args.seed))  # fmt: skip
    width = len(loads[0]) + args.redundant
    if args.ranks < 1 or width % args.ranks:
        raise PlacementError(
            "the slots cannot be shared out evenly",
            value=f"{len(loads[0])} experts + {args.redundant} redundant over {args.ranks} ranks",
            rule="experts and redundant ones together are a multiple of the ranks",
            remedy=f"--redundant {args.redundant + -width % max(1, args.ranks)}",
        )
    domains = Domains.regular(args.ranks, per_tray=args.tray, per_node=args.node)
    aim = Aim(mode=args.mode, losses=args.losses, domain=args.domain)
    made = planner.plan(loads, ranks=args.ranks, slots=width // args.ranks, domains=domains, aim=aim)  # fmt: skip
    if args.to:
        content = PlanFile(format=FORMAT, loads=loads, domains=domains, plan=made)
        Path(args.to).write_bytes(msgspec.json.encode(content))
    facts = view.facts_of_plan(made) | {"file": args.to}
    print(as_json(facts) if args.json else view.plan_text(facts))
    return 0


def _check(args: argparse.Namespace) -> int:
    file = read(args.plan)
    certificate = file.plan.certificate
    try:
        checker.check(file.plan.placement, certificate, file.loads, file.domains)
    except CertificateError as error:
        facts: dict[str, Any] = {"true": False, "why": str(error)}
        print(as_json(facts) if args.json else f"the certificate of {args.plan} is false: {error}")
        return 1
    facts = {"true": True} | view.facts_of_plan(file.plan)
    print(as_json(facts) if args.json else f"the certificate of {args.plan} is true.\n" + view.plan_text(facts))  # fmt: skip
    return 0


def _simulate(args: argparse.Namespace) -> int:
    file = read(args.plan)
    placement = file.plan.placement
    dead = killed(args.kill, file.domains)
    loss = Loss(file.loads, file.domains, tuple(dead), args.expert_bytes, file.plan.certificate.aim)
    played, recovery = ours(placement, loss, args.budget)
    rows = {"dynamo_gpu_ft": played.facts | recovery}
    for name in dict.fromkeys(args.beside):
        rows[name] = BESIDE[name](placement, loss).facts
    for row in rows.values():
        row["bytes"] = row["lost_experts"] * args.expert_bytes
    story: dict[str, Any] = {"killed": args.kill, "dead": dead, "placements": rows}
    if played.why:
        story["not_repaired"] = played.why
    if args.plot:
        from dynamo_gpu_ft.cli.experts_plot import draw

        draw(played.shown, dead, args.plot, title=f"{placement.experts} experts, {placement.ranks} ranks, {' + '.join(args.kill)} lost")  # fmt: skip
        story["plot"] = args.plot
    print(as_json(story) if args.json else view.story_text(story, played.shown, plotted=bool(args.plot)))  # fmt: skip
    return 1 if rows["dynamo_gpu_ft"]["lost_experts"] else 0


def killed(names: list[str], domains: Domains) -> list[int]:
    """Ranks that `rank:3` and `node:1` mean."""
    dead: set[int] = set()
    for name in names:
        match = re.fullmatch(r"(rank|node):([0-9]{1,6})", name)
        members = domains.members("gpu" if match and match[1] == "rank" else "node")
        if match is None or int(match[2]) not in members:
            raise PlacementError(
                "nothing of that name can be killed", value=name,
                rule=f"rank:0 to rank:{domains.ranks - 1}, node:0 to node:{max(domains.node)}",
            )  # fmt: skip
        dead |= set(members[int(match[2])])
    if len(dead) == domains.ranks:
        raise PlacementError("nobody is left", value=names, rule="at least one rank lives on")
    return sorted(dead)


def read(path: str) -> PlanFile:
    """A plan file; raises `PlacementError` for one that is torn or was not written by `plan --to`."""
    try:
        file = msgspec.json.decode(Path(path).read_bytes(), type=PlanFile)
        if file.format != FORMAT:
            raise ValueError(f"format {file.format!r}")
        trace_files.checked(path, file.loads)
    except (OSError, ValueError) as error:
        raise PlacementError(
            "a plan file cannot be read", where=path, value=str(error),
            rule=f"written by `experts plan --to`, format {FORMAT!r}",
        ) from error  # fmt: skip
    placement = file.plan.placement
    sizes = (placement.layers, placement.experts, placement.ranks)
    if sizes != (len(file.loads), len(file.loads[0]), file.domains.ranks):
        raise PlacementError(
            "a plan file contradicts itself", where=path, value=sizes,
            rule="layers, experts and ranks are those of its loads and domains",
        )  # fmt: skip
    return file
