"""Judges and renders `demo --fault expert`: a timeline, a table beside the whole restart, and the load of each rank before and after.

Pure functions over what was played.
"""

from __future__ import annotations

from typing import Any

from dynamo_gpu_ft.cli.demo.experts import Played, Round
from dynamo_gpu_ft.cli.demo.report import FAIL, PASS, Where
from dynamo_gpu_ft.cli.render import columns
from dynamo_gpu_ft.events import GroupRecovered, MemberDied, Planned, StepDone

BAR = 30
WORDS = {
    "quiesce": "the other ranks have left their step",
    "rebuild": "lost slots out of the map, a communicator of those that are left",
    "validate": "one canary step, the same bits on all ranks",
    "refill": "the lost experts are in other slots, digested and committed",
    "rebalance": "copies and balance are there again on the ranks that are left",
}


def judge(where: Where, played: Played) -> dict[str, Any]:
    """ "pass" only if with two copies, and behind a refill and a restart, every token is the undisturbed run's."""
    wanted = [stream.tokens for stream in played.reference.streams]
    problems: list[str] = []

    def told(round_: Round, what: str, *, exact: bool) -> dict[str, Any]:
        same = sum(s.tokens == w for s, w in zip(round_.streams, wanted, strict=True))
        if round_.failed:
            problems.append(f"{what}: {round_.failed}")
        elif exact and same < len(wanted):
            problems.append(f"{what}: {len(wanted) - same} streams differ")
        died = next((t for t, e in round_.events if isinstance(e, MemberDied)), round_.killed)
        return {
            "identical": same,
            "noticed_s": round(died - round_.killed, 4),
            "first_token_s": round(round_.first_token_s, 4),
            "next_token_s": round(round_.next_token_s, 4),
            "gap_s": round(round_.gap_s, 4),
            "covered_s": round(max(0.0, round_.covered - round_.killed), 4) if round_.covered else None,
            "whole_s": round(round_.whole - round_.killed, 4) if round_.whole else None,
            "masked_tokens": sum(s.masked for s in round_.streams),
            "affected": round(round_.affected, 6),
            "divergence": round(round_.divergence, 4),
            "tokens": sum(len(s.tokens) for s in round_.streams),
            "kept": round_.kept,
        }  # fmt: skip

    copies = told(played.copies, "two copies", exact=True)
    lean = told(played.lean, "one copy", exact=False)
    after = told(played.lean_after, "one copy, behind the refill", exact=True)
    restart = told(played.restart, "whole restart", exact=True)
    if copies["masked_tokens"]:
        problems.append("two copies: an expert was not covered")
    return {
        "verdict": FAIL if problems else PASS,
        "fault": "expert",
        "problems": problems,
        "model": where.model,
        "ranks": played.setup.ranks,
        "experts": played.experts,
        "slots": list(played.slots),
        "streams": len(wanted),
        "max_tokens": played.setup.max_tokens,
        "shards": [played.copies.shard, played.lean.shard],
        "copies": copies,
        "lean": lean,
        "lean_after": after,
        "restart": restart,
        "timelines": [timeline(played.copies), timeline(played.lean)],
        "balance": [
            {"before": played.copies.before, "after": played.copies.after},
            {"before": played.lean.before, "after": played.lean.after},
        ],
        "machine": where.machine,
        "date": where.date,
        "commit": where.commit,
    }


def timeline(round_: Round) -> list[dict[str, Any]]:
    """What happened when, in seconds after the kill; steps stand where they ended."""
    rows = [(0.0, f"rank {round_.shard} is killed (SIGKILL)")]
    grown = False
    for when, event in round_.events:
        at = when - round_.killed
        if at < 0:
            continue
        if isinstance(event, MemberDied):
            rows.append((at, f"noticed: {event.reason}"))
        elif isinstance(event, Planned) and event.kind == "substitute":
            grown = True
            rows.append((at, "a new process has loaded all but experts beside the running engine"))
        elif isinstance(event, StepDone) and event.step in WORDS and not grown:
            rows.append((at, f"{event.step} ({1000 * event.duration_s:.1f} ms): {WORDS[event.step]}"))  # fmt: skip
        elif isinstance(event, GroupRecovered):
            with_ = "with all ranks" if grown else "without it"
            rows.append((at, f"{event.outcome} {with_}, epoch {event.epoch}"))
            grown = False
    rows.append((round_.first_token_s, "the next token"))
    rows.append((round_.next_token_s, "every stream has its next token"))
    return [{"at_s": round(at, 4), "what": what} for at, what in sorted(rows, key=lambda r: r[0])]


