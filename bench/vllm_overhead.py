"""What the connector costs vLLM: throughput with it and without it, on the real SmolLM2, in alternating pairs.

Two engines are loaded side by side; in each pair both get the same never-seen prompts, and which one goes first changes with
the pair. Pieces are short and pairs many, so that what else the machine does falls on both; and each round starts two new
engines, because two equal engines differ by some percent with the luck of where their memory lies.
"""

import random
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.arena_copy import memory_folder
from bench.offline import Engine
from bench.rows import Options, Row, row
from dynamo_gpu_ft.cli.models import smollm2
from dynamo_gpu_ft.errors import GpuFtError

DTYPE = "bfloat16"
STREAMS = 4
TARGET = 0.97
ROUNDS = 4
DECODE_PROMPT, DECODE_TOKENS = 32, 64
PREFILL_PROMPT = 512
ARENA_BYTES = 2 << 30
VOCABULARY = 49_000  # below SmolLM2's: its special tokens are not wanted in prompts

Round = list[tuple[float, float]]


def measure(options: Options) -> list[Row]:
    model = smollm2()
    chooser = random.Random(0)
    decode: list[Round] = []
    prefill: list[Round] = []
    with memory_folder(ARENA_BYTES + (64 << 20)) as folder:
        for number in range(1 if options.quick else ROUNDS):
            settings = {
                "arena_dir": str(folder),
                "arena_name": f"round{number}",
                "arena_bytes": ARENA_BYTES // ROUNDS,
            }
            options.say(f"round {number}: starting two engines")
            with (
                Engine(model, settings=settings, dtype=DTYPE) as ours,
                Engine(model, settings=None, dtype=DTYPE) as plain,
            ):
                ask = _Pairs(ours, plain, options, chooser)
                decode.append(ask.round(DECODE_PROMPT, DECODE_TOKENS, pairs=12))
                prefill.append(ask.round(PREFILL_PROMPT, 1, pairs=5))
    return [
        _row("vllm_overhead.decode", decode, STREAMS * DECODE_TOKENS, TARGET),
        _row("vllm_overhead.prefill", prefill, STREAMS * PREFILL_PROMPT, None),
    ]


class _Pairs:
    """Asks both engines for the same, in turn."""

    def __init__(
        self, ours: Engine, plain: Engine, options: Options, chooser: random.Random
    ) -> None:
        self._ours, self._plain, self._options, self._chooser = ours, plain, options, chooser

    def round(self, prompt_tokens: int, max_tokens: int, *, pairs: int) -> Round:
        """Seconds (with, without) of each pair; the first pair warms up and is left out."""
        results = []
        for number in range(1 + (2 if self._options.quick else pairs)):
            prompts = [
                [self._chooser.randrange(3, VOCABULARY) for _ in range(prompt_tokens)]
                for _ in range(STREAMS)
            ]
            both = [self._ours, self._plain] if number % 2 else [self._plain, self._ours]
            answers = {engine: engine.ask(prompts, max_tokens) for engine in both}
            if any(answer["cached"] != [0] * STREAMS for answer in answers.values()):
                raise GpuFtError("a prompt was cached: this would measure the cache")
            results.append((answers[self._ours]["seconds"], answers[self._plain]["seconds"]))
        ratio = statistics.median(without / with_ for with_, without in results[1:])
        self._options.say(f"prompts of {prompt_tokens}, {pairs} pairs: ratio {ratio:.3f}")
        return results[1:]


def _row(name: str, rounds: Sequence[Round], tokens: int, target: float | None) -> Row:
    pairs = [pair for each in rounds for pair in each]
    medians = [statistics.median(without / with_ for with_, without in each) for each in rounds]
    return row(
        name,
        tokens / statistics.median(with_ for with_, _ in pairs),
        "tokens/s",
        baseline=tokens / statistics.median(without for _, without in pairs),
        ratio=statistics.median(without / with_ for with_, without in pairs),
        target=target,
        note=f"SmolLM2-135M, {DTYPE}, {STREAMS} streams; ratio: median of {len(pairs)} alternating pairs; "
        f"by pair of engines: {', '.join(f'{median:.3f}' for median in medians)}",
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    """Two bars per question."""
    from bench.plots import paired_bars

    paired_bars(rows, path, title="vLLM throughput", ours="with connector", theirs="without")
