"""Judges the runs and renders the result: one dictionary for JSON, one text for a person, whose last line is the verdict.

Pure functions; what they say is what the streams' records and the server's journal say, nothing else.
"""

from dataclasses import dataclass
from typing import Any

from dynamo_gpu_ft.cli.demo import journal
from dynamo_gpu_ft.cli.demo.load import Stream
from dynamo_gpu_ft.cli.demo.scenario import Protected, Scene, Without
from dynamo_gpu_ft.cli.render import columns

PASS, FAIL = "pass", "fail"


@dataclass(frozen=True)
class Where:
    """What the report says about its surroundings."""

    engine: str
    model: str
    machine: str
    date: str
    commit: str


def judge(
    scene: Scene,
    where: Where,
    reference: list[Stream],
    without: Without | None,
    protected: Protected | None,
) -> dict[str, Any]:
    """The whole result as plain data; `verdict` is "pass" only if every stream is whole, identical and was helped."""
    result: dict[str, Any] = {
        "verdict": PASS,
        "problems": [],
        "notes": [],
        "streams": [],
        "recovery_s": {},
        "without": _without(without) if without else None,
        "engine": where.engine,
        "model": where.model,
        "dtype": scene.dtype,
        "tensor_parallel": scene.tp,
        "block_size": scene.block_size,
        "prompt_tokens": [len(prompt) for prompt in scene.prompts],
        "max_tokens": scene.max_tokens,
        "fault": scene.fault.name,
        "kill_at_tokens": scene.kill_at,
        "undisturbed_gap_s": round(max(stream.longest_pause() for stream in reference), 3),
        "machine": where.machine,
        "date": where.date,
        "commit": where.commit,
    }
    if protected is not None:
        _judge_protected(result, scene, reference, protected)
    result["verdict"] = FAIL if result["problems"] else PASS
    return result


def _judge_protected(
    result: dict[str, Any], scene: Scene, reference: list[Stream], protected: Protected
) -> None:
    problems, notes = result["problems"], result["notes"]
    killed = protected.killed
    for number, (wanted, stream) in enumerate(zip(reference, killed.streams, strict=True), 1):
        told = journal.resumed(protected.journal, stream.ask.request_id)
        identical = stream.whole and (stream.text, stream.tokens) == (wanted.text, wanted.tokens)
        before = stream.tokens_at(killed.when)
        row = {
            "identical": identical,
            "tokens_before_fault": before,
            "tokens_restored": told.restored if told else None,
            "tokens_recomputed": told.recomputed if told else None,
            "gap_s": round(stream.longest_pause(), 3),
            "tokens": len(stream.tokens),
            "error": stream.error,
        }
        result["streams"].append(row)
        if not stream.whole:
            problems.append(f"stream {number} ended early: {stream.error}")
        elif not identical:
            at = _first_difference(wanted.tokens, stream.tokens)
            problems.append(
                f"stream {number} differs from token {at} on, {at - before} after the kill"
            )
        if told is None:
            problems.append(f"stream {number} is not named in the server's journal")
        elif told.recomputed > (bound := _bound(scene, told)):
            notes.append(
                f"stream {number} recomputed {told.recomputed} tokens, more than one block and the open tail ({bound})"
            )
    if not any(row["tokens_restored"] for row in result["streams"]):
        problems.append("no KV was restored")
    if not protected.in_memory:
        notes.append("the arena was on disk: the memory file system had no room")
    first = [stream.first_arrival_after(killed.when) for stream in killed.streams]
    last = max((moment for moment in first if moment is not None), default=None)
    result["recovery_s"] = {
        phase: round(seconds, 3)
        for phase, seconds in journal.phases(
            protected.journal,
            killed_at=killed.wall,
            last_first_token_at=None if last is None else killed.wall + (last - killed.when),
        ).items()
    }


def _bound(scene: Scene, told: journal.Resumed) -> int:
    """Most tokens that may be computed again: one block not yet snapshotted, and the open tail."""
    return scene.block_size + (told.restored + told.recomputed) % scene.block_size


def _first_difference(wanted: list[int], found: list[int]) -> int:
    pairs = zip(wanted, found, strict=False)
    return next(
        (place for place, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(found))
    )


def _without(without: Without) -> dict[str, Any]:
    failed = [stream for stream in without.killed.streams if not stream.whole]
    computed = sum(answer.prompt_tokens - answer.cached_tokens for answer in without.answers)
    return {
        "streams_failed": len(failed),
        "outage_s": round(without.outage_s, 3),
        "tokens_recomputed": computed,
        "tokens_before_fault": [
            stream.tokens_at(without.killed.when) for stream in without.killed.streams
        ],
        "phases_s": {name: round(seconds, 3) for name, seconds in without.phases.items()},
    }


def render(result: dict[str, Any]) -> str:
    """The tables and, as the last line, the verdict."""
    lines = [
        f"{result['model']} on {result['engine']}, {result['dtype']}, "
        f"tensor parallel {result['tensor_parallel']}, KV blocks of {result['block_size']} tokens",
        f"{len(result['prompt_tokens'])} open streams, prompts of {_span(result['prompt_tokens'])} tokens, "
        f"{result['max_tokens']} tokens each, greedy; {result['fault']} to EngineCore and workers at token {result['kill_at_tokens']}",
        f"{result['machine']}; {result['date']}"
        + (f"; {result['commit']}" * bool(result["commit"])),
        "",
    ]
    if result["streams"]:
        lines += [*_stream_table(result), ""]
    if result["without"]:
        lines += [*_without_lines(result), ""]
    lines += [f"note: {note}" for note in result["notes"]]
    lines += [f"problem: {problem}" for problem in result["problems"]]
    return "\n".join([*lines, _verdict(result)])


def _stream_table(result: dict[str, Any]) -> list[str]:
    head = ("stream", "identical", "tokens before", "KV restored", "recomputed", "longest gap, s")
    rows = [
        (
            str(number),
            "yes" if row["identical"] else "NO",
            str(row["tokens_before_fault"]),
            _shown(row["tokens_restored"]),
            _shown(row["tokens_recomputed"]),
            f"{row['gap_s']:.1f}",
        )
        for number, row in enumerate(result["streams"], 1)
    ]
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["recovery_s"].items())
    return ["With protection", columns(head, rows), f"recovery: {phases or 'not told'}"]


def _without_lines(result: dict[str, Any]) -> list[str]:
    without = result["without"]
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in without["phases_s"].items())
    return [
        "The same kill without protection",
        f"  streams failed               {without['streams_failed']} of {len(without['tokens_before_fault'])}",
        f"  until every stream goes on   {without['outage_s']:.1f} s, after its client has sent it again",
        f"  tokens prefilled again       {without['tokens_recomputed']}",
        f"outage: {phases}",
    ]


def _verdict(result: dict[str, Any]) -> str:
    streams = result["streams"]
    if not streams:
        return f"VERDICT: {result['without']['streams_failed']} streams lost without protection"
    same = sum(row["identical"] for row in streams)
    word = "PASS" if result["verdict"] == PASS else "FAIL"
    text = f"VERDICT: {word}: {same} of {len(streams)} streams identical to the undisturbed run, byte for byte"
    if result["without"]:
        text += f"; without protection {result['without']['streams_failed']} were lost"
    return text


def _shown(value: int | None) -> str:
    return "?" if value is None else str(value)


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
