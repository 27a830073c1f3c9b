"""How long the streams of a reference engine pause when one of its ranks is killed, by phase, and what the survivors keep.

Three ways in the same run, on the same model: a standby takes the shard, a fresh fork does, everything is started again. The kill
comes from a timer at any moment of a decode step.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.arena_copy import memory_folder
from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft.cli.models import smollm2_wide, tiny_llama
from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.events import Event, EventStream, GroupRecovered, StateChanged, StepDone

TARGET_S, SHARE = 0.5, 1.05
PHASES = ("notice", "quiesce", "publish", "rebuild", "validate", "commit", "step")
WAYS = {
    "standby": {"standbys": 1},
    "respawn": {"standbys": 0},
    "restart": {"standbys": 0, "in_place": False},
}


@dataclass
class Kill:
    """One kill: seconds to the next token, by phase; `kept`: whether survivors have the same process, addresses and KV bytes."""

    total: float
    phases: dict[str, float]
    kept: bool
    read: int
    needed: int
    source: str


@dataclass
class Load:
    """An engine under a few long streams; requests that end are replaced by new ones."""

    engine: Any
    events: list[tuple[float, Event]]
    lot: random.Random = field(default_factory=lambda: random.Random(0))
    steps: list[float] = field(default_factory=list)  # seconds of undisturbed steps

    def fill(self) -> None:
        from dynamo_gpu_ft.engines.reference.sampling import Sampling

        while len(self.engine.scheduler.open) < 4:
            prompt = [
                self.lot.randrange(5, self.engine.shape.vocab - 10)
                for _ in range(self.lot.randrange(60, 120))
            ]
            self.engine.submit(prompt, Sampling(max_tokens=150))

    def settle(self, standbys: int) -> None:
        """Decodes for some steps until the standby is ready and all streams are in decode."""
        give_up = time.monotonic() + 120
        while True:
            self.fill()
            began = time.monotonic()
            self.engine.step()
            self.steps.append(time.monotonic() - began)
            ready = len(self.engine.crew.standbys) >= standbys
            running = self.engine.scheduler.running
            decoding = all(len(r.output) > 8 and len(r.output) < 130 for r in running)
            if ready and decoding and len(running) == 4:
                return
            if time.monotonic() > give_up:
                raise GpuFtError("no standby became ready", value=120, rule="seconds")

    def whole_blocks(self) -> list[int]:
        """Engine blocks of the running requests in which every token's KV is."""
        size = self.engine.options.block
        return [b for r in self.engine.scheduler.running for b in r.blocks[: r.computed // size]]

    def kv_by_head(self, blocks: list[int]) -> dict[int, bytes]:
        """Head -> digest of its KV of `blocks`, wherever the head is."""
        from dynamo_gpu_ft.recovery.group.base import Deadline

        found = self.engine.group.describe(Deadline.after(30.0), blocks)
        return {head: digest for told in found.values() for head, digest in told.kv.items()}

    def kill(self) -> Kill:
        """SIGKILLs a rank within the next step and steps on until there is a token again."""
        from dynamo_gpu_ft.recovery.group.base import Deadline

        engine, lot = self.engine, self.lot
        victim = lot.choice(sorted(engine.crew.members))
        blocks = self.whole_blocks()
        before = engine.group.describe(Deadline.after(30.0), blocks)
        pid, killed, first = engine.crew.members[victim].pid, [], len(self.events)

        def strike() -> None:
            killed.append(time.monotonic())
            os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(lot.uniform(0.0, 0.04), strike)
        timer.start()
        after: dict[int, Any] = {}
        paused = 0.0
        while True:
            outputs = engine.step()
            done = [e for _, e in self.events[first:] if isinstance(e, GroupRecovered)]
            if (
                done and not after
            ):  # the step that recovered; what follows is the first one that gives tokens
                began = time.monotonic()
                after = engine.group.describe(Deadline.after(30.0), blocks)
                paused = time.monotonic() - began
            elif done and outputs:
                break
            if engine.failed:
                raise GpuFtError("the engine failed under the bench", value=engine.failed)
            self.fill()
        ended = time.monotonic() - paused
        timer.join()
        kept = all(
            (before[s].pid, before[s].weights, before[s].cache, before[s].kv)
            == (after[s].pid, after[s].weights, after[s].cache, after[s].kv)
            for s in before
            if s != victim
        )
        source, read, needed, _ = next(iter(engine.group.facts["loads"].values()))
        return Kill(
            ended - killed[0],
            self._phases(first, killed[0], ended + paused, paused),
            kept,
            read,
            needed,
            source,
        )

    def _phases(self, first: int, killed: float, ended: float, paused: float) -> dict[str, float]:
        found = dict.fromkeys(PHASES, 0.0)
        recovered = ended
        for at, event in self.events[first:]:
            if isinstance(event, StateChanged) and event.former == "serving":
                found["notice"] = at - killed
            elif isinstance(event, StepDone) and event.step in found:
                found[event.step] += event.duration_s
            elif isinstance(event, GroupRecovered):
                recovered = at
        found["step"] = ended - paused - recovered
        return found


def measure(options: Options) -> list[Row]:
    rows: list[Row] = []
    for name, model in (("tiny", tiny_llama()), ("smollm2", smollm2_wide())):
        rows += _measure(options, f"rank_recovery_reference.{name}", model)
    return rows


def _measure(options: Options, prefix: str, model: Path) -> list[Row]:
    counts = dict(zip(WAYS, (5, 3, 1) if options.quick else (30, 10, 3), strict=True))
    kills: dict[str, list[Kill]] = {}
    steps: list[float] = []
    with memory_folder(3 << 30) as folder:
        for way, settings in WAYS.items():
            options.say(f"{prefix}.{way}: {counts[way]} kills")
            with engine_under_load(model, Path(folder), way, settings) as load:
                kills[way] = []
                for _ in range(counts[way]):
                    load.settle(int(settings["standbys"]))
                    kills[way].append(load.kill())
                steps += load.steps
        with engine_under_load(model, Path(folder), "checkpoint", {"standbys": 0}) as load:
            load.settle(0)
            for path in Path(folder).glob("*checkpoint.weights-*"):
                path.unlink()
            alone = load.kill()
    return _rows(prefix, kills, alone, statistics.median(steps))


@contextmanager
def engine_under_load(
    model: Path, folder: Path, name: str, settings: dict[str, Any], *, tp: int = 2
) -> Iterator[Load]:
    """An engine of `tp` ranks with its arena in `folder`, ended afterwards."""
    from dynamo_gpu_ft.engines.reference.driver import Engine
    from dynamo_gpu_ft.engines.reference.options import Options as EngineOptions

    events: list[tuple[float, Event]] = []
    stream = EventStream(lambda event: events.append((time.monotonic(), event)))
    chosen = {
        "arena_dir": str(folder), "arena_name": name, "arena_bytes": "160MiB", "ledger_bytes": "1MiB", "max_restarts": 1000,
        "restart_window_s": 1.0, "start_timeout_s": 120, "tail_every": 1, **settings,
    }  # fmt: skip
    engine_options = EngineOptions(
        model=str(model), tp=tp, blocks=160, name=f"bench-{name}", settings=chosen
    )
    with Engine(engine_options, None, stream) as engine:
        yield Load(engine, events)


def _rows(prefix: str, kills: dict[str, list[Kill]], alone: Kill, usual: float) -> list[Row]:
    rows = []
    whole = statistics.median(kill.total for kill in kills["restart"])
    for way, found in kills.items():
        totals = [kill.total for kill in found]
        rows.append(
            row(
                f"{prefix}.{way}.pause",
                statistics.median(totals),
                "s",
                baseline=whole if way != "restart" else None,
                ratio=whole / statistics.median(totals) if way != "restart" else None,
                note="SIGKILL to the next token, median; baseline: the whole engine started again, KV from the arena too; "
                f"a step takes {usual:.3g} s anyway, the canary as long; "
                f"lowest/median/highest {spread(totals)}",
            )
        )
        for phase in PHASES:
            seconds = [kill.phases[phase] for kill in found]
            rows.append(
                row(
                    f"{prefix}.{way}.{phase}",
                    statistics.median(seconds),
                    "s",
                    note=spread(seconds),
                )
            )
    totals = sorted(kill.total for kill in kills["standby"])
    worst = totals[min(len(totals) - 1, int(0.99 * len(totals)))]
    rows.append(
        row(
            f"{prefix}.standby.p99", worst, "s", baseline=TARGET_S, ratio=TARGET_S / worst, target=1.0,
            note=f"baseline: the target; {len(totals)} kills of either of two ranks under four streams, the slowest of them when fewer than 100",
        )
    )  # fmt: skip
    every = [*kills["standby"], *kills["respawn"], alone]
    kept = sum(kill.kept for kill in every) / len(every)
    rows.append(
        row(
            f"{prefix}.kept_on_survivors", kept, "of recoveries", baseline=1.0, target=1.0,
            note=f"same process, same addresses, KV of every whole block byte for byte the same, in {len(every)} recoveries in place",
        )
    )  # fmt: skip
    for name, found in (("neighbour", kills["respawn"][0]), ("checkpoint", alone)):
        share = found.read / found.needed
        rows.append(
            row(
                f"{prefix}.read.{name}", share, "of the share", baseline=SHARE, ratio=SHARE / share, target=1.0,
                note=f"{found.read} bytes read from the {found.source} for a lost shard; baseline: the target; pause {found.total:.3g} s",
            )
        )  # fmt: skip
    return rows