def render(result: dict[str, Any]) -> str:
    """The screen; its last line is the verdict."""
    full, lean = result["slots"]
    titles = (
        f"two copies of each expert ({full} slots per rank and layer)",
        f"one copy, room for a lost rank's ({lean} slots): until they are refilled the router takes the next best",
    )
    lines = [
        f"{result['model']}, reference engine in float32, {result['ranks']} expert-parallel ranks over gloo, {result['experts']} experts, two for each token",
        f"{result['streams']} open streams of {result['max_tokens']} tokens, greedy",
        f"{result['machine']}; {result['date']}" + f"; {result['commit']}" * bool(result["commit"]),
    ]
    for title, rows, balance in zip(titles, result["timelines"], result["balance"], strict=True):
        lines += ["", title]
        lines += [f"  {row['at_s']:8.3f} s  {row['what']}" for row in rows]
        lines += ["", *_bars(balance)]
    lines += ["", _table(result), "", *(f"problem: {p}" for p in result["problems"])]
    return "\n".join([*lines, _verdict(result)])


def _bars(balance: dict[str, dict[int, int]]) -> list[str]:
    """Rows of tokens that each rank's experts computed, as share of the busiest's."""
    found = []
    for when in ("before", "after"):
        rows = balance[when]
        top, whole = max(rows.values(), default=0) or 1, sum(rows.values()) or 1
        live = [n for n in rows.values() if n]
        even = sum(live) / len(live) / top if live else 0.0
        found.append(f"  load of each rank's experts {when} the loss (mean/max {even:.2f})")
        for shard, count in sorted(rows.items()):
            bar = "█" * round(BAR * count / top)
            found.append(f"    rank {shard}  {bar:<{BAR}} {100 * count / whole:5.1f} %")
    return found


def _table(result: dict[str, Any]) -> str:
    parts = [result[key] for key in ("copies", "lean", "restart")]

    def ms(key: str) -> list[str]:
        return ["-" if p[key] is None else f"{1000 * p[key]:.0f}" for p in parts]

    count = result["streams"]
    rows = [
        ["noticed after, ms", *ms("noticed_s")],
        ["next token after, ms", *ms("first_token_s")],
        ["next token of every stream after, ms", *ms("next_token_s")],
        ["longest gap of a stream, ms", *ms("gap_s")],
        ["every expert covered after, ms", *ms("covered_s")],
        ["all ranks there again after, ms", *ms("whole_s")],
        ["tokens under a masked router", *(f"{p['masked_tokens']} of {p['tokens']}" for p in parts)],
        ["rows that lost an expert to the mask", *(f"{100 * p['affected']:.2f} %" for p in parts)],
        ["KL of their router, nats", *(f"{p['divergence']:.2f}" if p["affected"] else "-" for p in parts)],
        ["processes kept", *(f"{p['kept']} of {result['ranks']}" for p in parts)],
        ["streams identical", *(f"{p['identical']} of {count}" for p in parts)],
        ["streams identical behind it", "", f"{result['lean_after']['identical']} of {count}", ""],
    ]  # fmt: skip
    return columns(
        ("the same kill with", "two copies", "one copy, refilled", "a whole restart"), rows
    )


def _verdict(result: dict[str, Any]) -> str:
    copies, restart = result["copies"], result["restart"]
    word = "PASS" if result["verdict"] == PASS else "FAIL"
    ratio = restart["next_token_s"] / max(copies["next_token_s"], 0.0001)
    return (
        f"VERDICT: {word}: {copies['identical']} of {result['streams']} streams identical with a rank lost, "
        f"next tokens {ratio:.0f} times sooner than after a restart of the whole engine"
    )
