"""Judges and renders `demo --fault rank`: a timeline of the recovery in place, and a table beside the whole engine's restart.

Pure functions over what the clients saw and what the server's journal says.
"""

from typing import Any

from dynamo_gpu_ft.cli.demo import journal
from dynamo_gpu_ft.cli.demo.load import Stream
from dynamo_gpu_ft.cli.demo.rank import Played, Round, kept
from dynamo_gpu_ft.cli.demo.report import FAIL, PASS, Where
from dynamo_gpu_ft.cli.demo.scenario import Scene
from dynamo_gpu_ft.cli.render import columns
from dynamo_gpu_ft.events import (
    EngineDied,
    Event,
    GroupRecovered,
    MemberDied,
    Planned,
    Recovered,
    StepDone,
)

WORDS = {
    "quiesce": "the other worker has left its step and waits",
    "rebuild": "its place is taken: weights, group, KV from the arena, requests",
    "validate": "weights compared by digest, one collective through all workers",
    "commit": "requests run again",
}


def judge(scene: Scene, where: Where, played: Played) -> dict[str, Any]:
    """The whole result as plain data; "pass" only if every stream is whole and identical and nobody else was replaced."""
    problems: list[str] = []
    rank = _judged(scene, played.reference, played.rank, "one worker", problems)
    kills = [rank]
    kills += [
        _judged(scene, played.reference, round_, f"kill {number}", problems)
        for number, round_ in enumerate(played.more, 2)
    ]
    whole = _judged(scene, played.reference, played.whole, "whole engine", problems)
    for kill, round_ in zip(kills, (played.rank, *played.more), strict=True):
        if kill["replaced"] != 1:
            problems.append(f"{kill['replaced']} processes were replaced for one lost worker")
        if not any(isinstance(event, GroupRecovered) for event in round_.journal):
            problems.append("the worker was not replaced in place")
    notes = (
        [] if played.in_memory else ["the arena was on disk: the memory file system had no room"]
    )
    return {
        "verdict": FAIL if problems else PASS,
        "fault": "rank",
        "problems": problems,
        "notes": notes,
        "shard": played.shard,
        "standbys": played.standbys,
        "signal": scene.fault.name,
        "timeline": timeline(played.rank.journal, played.rank.killed.wall, rank["next_token_s"]),
        "one_worker": rank,
        "kills": kills,
        "whole_engine": whole,
        "engine": where.engine,
        "model": where.model,
        "dtype": scene.dtype,
        "tensor_parallel": scene.tp,
        "block_size": scene.block_size,
        "prompt_tokens": [len(prompt) for prompt in scene.prompts],
        "max_tokens": scene.max_tokens,
        "kill_at_tokens": scene.kill_at,
        "machine": where.machine,
        "date": where.date,
        "commit": where.commit,
    }


def _judged(
    scene: Scene, reference: list[Stream], round_: Round, what: str, problems: list[str]
) -> dict[str, Any]:
    killed = round_.killed
    same = 0
    for number, (wanted, stream) in enumerate(zip(reference, killed.streams, strict=True), 1):
        identical = stream.whole and (stream.text, stream.tokens) == (wanted.text, wanted.tokens)
        same += identical
        if not stream.whole:
            problems.append(f"{what}: stream {number} ended early: {stream.error}")
        elif not identical:
            problems.append(f"{what}: stream {number} differs")
    nexts = [stream.first_arrival_after(killed.when) for stream in killed.streams]
    last = max((moment for moment in nexts if moment is not None), default=killed.when)
    told = [journal.resumed(round_.journal, stream.ask.request_id) for stream in killed.streams]
    stays, processes = kept(round_)
    noticed = next((e for e in round_.journal if isinstance(e, (MemberDied, EngineDied))), None)
    ends = [e for e in round_.journal if isinstance(e, (GroupRecovered, Recovered))]
    steps = [e for e in round_.journal if isinstance(e, StepDone)]
    return {
        "identical": same,
        "streams": len(killed.streams),
        "noticed_s": _since(noticed, killed.wall),
        "serving_s": _since(ends[-1] if ends else None, killed.wall),
        "next_token_s": round(last - killed.when, 3),
        "gap_s": round(max(stream.longest_pause() for stream in killed.streams), 3),
        "replaced": processes - stays,
        "processes": processes,
        "tokens_restored": sum(each.restored for each in told if each),
        "tokens_recomputed": sum(each.recomputed for each in told if each),
        "steps_s": {step.step: round(step.duration_s, 3) for step in steps},
    }


