"""Restoring KV after a restart: 10,000 blocks in one go, and the prompts of a real vLLM in a new process, beside two others.

The blocks: arena to engine memory, beside memcpy, one safetensors file per request and layer, and LMCache's file tier. The prompts: time to
the first token after a restart by system, and what each system hands the engine when its stored bytes are noise.
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import restore_copy, restore_peers
from bench.arena_copy import memory_folder
from bench.offline import Engine
from bench.restore_peers import Peer
from bench.rows import Options, Row, row, spread
from bench.vllm_overhead import VOCABULARY
from dynamo_gpu_ft.cli.models import smollm2
from dynamo_gpu_ft.errors import GpuFtError

DTYPE = "float32"  # so that restored and recomputed KV must give the same tokens
PROMPT = 1056  # 33 blocks of 32 tokens: 1024 tokens can be restored in steps of 32 and of 128
RESTORABLE = 1024
ANSWER = 16
FOLDER_BYTES = restore_peers.ARENA_BYTES + (
    1 << 30
)  # a megabyte per prompt and layer for the others


def measure(options: Options) -> list[Row]:
    rows = restore_copy.rows(options)
    try:
        rows += _prompts(options)
    except (GpuFtError, ImportError) as error:
        options.lacking.append(f"prompts of a real vLLM: {error}")
    return rows


@dataclass
class _Seen:
    """What an engine said about the prompts: seconds to the first token, tokens, restored tokens; by prompt."""

    seconds: list[float]
    tokens: list[list[int]]
    cached: list[int]


def _prompts(options: Options) -> list[Row]:
    interpreter = restore_peers.python()
    model = smollm2()
    chooser = random.Random(0)
    prompts = [_prompt(chooser) for _ in range(2 if options.quick else 6)]
    options.say("plain vLLM, for the right tokens and the time of prefilling")
    with Engine(model, settings=None, dtype=DTYPE, python=interpreter) as plain:
        wanted = _ask(plain, prompts)
    rows, seconds = [], {}
    with memory_folder(FOLDER_BYTES) as folder:
        for peer in restore_peers.peers(folder):
            try:
                restored, spoiled, what = _restart(peer, model, interpreter, prompts, options)
            except GpuFtError as error:
                if peer.name == "ours":
                    raise
                options.lacking.append(f"{peer.name}: {error}")
                continue
            seconds[peer.name] = restored.seconds
            rows += [_ttft(peer, restored, wanted), _spoiled(peer, spoiled, wanted, what)]
    for other in seconds:
        if other != "ours":
            rows.append(_beside(other, seconds["ours"], seconds[other]))
    return rows


def _prompt(chooser: random.Random) -> list[int]:
    return [chooser.randrange(3, VOCABULARY) for _ in range(PROMPT)]


def _ask(engine: Engine, prompts: list[list[int]]) -> _Seen:
    """First each prompt for its first token, timed; then all again for the whole answer, on what was restored."""
    engine.ask([_prompt(random.Random(1))], 2)  # nothing is met for the first time later
    first = [engine.ask([prompt], 1) for prompt in prompts]
    whole = [engine.ask([prompt], ANSWER) for prompt in prompts]
    return _Seen(
        seconds=[answer["seconds"] for answer in first],
        tokens=[answer["tokens"][0] for answer in whole],
        cached=[answer["cached"][0] for answer in first],
    )


def _restart(
    peer: Peer, model: Path, interpreter: str, prompts: list[list[int]], options: Options
) -> tuple[_Seen, _Seen, str]:
    """Stores in one engine, restores in a second, and again in a third after the stored bytes were made noise."""

    def engine() -> Engine:
        return Engine(
            model,
            settings=peer.settings,
            transfer=peer.transfer,
            dtype=DTYPE,
            python=interpreter,
        )

    options.say(f"{peer.name}: storing")
    with peer.beside(), engine() as first:
        for prompt in prompts:
            first.ask([prompt], 1)
        peer.settle()
    options.say(f"{peer.name}: restoring in a new process")
    with peer.beside(), engine() as second:
        restored = _ask(second, prompts)
    what = peer.spoil(random.Random(2))
    options.say(f"{peer.name}: once more, after noise over {what}")
    with peer.beside(), engine() as third:
        spoiled = _ask(third, prompts)
    options.say(f"{peer.name}: restored {restored.cached}, of noise {spoiled.cached}")
    return restored, spoiled, what


def _ttft(peer: Peer, restored: _Seen, wanted: _Seen) -> Row:
    same = sum(a == b for a, b in zip(restored.tokens, wanted.tokens, strict=True))
    return row(
        f"restore_blocks.vllm.ttft.{peer.name}",
        statistics.median(restored.seconds),
        "s",
        baseline=statistics.median(wanted.seconds),
        ratio=statistics.median(
            b / a for a, b in zip(restored.seconds, wanted.seconds, strict=True)
        ),
        note=f"SmolLM2-135M, {DTYPE}, {PROMPT} tokens, new process; restored tokens {_range(restored.cached)} of {RESTORABLE}; "
        f"{same} of {len(wanted.tokens)} answers equal plain vLLM's; {spread(restored.seconds)}; baseline: prefilled by plain "
        f"vLLM, {spread(wanted.seconds)}",
    )


def _spoiled(peer: Peer, spoiled: _Seen, wanted: _Seen, what: str) -> Row:
    same = sum(a == b for a, b in zip(spoiled.tokens, wanted.tokens, strict=True))
    used = sum(count > 0 for count in spoiled.cached)
    return row(
        f"restore_blocks.vllm.noise.{peer.name}",
        same / len(wanted.tokens),
        "of answers right",
        baseline=1.0,
        target=1.0 if peer.name == "ours" else None,
        note=f"after {what} were overwritten with random bytes (names, sizes and headers kept): noise was taken for KV in {used} of "
        f"{len(wanted.tokens)} prompts, restored tokens {_range(spoiled.cached)}; {same} answers equal plain vLLM's",
    )


def _beside(other: str, ours: list[float], theirs: list[float]) -> Row:
    return row(
        f"restore_blocks.vllm.beside.{other}",
        statistics.median(ours),
        "s",
        baseline=statistics.median(theirs),
        ratio=statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        note=f"time to the first token after the restart, ours {spread(ours)}; {other} {spread(theirs)}; files of both in memory",
    )


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)} to {max(counts)}" if min(counts) != max(counts) else str(counts[0])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Seconds to the first token, by system, and prefilled again."""
    from bench.plots import figure

    shown = [r for r in rows if r.name.startswith("restore_blocks.vllm.ttft.")]
    if not shown:
        return
    names: list[Any] = [r.name.rpartition(".")[2].replace("_", "\n") for r in shown]
    with figure(
        path, "Time to the first token of a prompt of 1056 tokens, after a restart"
    ) as axes:
        axes.bar([*names, "prefilled\nagain"], [*(r.value for r in shown), shown[0].baseline])
        axes.set_ylabel("seconds")
