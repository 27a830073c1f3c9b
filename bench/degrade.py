"""What a reference engine of four ranks still gives when it goes on with three, and how long its streams pause on the way there and back.

A verdict takes one rank's device away and gives it back later, under four streams. Baselines of the same run: three quarters of the
throughput before, and an engine that was started with three ranks.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.arena_copy import memory_folder
from bench.rank_recovery_reference import Load, engine_under_load
from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft.cli.models import smollm2_wide, tiny_llama
from dynamo_gpu_ft.errors import GpuFtError

RANKS, STREAMS, KEPT_SHARE, BEYOND_COPY_S = 4, 4, 0.85, 0.25
FAULT = "XID 79: the GPU has fallen off the bus (simulated)"


@dataclass
class Turn:
    """One change of the number of ranks. Seconds without a token; `copy_s`: of those, what the slowest rank spent on moving weights and
    KV; `step_s`: what a stream waits for a token anyway, with the ranks that there are behind it; `again`: tokens computed again; `equal`: KV of every head the same bytes before and after, wherever the head is."""

    pause_s: float
    copy_s: float
    step_s: float
    again: int
    equal: bool


@dataclass
class Round:
    """Tokens per second with all ranks, without one, and with all again; and the two turns."""

    before: float
    fewer: float
    after: float
    loss: Turn
    back: Turn


def measure(options: Options) -> list[Row]:
    rows: list[Row] = []
    for name, model, rounds in (("tiny", tiny_llama(), 8), ("smollm2", smollm2_wide(), 4)):
        rows += _measure(options, f"degrade.{name}", model, 2 if options.quick else rounds)
    return rows


def _measure(options: Options, prefix: str, model: Path, rounds: int) -> list[Row]:
    seconds = 1.0 if options.quick else 3.0
    with memory_folder(3 << 30) as folder:
        options.say(f"{prefix}: {rounds} times from {RANKS} ranks to {RANKS - 1} and back")
        settings = {"standbys": 0, "min_shards": RANKS - 1}
        with engine_under_load(model, Path(folder), "degrade", settings, tp=RANKS) as load:
            found = [_round(load, number % RANKS, seconds) for number in range(rounds)]
        options.say(f"{prefix}: an engine of {RANKS - 1} ranks")
        with engine_under_load(model, Path(folder), "three", {"standbys": 0}, tp=RANKS - 1) as load:
            load.settle(0)
            three = statistics.median(_rate(load, seconds) for _ in range(max(2, rounds // 2)))
    return _rows(prefix, found, three)


def _round(load: Load, lost: int, seconds: float) -> Round:
    engine = load.engine
    load.settle(0)
    before = _rate(load, seconds)
    loss = _turn(load, lambda: engine.condemn(lost, FAULT, device=True), RANKS - 1)
    fewer = _rate(load, seconds)
    load.settle(0)
    back = _turn(load, lambda: engine.returned(lost), RANKS)
    after = _rate(load, seconds)
    loss.step_s, back.step_s = STREAMS / fewer, STREAMS / after
    return Round(before, fewer, after, loss, back)


def _rate(load: Load, seconds: float) -> float:
    """Tokens per second of four streams in decode; prefills of new requests are in between, as in life."""
    tokens, began = 0, time.monotonic()
    while (took := time.monotonic() - began) < seconds:
        load.fill()
        tokens += len(load.engine.step())
    return tokens / took


def _turn(load: Load, change: Any, ranks: int) -> Turn:
    """From the last token before `change` to the first one behind it; what is digested for the comparison is not counted."""
    engine = load.engine
    blocks = load.whole_blocks()
    before = load.kv_by_head(blocks)
    began = time.monotonic()
    change()
    while len(engine.crew.members) != ranks:
        engine.step()
        if engine.failed:
            raise GpuFtError("the engine failed under the bench", value=engine.failed)
    recovered = time.monotonic()
    facts, after = dict(engine.group.facts), load.kv_by_head(blocks)
    looked = time.monotonic() - recovered
    while not engine.step():
        load.fill()
    pause = time.monotonic() - began - looked
    return Turn(pause, facts["copy_s"], 0.0, facts.get("recomputed_tokens", 0), before == after)


def _rows(prefix: str, rounds: list[Round], three: float) -> list[Row]:
    before = statistics.median(r.before for r in rounds)
    fewer = statistics.median(r.fewer for r in rounds)
    wanted = before * (RANKS - 1) / RANKS
    rows = [
        row(
            f"{prefix}.throughput", fewer, "tokens/s", baseline=wanted, target=KEPT_SHARE,
            note=f"{RANKS - 1} ranks after the loss; baseline: 3/4 of the {before:.4g} tokens/s before; an engine started with "
            f"{RANKS - 1} ranks gives {three:.4g}; {spread([r.fewer for r in rounds])}. All ranks share this machine's cores",
        ),
        row(
            f"{prefix}.throughput_back", statistics.median(r.after for r in rounds), "tokens/s", baseline=before,
            note=f"with {RANKS} ranks again; baseline: before the loss; {spread([r.after for r in rounds])}",
        ),
    ]  # fmt: skip
    for name, turns, way in (
        ("loss", [r.loss for r in rounds], f"{RANKS} to {RANKS - 1} ranks"),
        ("back", [r.back for r in rounds], f"{RANKS - 1} to {RANKS} ranks"),
    ):
        beyond = [turn.pause_s - turn.copy_s - turn.step_s for turn in turns]
        rows.append(
            row(
                f"{prefix}.{name}.pause", statistics.median(t.pause_s for t in turns), "s",
                note=f"{way}, verdict to the next token; {spread([t.pause_s for t in turns])}; up to "
                f"{max(t.again for t in turns)} tokens computed again",
            )
        )  # fmt: skip
        rows.append(
            row(
                f"{prefix}.{name}.beyond_copy", max(beyond), "s", baseline=BEYOND_COPY_S, ratio=BEYOND_COPY_S / max(max(beyond), 1e-6), target=1.0,
                note=f"the longest pause without what the slowest rank spent on moving weights and KV ({spread([t.copy_s for t in turns])} s) and "
                f"without the step that a token takes anyway ({statistics.median(t.step_s for t in turns):.3g} s); baseline: the target; "
                f"{spread(beyond)}; four ranks on {len(os.sched_getaffinity(0))} cores",
            )
        )  # fmt: skip
    turns = [turn for r in rounds for turn in (r.loss, r.back)]
    rows.append(
        row(
            f"{prefix}.kv_equal", sum(t.equal for t in turns) / len(turns), "of changes", baseline=1.0, target=1.0,
            note=f"KV of every whole block of every head byte for byte the same after the change, {len(turns)} changes",
        )
    )  # fmt: skip
    return rows
