"""What the connector costs vLLM: throughput with it and without it, on the real SmolLM2, in alternating pairs.

Two engines stay loaded; in each pair both get the same never-seen prompts, and which one goes first changes with the pair.
Pieces are short and pairs many, so that what else the machine does falls on both.
"""

import random
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.arena_copy import memory_folder
from bench.offline import Engine
from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft.cli.models import smollm2
from dynamo_gpu_ft.errors import GpuFtError

DTYPE = "bfloat16"
STREAMS = 4
TARGET = 0.97
ARENA_BYTES = 1 << 30
VOCABULARY = 49_000  # below SmolLM2's: its special tokens are not wanted in prompts


def measure(options: Options) -> list[Row]:
    model = smollm2()
    with memory_folder(ARENA_BYTES + (64 << 20)) as folder:
        settings = {"arena_dir": str(folder), "arena_bytes": ARENA_BYTES}
        options.say("starting two engines")
        with (
            Engine(model, settings=settings, dtype=DTYPE) as ours,
            Engine(model, settings=None, dtype=DTYPE) as plain,
        ):
            decode = _pairs(ours, plain, options, prompt_tokens=32, max_tokens=64, pairs=30)
            prefill = _pairs(ours, plain, options, prompt_tokens=512, max_tokens=1, pairs=10)
    return [
        _row("vllm_overhead.decode", decode, STREAMS * 64, TARGET),
        _row("vllm_overhead.prefill", prefill, STREAMS * 512, None),
    ]


def _pairs(
    ours: Engine,
    plain: Engine,
    options: Options,
    *,
    prompt_tokens: int,
    max_tokens: int,
    pairs: int,
) -> list[tuple[float, float]]:
    """Seconds (with, without) of each pair; the first pair warms up and is left out."""
    results = []
    chooser = random.Random(prompt_tokens)
    for number in range(1 + (2 if options.quick else pairs)):
        prompts = [
            [chooser.randrange(3, VOCABULARY) for _ in range(prompt_tokens)] for _ in range(STREAMS)
        ]
        both = [ours, plain] if number % 2 else [plain, ours]
        answers = {engine: engine.ask(prompts, max_tokens) for engine in both}
        if any(answer["cached"] != [0] * STREAMS for answer in answers.values()):
            raise GpuFtError("a prompt was cached: this would measure the cache")
        pair = (answers[ours]["seconds"], answers[plain]["seconds"])
        options.say(
            f"prompts of {prompt_tokens}, pair {number}: {pair[0]:.2f} s with, {pair[1]:.2f} s without"
        )
        results.append(pair)
    return results[1:]


def _row(name: str, pairs: Sequence[tuple[float, float]], tokens: int, target: float | None) -> Row:
    ratios = [without / with_ for with_, without in pairs]
    return row(
        name,
        tokens / statistics.median(with_ for with_, _ in pairs),
        "tokens/s",
        baseline=tokens / statistics.median(without for _, without in pairs),
        ratio=statistics.median(ratios),
        target=target,
        note=f"SmolLM2-135M, {DTYPE}, {STREAMS} streams; ratio: median of alternating pairs, lowest/median/highest {spread(ratios)}",
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Two bars per question."""
    from bench.plots import paired_bars

    paired_bars(rows, path, title="vLLM throughput", ours="with connector", theirs="without")