def _since(event: Event | None, wall: float) -> float | None:
    return None if event is None else round(max(0.0, event.time - wall), 3)


def timeline(told: list[Event], wall: float, next_token_s: float) -> list[dict[str, Any]]:
    """What happened when, in seconds after the kill; steps stand where they ended."""
    rows: list[tuple[float, str]] = [(0.0, "the worker is killed")]
    for event in told:
        at = event.time - wall
        if isinstance(event, MemberDied):
            rows.append((at, f"noticed: {event.reason}"))
        elif isinstance(event, Planned):
            how = {"substitute": "a standby takes its place", "respawn": "a new process does"}
            rows.append((at, f"plan: {event.kind}, {how.get(event.kind, event.reason)}"))
        elif isinstance(event, StepDone) and event.step in WORDS:
            text = WORDS[event.step] if event.ok else f"failed: {event.detail}"
            rows.append((at, f"{event.step} ({event.duration_s:.2f} s): {text}"))
        elif isinstance(event, GroupRecovered):
            rows.append((at, f"{event.outcome}, epoch {event.epoch}"))
    rows.append((next_token_s, "every stream has its next token"))
    return [{"at_s": round(at, 3), "what": what} for at, what in rows]


def render(result: dict[str, Any]) -> str:
    """The screen; its last line is the verdict."""
    prompts = result["prompt_tokens"]
    stands = f"{result['standbys']} standbys" if result["standbys"] else "no standby"
    lines = [
        f"{result['model']} on {result['engine']}, {result['dtype']}, tensor parallel {result['tensor_parallel']}, "
        f"KV blocks of {result['block_size']} tokens, {stands}",
        f"{len(prompts)} open streams, prompts of {max(prompts)} tokens, {result['max_tokens']} tokens each, greedy; "
        f"{result['signal']} at token {result['kill_at_tokens']}",
        f"{result['machine']}; {result['date']}" + f"; {result['commit']}" * bool(result["commit"]),
        "",
        f"{result['signal']} of the worker of shard {result['shard']}",
        *(f"  {row['at_s']:7.2f} s  {row['what']}" for row in result["timeline"]),
        "",
        _table(result),
        *_all_kills(result["kills"]),
        "",
        *(f"note: {note}" for note in result["notes"]),
        *(f"problem: {problem}" for problem in result["problems"]),
        _verdict(result),
    ]
    return "\n".join(lines)


def _all_kills(kills: list[dict[str, Any]]) -> list[str]:
    """One line for the rest of a series, none for a single kill."""
    if len(kills) == 1:
        return []
    took = [kill["next_token_s"] for kill in kills]
    same = sum(kill["identical"] for kill in kills)
    streams = sum(kill["streams"] for kill in kills)
    return [
        f"{len(kills)} kills of either worker in turn, next token of every stream after, s: "
        f"{', '.join(f'{t:.2f}' for t in took)}; {same} of {streams} streams identical"
    ]


def _table(result: dict[str, Any]) -> str:
    one, all_ = result["one_worker"], result["whole_engine"]

    def seconds(key: str) -> list[str]:
        return [f"{each[key]:.2f}" if each[key] is not None else "?" for each in (one, all_)]

    rows = [
        ["noticed after, s", *seconds("noticed_s")],
        ["serving again after, s", *seconds("serving_s")],
        ["next token of every stream after, s", *seconds("next_token_s")],
        ["longest gap of a stream, s", *seconds("gap_s")],
        ["processes replaced", *(f"{e['replaced']} of {e['processes']}" for e in (one, all_))],
        ["tokens of KV kept or restored", *(str(e["tokens_restored"]) for e in (one, all_))],
        ["tokens computed again", *(str(e["tokens_recomputed"]) for e in (one, all_))],
        ["streams identical", *(f"{e['identical']} of {e['streams']}" for e in (one, all_))],
    ]
    return columns(("the same kill of", "one worker", "the whole engine"), rows)


def _verdict(result: dict[str, Any]) -> str:
    one, all_ = result["one_worker"], result["whole_engine"]
    word = "PASS" if result["verdict"] == PASS else "FAIL"
    ratio = all_["next_token_s"] / max(one["next_token_s"], 0.001)
    return (
        f"VERDICT: {word}: {one['identical']} of {one['streams']} streams identical, {one['replaced']} of {one['processes']} "
        f"processes replaced, next tokens {ratio:.0f} times sooner than after a restart of the whole engine"
    )
