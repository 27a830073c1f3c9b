"""Time to the first token after the engine was killed and started again: KV restored from the arena, beside prefilled again.

One engine takes KV snapshots of prompts and is killed with SIGKILL; a new one on the same arena and a plain one are then
asked for the next token of the same prompts, in turn.
"""

import random
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.arena_copy import memory_folder
from bench.offline import Engine
from bench.rows import Options, Row, row, spread
from bench.vllm_overhead import VOCABULARY
from dynamo_gpu_ft.cli.models import smollm2
from dynamo_gpu_ft.errors import GpuFtError

DTYPE = "float32"  # so that both ways must give the same token
LENGTHS = (256, 1024, 2048)
BLOCK = 32
TARGETS = {1024: 3.0}
ARENA_BYTES = 2 << 30
WARM_UP = 1024


def measure(options: Options) -> list[Row]:
    model = smollm2()
    repetitions = 2 if options.quick else 7
    chooser = random.Random(0)
    prompts = {length: [_prompt(chooser, length) for _ in range(repetitions)] for length in LENGTHS}
    with memory_folder(ARENA_BYTES + (64 << 20)) as folder:
        settings = {
            "arena_dir": str(folder),
            "arena_bytes": ARENA_BYTES,
            "restore_by_cost": False,  # the question is what restoring takes
        }
        options.say("an engine takes KV snapshots")
        with Engine(model, settings=settings, dtype=DTYPE) as first:
            for prompt in (prompt for group in prompts.values() for prompt in group):
                first.ask([prompt], 1)
        options.say("it was killed; a new one on its arena and a plain one start")
        with (
            Engine(model, settings=settings, dtype=DTYPE) as restored,
            Engine(model, settings=None, dtype=DTYPE) as plain,
        ):
            for engine in (restored, plain):
                engine.ask([_prompt(chooser, WARM_UP)], 2)
            return [
                _compare(length, prompts[length], restored, plain, options) for length in LENGTHS
            ]


def _prompt(chooser: random.Random, length: int) -> list[int]:
    return [chooser.randrange(3, VOCABULARY) for _ in range(length)]


def _compare(
    length: int, prompts: list[list[int]], restored: Engine, plain: Engine, options: Options
) -> Row:
    ours, theirs = [], []
    for number, prompt in enumerate(prompts):
        order = [restored, plain] if number % 2 else [plain, restored]
        answers = {engine: engine.ask([prompt], 1) for engine in order}
        found, wanted = answers[restored], answers[plain]
        # Every whole block must come back, but the last when it would leave no token to compute.
        if found["cached"][0] < (length - 1) // BLOCK * BLOCK or wanted["cached"] != [0]:
            raise GpuFtError(
                "this is not the comparison it should be",
                where=f"prompt of {length} tokens",
                value={"restored": found["cached"], "plain": wanted["cached"]},
                rule="every whole block restored in one engine, nothing cached in the other",
            )
        if found["tokens"] != wanted["tokens"]:
            raise GpuFtError(
                "the restored KV gives another token", where=f"prompt {number} of {length}"
            )
        ours.append(found["seconds"])
        theirs.append(wanted["seconds"])
        options.say(
            f"{length} tokens: {ours[-1]:.3f} s restored, {theirs[-1]:.3f} s prefilled again"
        )
    return row(
        f"vllm_restore.ttft.{length}",
        statistics.median(ours),
        "s",
        baseline=statistics.median(theirs),
        ratio=statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        target=TARGETS.get(length),
        note=f"SmolLM2-135M, {DTYPE}, same token both ways; restored, lowest/median/highest {spread(ours)}; prefilled {spread(theirs)}",
    )


def plot(rows: Sequence[Row], path: Path) -> None:
    from bench.plots import figure

    lengths = [int(r.name.rpartition(".")[2]) for r in rows]
    with figure(path, "Time to the first token after a restart") as axes:
        axes.plot(lengths, [r.value for r in rows], marker="o", label="KV restored")
        axes.plot(lengths, [r.baseline for r in rows], marker="o", label="prefilled again")
        axes.set_xlabel("prompt, tokens")
        axes.set_ylabel("seconds")
        axes.set_ylim(bottom=0)
        axes.legend()
